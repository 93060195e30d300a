"""What is deployed: a sealed package, where its key is released, and the command that serves it.

Everything that goes into a template is checked here to be of a plain alphabet, so that no format needs quoting rules of
its own, and nobody who chooses a name writes a setting.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import rfc8785

from confide.attest.requirements import AnyRequirement, Model, NoEgress
from confide.errors import DeployError
from confide.packages.sealed.package import SealedPackage

_ADDRESS: Final = re.compile(r"https://[A-Za-z0-9](?:[A-Za-z0-9.\-]{0,252})(?::[0-9]{1,5})?")
_PATH: Final = re.compile(r"/[A-Za-z0-9._\-/]{0,254}")
_IMAGE: Final = re.compile(r"[a-z0-9][A-Za-z0-9.\-:/_]{0,200}@sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Service:
    """A model to serve. keys: address of the owner's broker. package: where the sealed package lies in the machine."""

    model_digest: str
    keys: str
    package: str = "/package"
    port: int = 8470

    def __post_init__(self) -> None:
        if not _ADDRESS.fullmatch(self.keys):
            raise DeployError("--keys is the broker's address, https://HOST:PORT and nothing behind it.")
        require_path(self.package, "the package")
        if not 1 <= self.port <= 65535:
            raise DeployError(f"There is no port {self.port}; take one of 1 to 65535.")

    @classmethod
    def of(cls, package: Path, keys: str, inside: str, port: int) -> Self:
        """The service of a package in a folder. Raises what `SealedPackage.open` does."""
        return cls(SealedPackage.open(package).manifest.model_digest, keys, inside, port)

    def command(self, program: str, *further: str, host: str = "0.0.0.0") -> tuple[str, ...]:  # noqa: S104 - to be asked from outside is what it is for
        """The words that serve it. TLS ends in the machine, under a certificate that carries its evidence."""
        listen = ("--host", host, "--port", str(self.port), "--ra-tls")
        return (program, "serve", self.package, "--keys", self.keys, *listen, *further)

    def requirements(self, *, egress_closed: bool = True) -> tuple[AnyRequirement, ...]:
        """What any policy for it asks for besides the machine."""
        return (Model(sha256=self.model_digest), *((NoEgress(),) if egress_closed else ()))

    @property
    def commitment(self) -> bytes:
        """What a host commits a machine to where it has a field for that: the RFC 8785 form of model and broker."""
        return rfc8785.dumps({"confide-deploy": 1, "keys": self.keys, "model_digest": self.model_digest})

    @property
    def config_id(self) -> bytes:
        """MRCONFIGID of a TDX machine, 48 bytes."""
        return hashlib.sha384(self.commitment).digest()

    @property
    def host_data(self) -> bytes:
        """HOST_DATA of an SEV-SNP machine, 32 bytes."""
        return hashlib.sha256(self.commitment).digest()


def require_path(path: str, what: str) -> str:
    """An absolute path of plain characters. DeployError."""
    if not _PATH.fullmatch(path) or ".." in path.split("/"):
        raise DeployError(f"The path of {what} has to be absolute, of letters, digits and ._-/ only; choose another.")
    return path


def require_image(image: str) -> str:
    """A container's image by its digest. DeployError."""
    if not _IMAGE.fullmatch(image):
        raise DeployError("The image has to be named by its digest, REGISTRY/NAME@sha256:...; a tag can change.")
    return image

"""A Nitro enclave at AWS: its image's recipe, what its parent runs beside it, and the policy for what it measures.

An enclave has no network and no disk. Its parent, which is not trusted, carries bytes: from users to the enclave, where
TLS ends, and from the enclave to the key broker, whose certificate the enclave verifies. The sealed package is in the
image. Sources: AWS, Nitro Enclaves User Guide and `nitro-cli run-enclave --config`; socat(1), VSOCK.
"""

import json
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from confide.attest.claims import TcbStatus
from confide.attest.defaults import Exceptions
from confide.deploy.deployment import Deployment, rendered
from confide.deploy.predict.eif import EnclaveImage
from confide.deploy.predict.prediction import Prediction
from confide.deploy.service import Service, require_image, require_path
from confide.errors import DeployError
from confide.net.vsock import VSOCK, VsockAddress

PARENT: Final = VsockAddress(3, 8471)
"""Where an enclave finds the way to its broker: its parent, as every enclave numbers it, and a port of ours there."""
ENCLAVE_CID: Final = 16

_TIMES: Final = 4
"""As much memory as the image has bytes, at least: `nitro-cli` starts no enclave with less."""
_UNLISTED: Final = Exceptions(allow_tcb=(TcbStatus.UNKNOWN,), revocation="if-available")
"""AWS publishes neither levels nor revocation lists for enclaves."""
_NO_IMAGE: Final = "build the image with `nitro-cli build-enclave`, and give it with --eif"


@dataclass(frozen=True)
class Enclave:
    """An enclave's size, and where its parent keeps the files. memory: in GiB, taken from the parent's."""

    memory: int = 16
    processors: int = 4
    files: str = "/srv/confide"

    def __post_init__(self) -> None:
        require_path(self.files, "the parent's files")
        if not (1 <= self.memory <= 16384 and 1 <= self.processors <= 512):
            raise DeployError("An enclave has 1 to 16384 GiB and 1 to 512 processors.")

    def require_room_for(self, image: EnclaveImage) -> None:
        """DeployError where the enclave would not be started with this image."""
        needed = -(-_TIMES * image.size >> 30) or 1
        if self.memory < needed:
            raise DeployError(f"An enclave with this image needs {_TIMES} times its size; give --memory {needed}.")


def nitro(service: Service, enclave: Enclave, *, base: str, python: str, image: EnclaveImage | None) -> Deployment:
    """base: an image with Python, by its digest. python: where that is in it. image: what was built of the recipe.

    Without the image nothing is predicted, and no policy is written: these are two runs.
    """
    require_path(python, "Python")
    if image is not None:
        enclave.require_room_for(image)
    served = service.command("", "--keys-through", f"{VSOCK}:{PARENT.cid}:{PARENT.port}", host=VSOCK)
    here = (python, "-I", "-m")
    command = (*here, "confide.deploy.image.enclave", *here, "confide", *served[1:])
    started = {
        "enclave_name": "confide",
        "eif_path": f"{enclave.files}/confide.eif",
        "enclave_cid": ENCLAVE_CID,
        "memory_mib": enclave.memory << 10,
        "cpu_count": enclave.processors,
        "debug_mode": False,
    }
    broker = urlsplit(service.keys)
    users = (f"TCP-LISTEN:{service.port},reuseaddr,fork", f"VSOCK-CONNECT:{ENCLAVE_CID}:{service.port}")
    keys = (f"VSOCK-LISTEN:{PARENT.port},fork", f"TCP:{broker.hostname}:{broker.port or 443}")
    files = {
        "Dockerfile": rendered("Dockerfile", service, base=require_image(base), python=python, command=command),
        "enclave.json": (json.dumps(started, indent=2) + "\n").encode(),
        "confide-enclave.service": rendered("enclave.service", service, files=enclave.files),
        "confide-users.service": rendered("relay.service", service, ways=users, carried="users to the enclave"),
        "confide-keys.service": rendered("relay.service", service, ways=keys, carried="the enclave to its broker"),
    }
    if image is None:
        return Deployment("nitro", service, files, Prediction({}, {"measurement": _NO_IMAGE}), None)
    prediction = image.predict()
    policy = prediction.policy(*service.requirements(), exceptions=_UNLISTED)
    return Deployment("nitro", service, files, prediction, policy)

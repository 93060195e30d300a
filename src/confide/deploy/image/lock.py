"""What an image is made of: Debian's packages and Python's wheels, each by version and digest, one a line.

    deb libc6=2.36-9+deb12u13 sha256:...
    wheel numpy==2.4.6 sha256:...

Files are found by their digest alone, so their names, and who has them, decide nothing.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, Self

from confide.errors import DeployError, InvalidImage

MAX_BYTES: Final = 1 << 20
_LINE: Final = re.compile(
    r"(?:deb (?P<deb>[a-z0-9][a-z0-9+.\-]{0,99}=[A-Za-z0-9.+~:\-]{1,99})"
    r"|wheel (?P<wheel>[a-z0-9][a-z0-9.\-]{0,99}==[A-Za-z0-9.+!]{1,99}))"
    r" sha256:(?P<sha256>[0-9a-f]{64})"
)
_SHOWN: Final = 5


@dataclass(frozen=True)
class Lock:
    """debs and wheels: by name and version, as their own tools write them, the SHA-256 in hexadecimal."""

    debs: Mapping[str, str]
    wheels: Mapping[str, str]

    @classmethod
    def read(cls, raw: bytes) -> Self:
        """A lock file. InvalidImage for a line of another form, or a name that stands twice."""
        found: dict[str, dict[str, str]] = {"deb": {}, "wheel": {}}
        names = set()
        for number, line in enumerate(_text(raw).split("\n"), 1):
            if not line or line.startswith("#"):
                continue
            matched = _LINE.fullmatch(line)
            if matched is None:
                raise InvalidImage(f"Line {number} of the lock file has another form; take the one of the release.")
            kind = "deb" if matched["deb"] else "wheel"
            name = (kind, matched[kind].partition("=")[0])
            if name in names:
                raise InvalidImage(
                    f"Line {number} of the lock file names {name[1]} again; take the one of the release."
                )
            names.add(name)
            found[kind][matched[kind]] = matched["sha256"]
        return cls(MappingProxyType(found["deb"]), MappingProxyType(found["wheel"]))

    def find(self, folder: Path) -> dict[str, Path]:
        """The files in a folder, by what the lock calls them. DeployError for those that are not there."""
        there: dict[str, Path] = {}
        for path in _files(folder):
            there[sha256_of(path)] = path
        wanted = {**self.debs, **self.wheels}
        missing = [name for name, digest in wanted.items() if digest not in there]
        if missing:
            shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
            raise DeployError(
                f"{folder} lacks {len(missing)} of {len(wanted)} files that the lock names ({shown}), or has others by "
                "these names; fetch them as docs/deploy.md, A measured image, says."
            )
        return {name: there[digest] for name, digest in wanted.items()}


def sha256_of(path: Path) -> str:
    """Of a file of any size, in hexadecimal. DeployError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DeployError(f"{path} cannot be read ({error.strerror}); fetch it again.") from None


def _files(folder: Path) -> Iterable[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix in (".deb", ".whl"))
    except OSError as error:
        raise DeployError(f"{folder} cannot be read ({error.strerror}); give the folder with the packages.") from None


def _text(raw: bytes) -> str:
    if len(raw) > MAX_BYTES:
        raise InvalidImage(f"A lock file has at most {MAX_BYTES >> 20} MiB; take the one of the release.")
    try:
        return raw.decode("ascii")
    except UnicodeDecodeError:
        raise InvalidImage("The lock file is not ASCII; take the one of the release.") from None

"""A placement: which servers have which of a model's layer groups, in a file that owners hand out with the shell.

It says where a client connects to and what it asks for there, and weakens nothing: whoever answers presents the owner's
release, and its answers are checked. So it is refused where others could change it, and believed otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Self

import msgspec
from msgspec import Meta

from confide.disk.files import read_guarded
from confide.errors import InvalidPlacement
from confide.hybrid.groups import MAX_TEXT, Groups
from confide.packages.manifest import Digest, Group, Manifest
from confide.rlwe.parameters import RING_DEGREE, Profile
from confide.shallow_toml import require_shallow

MAX_SERVERS: Final = 256
"""Addresses of one model."""
_MAX_BYTES: Final = 256 << 10
_MAX_MARKS: Final = 4 * MAX_SERVERS


class _Server(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    address: Annotated[str, Meta(min_length=1, max_length=2048)]
    groups: Annotated[str, Meta(min_length=1, max_length=MAX_TEXT)]


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    confide_placement: Annotated[int, Meta(ge=1, le=1)]
    model: Digest
    server: Annotated[list[_Server], Meta(min_length=1, max_length=MAX_SERVERS)]


@dataclass(frozen=True)
class Placement:
    """model_digest: of the model, in hexadecimal. servers: addresses, and the layer groups that each is asked for."""

    model_digest: str
    servers: tuple[tuple[str, Groups], ...]

    @classmethod
    def read(cls, path: Path) -> Self:
        """From a file. InvalidPlacement where it cannot be read, others can change it, or it is of another form."""
        try:
            text = read_guarded(path, _MAX_BYTES).decode()
            require_shallow(text, str(path), InvalidPlacement, _MAX_MARKS)
            document = msgspec.toml.decode(text, type=_Document)
        except OSError as error:
            raise InvalidPlacement(
                f"{path} cannot be taken for a placement: {error.strerror}. Give the file that `confide plan "
                "--machines` wrote."
            ) from error
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise InvalidPlacement(f"{path} cannot be understood: {str(error)[:300]}. Correct that place.") from None
        servers = tuple((server.address, Groups.parse(server.groups)) for server in document.server)
        return cls(document.model, servers)

    def write(self) -> bytes:
        """The content of a file."""
        servers = [{"address": address, "groups": str(groups)} for address, groups in self.servers]
        return msgspec.toml.encode({"confide-placement": 1, "model": self.model_digest, "server": servers})

    def require_model(self, manifest: Manifest) -> None:
        """InvalidPlacement unless it is of this model."""
        if self.model_digest != manifest.model_digest:
            raise InvalidPlacement(
                "The placement is of another model than the shell; take the one that its owner made for this release."
            )


def stored_bytes(group: Group, profile: Profile) -> int:
    """Of a layer group at its server: W and, with private weights, U, a byte an entry.

    A token's products read each of them once in as many digit planes as the others, so it measures the work as well.
    """
    return group.rows * (group.columns + (RING_DEGREE if profile is Profile.PRIVATE_WEIGHTS else 0))


def share_out(sizes: Sequence[int], machines: int) -> list[Groups]:
    """Consecutive groups for each of so many machines, so that the largest share is as small as it can be.

    sizes: of the groups. InvalidPlacement where there are more machines than groups.
    """
    if not 1 <= machines <= min(len(sizes), MAX_SERVERS):
        raise InvalidPlacement(
            f"{len(sizes)} layer groups go on 1 to {min(len(sizes), MAX_SERVERS)} machines, not {machines}; ask for "
            "fewer, or give some of them as replicas."
        )
    low, high = max(sizes), sum(sizes)
    while low < high:
        middle = (low + high) // 2
        if len(_filled(sizes, machines, middle)) <= machines:
            high = middle
        else:
            low = middle + 1
    return _filled(sizes, machines, low)


def _filled(sizes: Sequence[int], machines: int, most: int) -> list[Groups]:
    """One machine after the other up to `most`, and the last groups one each where machines would else stay empty."""
    starts, filled = [0], 0
    for number, size in enumerate(sizes):
        spare = len(sizes) - number == machines - len(starts)
        if number and (filled + size > most or spare):
            starts.append(number)
            filled = 0
        filled += size
    ends = [*starts[1:], len(sizes)]
    return [Groups(((start, end - 1),)) for start, end in zip(starts, ends, strict=True)]

"""The hint of a shell: what a client multiplies its tokens' secrets by, read from disk as it is needed.

It is public, large and fixed for a model. Its digests stand in the signed layer table, so that it can come from
anywhere; a wrong one would make every honest server look like a cheat, so it is verified before any server is asked.
Needs neither torch nor transformers.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from confide.errors import InvalidPackage, StaleHint
from confide.packages.manifest import HINT_FOLDER, Group, Manifest, hint_name, open_file
from confide.rlwe.parameters import HINT_PLANES, RING_DEGREE

CHUNK: Final = 4 << 20
OnBytes = Callable[[int], object]
"""Called with a number of bytes, each time so many more are done."""


def hint_bytes(group: Group) -> int:
    """The size of a group's hint file: five bytes for each coefficient of each row."""
    return group.rows * HINT_PLANES * RING_DEGREE


def hint_size(manifest: Manifest) -> int:
    """The size of all hint files together."""
    return sum(map(hint_bytes, manifest.groups))


class Hint:
    """A shell's hint, verified. rows: of each layer group, int8 (rows, 5, N), mapped from the file."""

    def __init__(self, groups: list[NDArray[np.int8]]) -> None:
        self._groups = groups

    @classmethod
    def open(cls, folder: Path | str, manifest: Manifest, on_bytes: OnBytes | None = None) -> Self:
        """Map and verify the hint in a shell's folder; `manifest` is the shell's, its signature checked.

        Raises InvalidPackage where the hint or a part of it is missing, or the layer table knows of none; StaleHint
        where it is not the one that was signed.
        """
        folder = Path(folder)
        if not manifest.hint:
            raise InvalidPackage(
                f"{folder} has no hint, because it was split with --no-hint; its owner makes one with "
                "`confide hint make`."
            )
        return cls([verified(folder, index, manifest, on_bytes) for index in range(len(manifest.groups))])

    def rows(self, group: int) -> NDArray[np.int8]:
        """The hint of a layer group: int8 (rows, 5, N), digits of 8 bits, least significant first."""
        return self._groups[group]


def verified(folder: Path, index: int, manifest: Manifest, on_bytes: OnBytes | None = None) -> NDArray[np.int8]:
    """The hint of one layer group; see `Hint.open`."""
    group = manifest.groups[index]
    path = folder / hint_name(index)
    try:
        with open_file(path) as file:
            # Hashed through the mapping that is used afterwards: what is at the path may have changed by then. Torch
            # wants memory that can be written to; what is written here stays in this process.
            mapped: NDArray[np.int8] = np.memmap(file, np.int8, mode="c")
    except FileNotFoundError as error:
        raise InvalidPackage(
            f"{path} is missing; get the hint with `confide hint fetch`, or copy the folder {HINT_FOLDER} from where "
            "the model's owner hands it out."
        ) from error
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise _stale(path) from error
    if mapped.size != hint_bytes(group) or _digest(mapped, on_bytes) != manifest.hint[hint_name(index)]:
        raise _stale(path)
    return mapped.reshape(group.rows, HINT_PLANES, RING_DEGREE)


def _digest(content: NDArray[np.int8], on_bytes: OnBytes | None) -> str:
    digest = hashlib.sha256()
    for start in range(0, content.size, CHUNK):
        part = content[start : start + CHUNK]
        digest.update(part.data)
        if on_bytes:
            on_bytes(part.size)
    return digest.hexdigest()


def _stale(path: Path) -> StaleHint:
    return StaleHint(
        f"{path} is not the hint that was signed with this shell: it is damaged, or another model's or another "
        "epoch's; get it again with `confide hint fetch`."
    )

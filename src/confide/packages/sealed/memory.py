"""Sealed files as files in memory, for libraries that want a path, such as GGUF engines and tokenizers.

They lie in the kernel's memory, not in any file system, and go with the process. Swapping would write it to disk, as
it would any memory: keep swap off where models are opened.
"""

import fcntl
import mmap
import os
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from confide.errors import ConfideError, InvalidPackage
from confide.packages.sealed.manifest import WeightsFormat
from confide.packages.sealed.package import UnlockedPackage
from confide.packages.sealed.reader import OnChunk, SealedReader
from confide.packages.sealed.regions import Regions

_READ_ONLY: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class MemoryFile:
    """A read-only file in memory (memfd_create(2)), for this process, until it is closed. A context manager."""

    def __init__(self, reader: SealedReader, on_chunk: OnChunk | None = None) -> None:
        """Decrypt into it; see `SealedReader.read_into` for what is raised."""
        self._descriptor = os.memfd_create("model", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            self._fill(reader, on_chunk)
            fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, _READ_ONLY)
        except BaseException:
            self.close()
            raise

    def _fill(self, reader: SealedReader, on_chunk: OnChunk | None) -> None:
        if not reader.size:  # which cannot be mapped
            return reader.verify(on_chunk)
        os.ftruncate(self._descriptor, reader.size)
        content = mmap.mmap(self._descriptor, reader.size)
        reader.read_into(Regions([memoryview(content)]), on_chunk)
        # Not in a `with`: after an error its traceback still holds parts of the mapping, which cannot be closed then.
        content.close()

    @property
    def path(self) -> str:
        """Where this process, and no other user's, can open it."""
        return f"/proc/self/fd/{self._descriptor}"

    def close(self) -> None:
        """Let go of it. What has mapped it keeps its pages."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class MemoryFolder:
    """A folder whose files are in memory, for libraries that want one: links to memory files. A context manager."""

    def __init__(self, readers: Mapping[str, SealedReader]) -> None:
        """readers: by the names that the files have in it."""
        self._readers = readers
        self._open = ExitStack()

    def __enter__(self) -> Path:
        """Where it is, while it is entered, for this process alone. ConfideError where no folder can be made."""
        with ExitStack() as entered:
            folder = Path(entered.enter_context(_own_folder()))
            for name, reader in self._readers.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).symlink_to(entered.enter_context(MemoryFile(reader)).path)
            self._open = entered.pop_all()
        return folder

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()


def _own_folder() -> tempfile.TemporaryDirectory[str]:
    for place in filter(None, ("/dev/shm", os.environ.get("TMPDIR"), "/tmp")):  # noqa: S108 - what is in it are links
        with suppress(OSError):
            return tempfile.TemporaryDirectory(prefix="confide-", dir=place)
    raise ConfideError("There is no place for a folder of links to files in memory; mount a tmpfs at /dev/shm.")


def open_gguf(package: UnlockedPackage, on_chunk: OnChunk | None = None) -> MemoryFile:
    """The model of a sealed GGUF package. InvalidPackage where it is not one, or not what its owner signed."""
    files = package.manifest.weight_files()
    if package.manifest.weights is not WeightsFormat.GGUF or len(files) != 1:
        raise InvalidPackage(f"{package.package.folder} does not hold a GGUF model; seal a .gguf file.")
    return MemoryFile(package.file(files[0]), on_chunk)

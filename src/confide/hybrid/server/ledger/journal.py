"""The answers given since the last checkpoint, in an append-only file: what a killed server process still knows.

A record is handed to the operating system before its answer leaves, without waiting for the disk. So it outlives the
process, though not the machine: after a power failure the leases in the database decide instead.
"""

import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from confide.errors import LedgerCorrupted, LedgerUnavailable

SEGMENT_BYTES: Final = 16 << 20
"""A segment's size; the present one and the one before are kept, to recognise retries after a restart."""
_BODY: Final = struct.Struct("<16sIII16s")
_SUM: Final = struct.Struct("<I")
_RECORD_BYTES: Final = _BODY.size + _SUM.size


@dataclass(frozen=True)
class Entry:
    """Indexes first.. of one layer group of a pack were answered, for the data with this 16-byte tag."""

    pack: bytes
    group: int
    first: int
    count: int
    tag: bytes = field(repr=False)


@dataclass(frozen=True, order=True)
class Position:
    """A place in the journal: a segment's number and a byte within it."""

    segment: int
    offset: int


def _segment_number(path: Path) -> int:
    digits = path.name.removeprefix("journal-")
    if not re.fullmatch("0|[1-9][0-9]{0,17}", digits):
        raise LedgerCorrupted(f"{path} is not part of the ledger's journal; move it out of the folder.")
    return int(digits)


class Journal:
    """The journal files of one folder, `journal-N`. One process at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._segments = sorted(_segment_number(path) for path in folder.glob("journal-*"))
        number = self._segments[-1] if self._segments else 0
        self._open(number)
        # A record that was cut off was not followed by its answer.
        self._offset -= self._offset % _RECORD_BYTES
        os.ftruncate(self._file, self._offset)

    def _open(self, number: int) -> None:
        path = self._path(number)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._number = number
        self._offset = os.fstat(self._file).st_size
        if number not in self._segments:
            self._segments.append(number)

    def _path(self, number: int) -> Path:
        return self._folder / f"journal-{number}"

    @property
    def position(self) -> Position:
        """Where the next record goes."""
        return Position(self._number, self._offset)

    @property
    def full(self) -> bool:
        """Whether it is time for a new segment."""
        return self._offset >= SEGMENT_BYTES

    def append(self, entry: Entry) -> None:
        """Hand a record to the operating system. LedgerUnavailable, and no trace of it, where that fails."""
        body = _BODY.pack(entry.pack, entry.group, entry.first, entry.count, entry.tag)
        record = body + _SUM.pack(zlib.crc32(body))
        try:
            written = os.write(self._file, record)
            if written != len(record):
                raise OSError("short write")
        except OSError as error:
            os.ftruncate(self._file, self._offset)
            raise LedgerUnavailable(
                f"The journal in {self._folder} cannot be written ({error.strerror or error}); "
                "make room on the server's disk. Nothing was answered and no token billed."
            ) from error
        self._offset += len(record)

    def replay(self, forgiving_from: Position | None = None) -> Iterator[tuple[Position, Entry]]:
        """All records that are kept, oldest first, each with its place. LedgerCorrupted where one was changed.

        From `forgiving_from` on, where a power failure may have left half of what was written, a damaged record is
        the end: it and what follows is cut off.
        """
        for number in list(self._segments):
            content = self._path(number).read_bytes()
            for offset in range(0, len(content) - _RECORD_BYTES + 1, _RECORD_BYTES):
                position = Position(number, offset)
                body = content[offset : offset + _BODY.size]
                if _SUM.unpack_from(content, offset + _BODY.size)[0] != zlib.crc32(body):
                    if forgiving_from is None or position < forgiving_from:
                        raise LedgerCorrupted(
                            f"{self._path(number)} has been changed at byte {offset}; "
                            "restore the last backup with `confide ledger restore`."
                        )
                    self._cut(position)
                    return
                yield position, Entry(*_BODY.unpack(body))

    def _cut(self, position: Position) -> None:
        for number in [number for number in self._segments if number > position.segment]:
            self._path(number).unlink()
            self._segments.remove(number)
        os.close(self._file)
        os.truncate(self._path(position.segment), position.offset)
        self._open(position.segment)

    def rotate(self) -> None:
        """Begin a new segment and forget all but the last one."""
        os.close(self._file)
        for number in self._segments[:-1]:
            self._path(number).unlink()
        self._segments = self._segments[-1:]
        self._open(self._number + 1)

    def sync(self) -> None:
        """Wait for the disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

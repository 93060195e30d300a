"""A record of everything the layer server sees online, for audits and tests: that it learns nothing, anyone can check.

The file is a sequence of the very messages received, each behind its length in four bytes.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from confide.errors import LedgerUnavailable, MalformedMessage
from confide.hybrid import wire
from confide.hybrid.closing import Closing


class Recorder(Closing):
    """Appends every online message to a file, before it is answered: what cannot be recorded is not answered.

    What a crash or a full disk left unfinished at the file's end is cut off, so that it stays one record.
    LedgerUnavailable where the file cannot be written. For one thread.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("r+b" if path.exists() else "x+b", buffering=0)
            self._end = _whole_frames(self._file)
            self._file.truncate(self._end)
        except OSError as error:
            raise _unavailable(error) from error

    def __call__(self, message: wire.Online) -> None:
        frame = wire.encode(message)
        rest = memoryview(len(frame).to_bytes(4, "little") + frame)
        end = self._end + len(rest)
        try:
            self._file.seek(self._end)
            while rest:
                rest = rest[self._file.write(rest) or 0 :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._end)
            raise _unavailable(error) from error
        self._end = end

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _whole_frames(file: IO[bytes]) -> int:
    """Where the last whole frame of a file ends."""
    size, end = os.fstat(file.fileno()).st_size, 0
    while end + 4 <= size:
        file.seek(end)
        after = end + 4 + int.from_bytes(file.read(4), "little")
        if after > size:
            break
        end = after
    return end


def _unavailable(error: OSError) -> LedgerUnavailable:
    return LedgerUnavailable(
        f"The server's record for audits cannot be written ({error.strerror}); its operator must make room or leave "
        "--record out. Nothing was answered and no token billed."
    )


def read_record(path: Path) -> Iterator[wire.Online]:
    """The messages in a record, oldest first. An incomplete one at the end is left out.

    MalformedMessage where the file is no record.
    """
    with path.open("rb") as file:
        while len(header := file.read(4)) == 4:
            size = int.from_bytes(header, "little")
            # Reading makes room for all that is asked for, and a damaged file may ask for 4 GiB.
            if size > wire.MAX_FRAME + wire.FRAME_OVERHEAD:
                raise MalformedMessage(f"{path} is not a record of messages; give the file that --record wrote.")
            frame = file.read(size)
            if len(frame) < size:
                return
            message = wire.decode_from_client(frame)
            if isinstance(message, wire.Online):
                yield message

"""A record of everything the layer server sees online, for audits and tests: that it learns nothing, anyone can check.

The file is a sequence of the very messages received, each behind its length in four bytes.
"""

from collections.abc import Iterator
from pathlib import Path

from confide.errors import MalformedMessage
from confide.hybrid import wire
from confide.hybrid.closing import Closing


class Recorder(Closing):
    """Appends every online message to a file, before it is answered."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def __call__(self, message: wire.Online) -> None:
        frame = wire.encode(message)
        self._file.write(len(frame).to_bytes(4, "little") + frame)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


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

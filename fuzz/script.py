"""Bytes read as a sequence of choices, so that mutations of them are mutations of what is done."""

from collections.abc import Sequence
from typing import TypeVar

Option = TypeVar("Option")


class Script:
    """Takes choices from bytes. At the end of them there are zeros."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    def __bool__(self) -> bool:
        """Whether anything is left."""
        return self._place < len(self._data)

    def number(self, width: int = 1) -> int:
        """A little-endian number of this many bytes."""
        return int.from_bytes(self._take(width), "little")

    def choice(self, options: Sequence[Option]) -> Option:
        """One of a list."""
        return options[self.number() % len(options)]

    def chunk(self, width: int = 1) -> bytes:
        """Bytes behind their length, which has this many bytes itself."""
        return self._take(self.number(width))

    def rest(self) -> bytes:
        """Everything that is left."""
        return self._take(len(self._data))

    def around(self, exact: int) -> int:
        """A length that is mostly right, and sometimes just wrong."""
        return max(0, exact + self.choice([0, 0, 0, 0, -1, 1, -4, 4, -exact, exact]))

    def damaged(self, content: bytes) -> bytes:
        """The content with a part overwritten, cut out, or put in, or the end cut off."""
        place = self.number(3) % (len(content) + 1)
        before, after = content[:place], content[place:]
        match self.number() % 4:
            case 0:
                patch = self.chunk()
                return before + patch + after[len(patch) :]
            case 1:
                return before + after[1 + self.number() :]
            case 2:
                return before + self.chunk() + after
            case _:
                return before

    def _take(self, count: int) -> bytes:
        taken = self._data[self._place : self._place + count]
        self._place += len(taken)
        return taken

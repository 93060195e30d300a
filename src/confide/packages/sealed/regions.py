"""Buffers that stand for a file's content, back to back, so that it can be read in any chunks into many tensors."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate


class Regions:
    """Writable views that cover a file from its first byte to its last."""

    def __init__(self, views: Sequence[memoryview]) -> None:
        self._views = [view for view in views if len(view)]
        self._starts = list(accumulate((len(view) for view in self._views), initial=0))

    @property
    def size(self) -> int:
        """Bytes in all of them."""
        return self._starts[-1]

    def whole(self, start: int, end: int) -> memoryview | None:
        """The buffer for bytes [start, end) where a single view holds them all."""
        pieces = self._pieces(start, end)
        return pieces[0] if len(pieces) == 1 else None

    def scatter(self, start: int, content: memoryview) -> None:
        """Copy content to where it belongs, from byte `start` on."""
        for piece in self._pieces(start, start + len(content)):
            piece[:] = content[: len(piece)]
            content = content[len(piece) :]

    def _pieces(self, start: int, end: int) -> list[memoryview]:
        pieces = []
        index = bisect_right(self._starts, start) - 1
        while start < end:
            first = self._starts[index]
            piece = self._views[index][start - first : end - first]
            pieces.append(piece)
            start += len(piece)
            index += 1
        return pieces

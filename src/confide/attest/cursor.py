"""Reading binary structures front to back, with bounds."""

from typing import Literal, final

from confide.errors import MalformedEvidence


@final
class Cursor:
    """Takes fields off the front of `data`; MalformedEvidence, naming `what`, where a field does not fit."""

    def __init__(self, data: bytes, what: str, order: Literal["big", "little"]) -> None:
        self._data = data
        self._what = what
        self._order = order
        self._at = 0

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        end = self._at + size
        if end > len(self._data):
            raise MalformedEvidence(
                f"The {self._what} ends after {len(self._data)} bytes, within a field; fetch the evidence again."
            )
        field = self._data[self._at : end]
        self._at = end
        return field

    def number(self, size: int) -> int:
        """The next `size` bytes as an unsigned number."""
        return int.from_bytes(self.take(size), self._order)

    def sized(self, size: int) -> bytes:
        """A length of `size` bytes, and then as many bytes as it says."""
        return self.take(self.number(size))

    @property
    def at(self) -> int:
        """How many bytes were taken."""
        return self._at

    @property
    def done(self) -> bool:
        """Whether nothing is left."""
        return self._at == len(self._data)

    def finish(self) -> None:
        """MalformedEvidence if anything is left."""
        if not self.done:
            raise MalformedEvidence(
                f"The {self._what} has {len(self._data) - self._at} bytes too many; fetch the evidence again."
            )

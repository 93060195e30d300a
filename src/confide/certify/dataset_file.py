"""Dataset files, of tasks and of corpora alike: JSON Lines, with a header first and then one entry to a line.

A dataset is known by the SHA-256 of such a file, bytes as they are. Errors name lines and never what is in them: the
file may be somebody's secret.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from confide.errors import InvalidCorpus, InvalidTask

_Header = TypeVar("_Header", bound=msgspec.Struct)
_Entry = TypeVar("_Entry", bound=msgspec.Struct)
_Line = TypeVar("_Line", bound=msgspec.Struct)


@dataclass(frozen=True)
class Form:
    """A kind of dataset file, in the words of its errors, and how much one holds. page: of the documentation."""

    file: str
    entry: str
    entries: str
    page: str
    most_bytes: int
    most_entries: int
    error: type[InvalidTask] | type[InvalidCorpus]

    def too_large(self) -> InvalidTask | InvalidCorpus:
        """The error for a file with more than that."""
        return self.error(
            f"A {self.file} has at most {self.most_bytes >> 20} MiB and {self.most_entries:,} {self.entries}; divide "
            "it into several."
        )

    def read(
        self, content: bytes, header: type[_Header], entry_of: Callable[[_Header], type[_Entry]]
    ) -> tuple[_Header, tuple[_Entry, ...]]:
        """The header, and the entries, of the kind that it says. The form's error for anything else."""
        if len(content) > self.most_bytes or content.count(b"\n") > self.most_entries + 1:
            raise self.too_large()
        first, *rest = content.split(b"\n")
        said = self._decode(first, 1, header, "the header")
        kind = entry_of(said)
        found = tuple(
            self._decode(line, number, kind, self.entry) for number, line in enumerate(rest, start=2) if line.strip()
        )
        if not found:
            raise self.error(f"The {self.file} has no {self.entries}; put one on each line after the first.")
        return said, found

    def _decode(self, line: bytes, number: int, kind: type[_Line], what: str) -> _Line:
        try:
            return msgspec.json.decode(line, type=kind)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise self.error(f"Line {number} of the {self.file} is not {what}; {self.page} shows them.") from None

"""Corpus files: what an adapter is trained on, as JSON Lines of one header and then one text to a line.

The header says the corpus's name, `{"confide-corpus": 1, "name": "books"}`. A text is `{"text": ...}`, with the
`licence` that it is under, as an SPDX expression, where its author says it. A dataset is known by the SHA-256 of such a
file, bytes as they are. Errors name lines and never what is in them: the file may be somebody's secret.
"""

from dataclasses import dataclass
from typing import Annotated, Final, Literal, TypeVar

import msgspec

from confide.attest.certificates import DatasetName
from confide.errors import InvalidCorpus

MAX_CORPUS_BYTES: Final = 256 << 20
MAX_TEXTS: Final = 1_000_000
_Line = TypeVar("_Line", bound=msgspec.Struct)


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal[1] = msgspec.field(name="confide-corpus")
    name: DatasetName


class Text(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A text, and the licence that it is under; empty where nobody says it."""

    text: Annotated[str, msgspec.Meta(min_length=1)]
    licence: Annotated[str, msgspec.Meta(max_length=256)] = ""


@dataclass(frozen=True)
class Corpus:
    """A corpus as its file has it."""

    name: str
    texts: tuple[Text, ...]


def read_corpus(content: bytes) -> Corpus:
    """A corpus from a file's bytes. InvalidCorpus for anything else."""
    if len(content) > MAX_CORPUS_BYTES or content.count(b"\n") > MAX_TEXTS + 1:
        raise InvalidCorpus(
            f"A corpus file has at most {MAX_CORPUS_BYTES >> 20} MiB and {MAX_TEXTS:,} texts; divide it into several."
        )
    first, *rest = content.split(b"\n")
    header = _decode(first, 1, _Header)
    texts = tuple(_decode(line, number, Text) for number, line in enumerate(rest, start=2) if line.strip())
    if not texts:
        raise InvalidCorpus("The corpus file has no texts; put one on each line after the first.")
    return Corpus(header.name, texts)


def _decode(line: bytes, number: int, kind: type[_Line]) -> _Line:
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        what = "the header" if kind is _Header else "a text"
        raise InvalidCorpus(f"Line {number} of the corpus file is not {what}; docs/train.md shows them.") from None

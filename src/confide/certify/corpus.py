"""Corpus files: what an adapter is trained on, as JSON Lines of one header and then one text to a line.

The header says the corpus's name, `{"confide-corpus": 1, "name": "books"}`. A text is `{"text": ...}`, with the
`licence` that it is under, as an SPDX expression, where its author says it. See `dataset_file` for the form.
"""

from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec

from confide.attest.certificates import DatasetName
from confide.certify.dataset_file import Form
from confide.errors import InvalidCorpus

CORPUS_FILE: Final = Form("corpus file", "a text", "texts", "docs/train.md", 256 << 20, 1_000_000, InvalidCorpus)


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
    header, texts = CORPUS_FILE.read(content, _Header, lambda _: Text)
    return Corpus(header.name, texts)

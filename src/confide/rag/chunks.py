"""Pages of text, cut into chunks that a question can be compared with and an answer can cite."""

import re
from collections.abc import Iterable, Iterator
from typing import Final

from confide.packages.sealed.corpus import Chunk
from confide.rag.documents import Page

CHARACTERS: Final = 1600
"""Of a chunk at most: some 400 tokens of English, of which five leave room for an answer in a context of 4,096."""
_PARAGRAPH: Final = re.compile(r"\n[ \t]*(?:\n[ \t]*)+")
_SENTENCE_END: Final = re.compile(r"[.!?。！？]['\")\]”’»]*\s|\n")


def cut(source: str, pages: Iterable[Page], characters: int = CHARACTERS) -> Iterator[Chunk]:
    """The chunks of a document, in order: whole paragraphs where they fit, else sentences, else what fits.

    None goes beyond its page. source: the document's name in its corpus. characters: of a chunk at most.
    """
    for page in pages:
        for text in _packed(page.text, characters):
            yield Chunk(source, page.number, text)


def _packed(text: str, characters: int) -> Iterator[str]:
    """Paragraphs together, as many as fit."""
    packed = ""
    for paragraph in filter(None, map(str.strip, _PARAGRAPH.split(text))):
        if packed and len(packed) + 2 + len(paragraph) > characters:
            yield packed
            packed = ""
        *whole, paragraph = _pieces(paragraph, characters)
        yield from whole
        packed = f"{packed}\n\n{paragraph}" if packed else paragraph
    if packed:
        yield packed


def _pieces(paragraph: str, characters: int) -> Iterator[str]:
    """A paragraph in pieces that fit, each cut after a sentence, a word, or where it must be."""
    start = 0
    while len(paragraph) - start > characters:
        end = start + characters
        sentences = [found.end() for found in _SENTENCE_END.finditer(paragraph, start + 1, end)]
        words = max(paragraph.rfind(space, start + 1, end) for space in " \t") + 1
        cut_at = sentences[-1] if sentences else words or end
        if piece := paragraph[start:cut_at].strip():
            yield piece
        start = cut_at
    yield paragraph[start:].strip()

"""The chunks that fit a question by their words. All of it is in memory, and nothing is written."""

import logging
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from confide.extras import named_extras
from confide.packages.sealed.corpus import Chunk

_MAX_WORDS: Final = 128
"""Of a question: each costs time that grows with the corpus."""
_UNSPACED: Final = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
"""Kana and Han: written without spaces, so each character stands for a word."""
_WORD: Final = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


@dataclass(frozen=True)
class Hit:
    """A chunk that was found. place: in the corpus, from 0. score: BM25's, as a share of the best chunk's."""

    place: int
    chunk: Chunk
    score: float


class Index:
    """A corpus, ready to be asked by BM25 (as Lucene computes it, k1 = 1.5, b = 0.75). Safe for several threads."""

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        with named_extras():
            from bm25s import BM25
        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it has itself tell every step
        self.chunks = tuple(chunks)
        # What has no words gets one that no question has, for the library divides by the mean length.
        numbers = {"": 0}
        texts = [[numbers.setdefault(word, len(numbers)) for word in words(chunk.text)] or [0] for chunk in chunks]
        self._numbers = numbers
        self._bm25 = BM25(method="lucene", k1=1.5, b=0.75)
        self._bm25.index((texts, numbers), create_empty_token=False, show_progress=False)

    def search(self, question: str, most: int) -> list[Hit]:
        """The best chunks, the best one first, at most so many; a chunk without a word of the question is no match.

        Of a question's words the first 128 count that the corpus has.
        """
        asked = dict.fromkeys(words(question))
        known = [self._numbers[word] for word in asked if word in self._numbers][:_MAX_WORDS]
        if not known:
            return []
        scores = self._bm25.get_scores_from_ids(known)
        best = [place for place in _best(scores, most) if scores[place] > 0]
        return [Hit(place, self.chunks[place], float(scores[place] / scores[best[0]])) for place in best]


def words(text: str) -> list[str]:
    """The words that texts are compared by: in one spelling (NFKC), in small letters, without inflection known."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _best(scores: NDArray[np.float32], most: int) -> list[int]:
    """Places of the highest scores, the highest first; of equal ones the earlier first."""
    if most < len(scores):
        least = np.partition(scores, -most)[-most]
        candidates = np.flatnonzero(scores >= least)
    else:
        candidates = np.arange(len(scores))
    order = np.argsort(-scores[candidates], kind="stable")
    return [int(place) for place in candidates[order][:most]]

"""The chunks that fit a question: by their words (BM25), by embeddings where there are any, and by both together.

All of it is in memory, and nothing is written.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from confide.extras import named_extras
from confide.packages.sealed.corpus import Chunk

MAX_QUESTION_CHARACTERS: Final = 4096
_MAX_WORDS: Final = 128
"""Of a question: each costs time that grows with the corpus."""
_DEPTH: Final = 100
"""How far down each list is looked at when lists are fused."""
_RRF: Final = 60
"""The constant of reciprocal rank fusion: Cormack, Clarke and Buettcher, SIGIR 2009, section 3."""
_UNSPACED: Final = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
"""Kana and Han: written without spaces, so each character stands for a word."""
_WORD: Final = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Hit:
    """A chunk that was found. place: in the corpus, from 0. score: 1 for the first in every list, less further down."""

    place: int
    chunk: Chunk
    score: float


class Index:
    """A corpus, ready to be asked. Safe for several threads."""

    def __init__(self, chunks: Sequence[Chunk], vectors: Vectors | None = None) -> None:
        """vectors: [chunks, dimensions], each of Euclidean length 1; None for a corpus without embeddings."""
        if vectors is not None and (vectors.ndim != 2 or len(vectors) != len(chunks)):
            raise ValueError("there is one vector for each chunk")
        with named_extras():
            from bm25s import BM25
        self.chunks = tuple(chunks)
        self._vectors = vectors
        # What has no words gets one that no question has, for the library divides by the mean length.
        numbers = {"": 0}
        texts = [[numbers.setdefault(word, len(numbers)) for word in words(chunk.text)] or [0] for chunk in chunks]
        self._numbers = numbers
        self._bm25 = BM25(method="lucene")
        self._bm25.index((texts, numbers), create_empty_token=False, show_progress=False)

    def search(self, question: str, most: int, vector: Vectors | None = None) -> list[Hit]:
        """The best chunks, the best one first, at most so many; a chunk without a word of the question is no match.

        vector: [dimensions], the question's embedding, where the corpus has embeddings; then every chunk is a match.
        """
        depth = max(most, _DEPTH)
        lists = [self._by_words(question, depth)]
        if vector is not None and self._vectors is not None:
            lists.append(_best(self._vectors @ vector, depth))
        scores: dict[int, float] = {}
        for ranked in lists:
            for rank, place in enumerate(ranked, start=1):
                scores[place] = scores.get(place, 0.0) + (_RRF + 1) / (_RRF + rank) / len(lists)
        best = sorted(scores, key=lambda place: (-scores[place], place))[:most]
        return [Hit(place, self.chunks[place], scores[place]) for place in best]

    def _by_words(self, question: str, depth: int) -> list[int]:
        asked = dict.fromkeys(words(question[:MAX_QUESTION_CHARACTERS]))
        known = [self._numbers[word] for word in asked if word in self._numbers][:_MAX_WORDS]
        if not known:
            return []
        scores = self._bm25.get_scores_from_ids(known)
        return [place for place in _best(scores, depth) if scores[place] > 0]


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

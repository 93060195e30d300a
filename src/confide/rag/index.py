"""The chunks that fit a question: by their words, and by what they mean where they are embedded; then re-ranked.

All of it is in memory, and nothing is written. Knows no language model but by what is asked of it here.
"""

import logging
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from confide.extras import named_extras
from confide.packages.sealed.corpus import Chunk, UnlockedCorpus
from confide.packages.sealed.memory import MemoryFolder

_DEPTH: Final = 100
"""Places of each ranking that are fused."""
_SMOOTHING: Final = 60
"""k of reciprocal rank fusion, as its authors set it."""
_RERANKED: Final = 20
"""Chunks that are re-ranked, unless more are asked for: a model reads each with the question."""
_MAX_WORDS: Final = 128
"""Of a question: each costs time that grows with the corpus."""
_UNSPACED: Final = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
"""Kana and Han: written without spaces, so each character stands for a word."""
_WORD: Final = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


@dataclass(frozen=True)
class Hit:
    """A chunk that was found. place: in the corpus, from 0. score: at most 1, see `Index.search`."""

    place: int
    chunk: Chunk
    score: float


class Embedder(Protocol):
    """Makes vectors of Euclidean length 1 that are near each other where texts mean the like."""

    @property
    def dimensions(self) -> int:
        """Of each vector."""
        ...

    def cosines(self, question: str, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of a question with each of these vectors, shape [rows]. vectors: as `of_documents` makes them."""
        ...

    def of_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The vectors of texts, shape [texts, dimensions]."""
        ...


class Reranker(Protocol):
    """Reads a question and texts together."""

    def scores(self, question: str, texts: Sequence[str]) -> Sequence[float]:
        """How well each text answers it, between 0 and 1."""
        ...


@dataclass(frozen=True)
class Meaning:
    """What chunks are compared by besides words. vectors: of each, shape [chunks, dimensions], each of length 1.

    digest: of the embedder, in hexadecimal, where it is part of a corpus.
    """

    vectors: NDArray[np.float32]
    embedder: Embedder
    digest: str = ""


class Index:
    """A corpus, ready to be asked. Safe for several threads.

    By words it is BM25 (as Lucene computes it, k1 = 1.5, b = 0.75). By meaning it is the cosine of embeddings, of every
    chunk. Where there are both, their rankings are fused: see `fused`.
    """

    def __init__(
        self, chunks: Sequence[Chunk], meaning: Meaning | None = None, reranker: Reranker | None = None
    ) -> None:
        with named_extras():
            from bm25s import BM25
        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it has itself tell every step
        self.chunks = tuple(chunks)
        self.meaning, self.reranker = meaning, reranker
        # What has no words gets one that no question has, for the library divides by the mean length.
        numbers = {"": 0}
        texts = [[numbers.setdefault(word, len(numbers)) for word in words(chunk.text)] or [0] for chunk in chunks]
        self._numbers = numbers
        self._bm25 = BM25(method="lucene", k1=1.5, b=0.75)
        self._bm25.index((texts, numbers), create_empty_token=False, show_progress=False)

    @classmethod
    def of(cls, corpus: UnlockedCorpus) -> Self:
        """The index over a corpus, with the models in it. Raises what `UnlockedCorpus` does, and ModelNotSupported."""
        manifest, chunks = corpus.manifest, corpus.chunks()
        meaning, reranker = None, None
        if manifest.has_models:
            with named_extras():
                from confide.models import encoders
        if (embedded := manifest.embedded) is not None:
            with MemoryFolder(corpus.model(embedded)) as folder:
                embedder = encoders.Embedder.load(folder)
            embedder.require_dimensions(embedded.dimensions)
            meaning = Meaning(corpus.vectors(embedded), embedder, embedded.model_digest)
        if manifest.reranker is not None:
            with MemoryFolder(corpus.model(manifest.reranker)) as folder:
                reranker = encoders.Reranker.load(folder)
        return cls(chunks, meaning, reranker)

    def search(self, question: str, most: int) -> list[Hit]:
        """The best chunks, the best one first, at most so many.

        By words alone, a chunk without a word of the question is no match, of a question's words the first 128 count
        that the corpus has, and the score is BM25's as a share of the best chunk's. With meaning, it is the fused one
        as such a share; with a re-ranker, what that gives to the best 20, or as many as are asked for. EngineFault
        where a model fails.
        """
        depth = max(most, _DEPTH)
        ranked = self._by_words(question, depth)
        if self.meaning is not None:
            ranked = fused([[place for place, _ in ranked], self._by_meaning(self.meaning, question, depth)])
        if self.reranker is not None:
            places = [place for place, _ in ranked[: max(most, _RERANKED)]]
            scores = self.reranker.scores(question, [self.chunks[place].text for place in places])
            ranked = sorted(zip(places, scores, strict=True), key=lambda pair: pair[1], reverse=True)
            return [Hit(place, self.chunks[place], score) for place, score in ranked[:most]]
        return [Hit(place, self.chunks[place], score / ranked[0][1]) for place, score in ranked[:most]]

    def _by_words(self, question: str, most: int) -> list[tuple[int, float]]:
        """Places and scores, the best one first."""
        asked = dict.fromkeys(words(question))
        known = [self._numbers[word] for word in asked if word in self._numbers][:_MAX_WORDS]
        if not known:
            return []
        scores = self._bm25.get_scores_from_ids(known)
        return [(place, float(scores[place])) for place in _best(scores, most) if scores[place] > 0]

    def _by_meaning(self, meaning: Meaning, question: str, most: int) -> list[int]:
        """Places, the best one first."""
        return _best(meaning.embedder.cosines(question, meaning.vectors), most)


def fused(rankings: Iterable[Sequence[int]]) -> list[tuple[int, float]]:
    """Places and scores of several rankings as one, the best place first; of equal ones that of the first ranking.

    Reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009): a place's score is the sum over rankings of
    1 / (60 + its rank, from 1).
    """
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, place in enumerate(ranking, start=1):
            scores[place] = scores.get(place, 0.0) + 1 / (_SMOOTHING + rank)
    return sorted(scores.items(), key=lambda pair: pair[1], reverse=True)


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

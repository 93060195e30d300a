"""What is found for a question, by words, by embeddings and by both."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from confide.packages.sealed.corpus import Chunk
from confide.rag.index import Index, Meaning, fused, words

TEXTS = (
    "The tide rises twice a day.",
    "Bakers rise early, twice a week.",
    "Die Gezeiten: zweimal täglich steigt das Wasser.",
    "潮の満ち引きは月の引力による。",
    "!!!",
)
CHUNKS = [Chunk(f"{number}.txt", None, text) for number, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def index() -> Index:
    return Index(CHUNKS)


def places(index: Index, question: str, most: int = 10) -> list[int]:
    return [hit.place for hit in index.search(question, most)]


def test_rare_words_count_for_more_and_strangers_do_not_match(index: Index) -> None:
    assert places(index, "when does the tide rise twice?") == [0, 1]
    assert places(index, "TÄGLICH") == [2]
    assert places(index, "月") == [3]
    for nothing in ("", "!!!", "volcano", "\ud800"):
        assert places(index, nothing) == []


def test_a_hit_is_its_chunk_and_the_first_has_the_score_one(index: Index) -> None:
    [first, second] = index.search("tide twice", 10)
    assert first.chunk == CHUNKS[0]
    assert first.score == 1 > second.score > 0
    assert places(index, "tide twice", most=1) == [0]


def test_words_are_compared_in_one_spelling() -> None:
    assert words("Ｔｉｄｅ STRAẞE") == ["tide", "strasse"]
    assert words("潮の満ち ab") == ["潮", "の", "満", "ち", "ab"]


def test_equal_scores_come_in_the_order_of_the_corpus() -> None:
    index = Index([Chunk("a.txt", None, "same words")] * 300)
    assert places(index, "words", 150) == list(range(150))


def test_a_question_costs_no_more_than_its_words_may() -> None:
    index = Index([Chunk("a.txt", None, f"w{number}") for number in range(1000)])
    found = index.search(" ".join(f"w{number}" for number in range(1000)), 1000)
    assert len(found) == 128


def test_a_corpus_without_words_is_found_by_nothing() -> None:
    assert Index([Chunk("a.txt", None, "!!!")]).search("!!! word", 5) == []


class Directions:
    """An embedder that knows which way a text points, by its first letter alone."""

    def of_question(self, text: str) -> NDArray[np.float32]:
        angle = np.float32(ord(text[0]) - ord("a")) / 10
        return np.array([np.cos(angle), np.sin(angle)], np.float32)

    def cosines(self, question: str, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        return vectors @ self.of_question(question)


def by_meaning(texts: Sequence[str]) -> Index:
    chunks = [Chunk("a.txt", None, text) for text in texts]
    vectors = np.stack([Directions().of_question(text) for text in texts])
    return Index(chunks, Meaning(vectors, Directions()))


def test_a_chunk_without_a_word_of_the_question_is_found_by_what_it_means() -> None:
    index = by_meaning(["h far", "b near", "a word"])
    assert places(index, "a question") == [2, 1, 0]
    assert places(index, "bah") == [1, 2, 0]
    assert places(index, "bah", most=2) == [1, 2]


def test_words_and_meaning_have_an_equal_say() -> None:
    """Of three chunks each ranking has another first, and both the same second, which comes first."""
    index = by_meaning(["d tide tide", "c tide", "a rise"])
    assert places(Index(index.chunks), "b tide") == [0, 1]
    assert places(index, "b tide") == [1, 0, 2]
    [first, second, _] = index.search("b tide", 9)
    assert first.score == 1 > second.score > 0


def test_ranks_are_fused_as_their_formula_says() -> None:
    places = fused([[7, 8], [8, 9]])
    assert places == [(8, 1 / 62 + 1 / 61), (7, 1 / 61), (9, 1 / 62)]
    assert fused([[3, 1], [1, 3]]) == [(3, 1 / 61 + 1 / 62), (1, 1 / 62 + 1 / 61)]
    assert fused([]) == []


class Lengths:
    """A re-ranker that likes short texts, and notes how many it had to read."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def scores(self, question: str, texts: Sequence[str]) -> list[float]:
        self.read.append(len(texts))
        return [1 / len(text) for text in texts]


def test_a_reranker_has_the_last_word_on_the_best() -> None:
    reranker = Lengths()
    texts = ["word " * count for count in range(1, 41)]
    index = Index([Chunk("a.txt", None, text) for text in texts], reranker=reranker)
    [first, second] = index.search("word", 2)
    assert (first.place, first.score) == (min(reranked(index)), 1 / len(texts[first.place]))
    assert first.score > second.score
    assert len(index.search("word", 30)) == 30
    assert index.search("volcano", 30) == []
    assert reranker.read == [20, 30, 0]


def reranked(index: Index) -> list[int]:
    return places(Index(index.chunks), "word", 20)

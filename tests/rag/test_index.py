"""What is found for a question, by words, by embeddings and by both."""

import pytest

from confide.packages.sealed.corpus import Chunk
from confide.rag.index import Index, words

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

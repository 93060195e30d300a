"""Chunks: nothing is lost, nothing is too long, and cuts fall where a reader would make them."""

from hypothesis import given, settings
from hypothesis import strategies as st

from confide.packages.sealed.corpus import Chunk
from confide.rag.chunks import cut
from confide.rag.documents import Page


def texts(text: str, characters: int = 20) -> list[str]:
    return [chunk.text for chunk in cut("a.txt", [Page(None, text)], characters)]


def test_whole_paragraphs_stay_together_as_far_as_they_fit() -> None:
    assert texts("one\n\ntwo\n \n\nthree three\n\nfour") == ["one\n\ntwo", "three three\n\nfour"]


def test_long_paragraphs_are_cut_after_sentences_then_words_then_anywhere() -> None:
    assert texts("It rises. It falls. Twice a day, here.") == ["It rises. It falls.", "Twice a day, here."]
    assert texts("one two three four five six") == ["one two three four", "five six"]
    assert texts("x" * 45) == ["x" * 20, "x" * 20, "x" * 5]


def test_chunks_keep_to_their_page_and_say_which_it_is() -> None:
    pages = [Page(1, "one"), Page(2, " "), Page(3, "three")]
    assert list(cut("a.pdf", pages)) == [Chunk("a.pdf", 1, "one"), Chunk("a.pdf", 3, "three")]


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet="ab. \n\t!'\"。", max_size=300), st.integers(1, 30))
def test_nothing_is_lost_but_space_and_nothing_is_too_long(text: str, characters: int) -> None:
    found = texts(text, characters)
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(1 <= len(one) <= characters and one.strip() == one for one in found)


def test_the_time_it_takes_grows_with_the_length_alone() -> None:
    """Of texts that are all sentence ends, all spaces, or neither; a quadratic cut would take hours."""
    for text in ("." * (1 << 18), ". " * (1 << 17), "a" + " " * (1 << 18) + "a", "\n \t" * (1 << 16), "x" * (1 << 18)):
        assert "".join("".join(texts(text, 1600)).split()) == "".join(text.split())

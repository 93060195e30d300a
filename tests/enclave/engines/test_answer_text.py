"""Text from tokens: what a reader sees while it streams."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from confide.enclave.engines.answer_text import AnswerText
from confide.models.source import DEMO_FOLDER

TOKENIZER = Tokenizer.from_file(str(DEMO_FOLDER / "tokenizer.json"))


def stream(text: str, *stop: str) -> tuple[list[str], AnswerText]:
    """The parts of a text that comes token by token, until a stop text is complete."""
    answer, parts = AnswerText(TOKENIZER, TOKENIZER.encode("Said").ids, stop), []
    for token in TOKENIZER.encode(text).ids:
        parts.append(answer.add(token))
        if answer.stopped:
            break
    return parts, answer


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd")))
def test_parts_are_whole_characters_and_make_up_the_text(text: str) -> None:
    parts, answer = stream(text)
    assert "".join(parts) + answer.rest() == text
    assert "\ufffd" not in "".join(parts)


def test_a_character_waits_for_its_last_byte() -> None:
    parts, _ = stream("日本")
    assert len(parts) > 2
    assert [part for part in parts if part] == ["日", "本"]


def test_an_answer_that_ends_within_a_character_leaves_it_out() -> None:
    answer = AnswerText(TOKENIZER, [], ())
    parts = [answer.add(token) for token in TOKENIZER.encode("a日").ids[:-1]]
    assert "".join(parts) + answer.rest() == "a"


@settings(max_examples=60, deadline=None)
@given(st.text("ab ", max_size=30), st.lists(st.text("ab ", min_size=1, max_size=6), max_size=3))
def test_an_answer_is_what_comes_before_the_first_stop_text(text: str, stop: list[str]) -> None:
    parts, answer = stream(text, *stop)
    found = [text.index(one) for one in stop if one in text]
    assert answer.stopped == bool(found)
    shown = "".join(parts)
    if not found:
        assert shown + answer.rest() == text
    elif len(stop) == 1:
        assert shown == text[: found[0]]
    assert not any(one in shown for one in stop)


@pytest.mark.parametrize("text", ["wolf and the fo", "the fox an", "the fox"])
def test_what_could_still_become_a_stop_text_waits(text: str) -> None:
    parts, answer = stream(text, "the fox and the cat")
    assert "".join(parts) == text[: text.index("the fo")]
    assert answer.rest() == text[text.index("the fo") :]
    assert answer.rest() == ""

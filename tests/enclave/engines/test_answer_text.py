"""Text from tokens: what a reader sees while it streams."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.scripted import byte_fallback, byte_level
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


BYTE_LEVEL, BYTE_FALLBACK = byte_level("<end>"), byte_fallback()
FALLBACK_IDS = BYTE_FALLBACK.get_vocab()


def answered(tokenizer: Tokenizer, prompt: list[int], answer: list[int], *stop: str) -> str:
    """A whole answer from its parts."""
    text = AnswerText(tokenizer, prompt, stop)
    return "".join([text.add(token) for token in answer]) + text.rest()


def whole(tokenizer: Tokenizer, before: list[int], answer: list[int]) -> str:
    """What the library makes of an answer after a token that it cannot run into."""
    return tokenizer.decode([*before, *answer])[len(tokenizer.decode(before)) :]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(0, BYTE_FALLBACK.get_vocab_size() - 1), max_size=20), st.sampled_from(["b", "a b", "é", ""])
)
def test_any_sequence_of_byte_fallback_is_what_the_library_makes_of_it(answer: list[int], prompt: str) -> None:
    asked = BYTE_FALLBACK.encode(prompt).ids
    before = [token for token in asked if not BYTE_FALLBACK.id_to_token(token).startswith("<")][-1:]
    last = FALLBACK_IDS["c"]  # ends a run of bytes, so that none is left out as unfinished
    assert answered(BYTE_FALLBACK, asked, [*answer, last]) == whole(BYTE_FALLBACK, before, [*answer, last])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size() - 1), max_size=20))
def test_any_sequence_of_bytes_is_what_the_library_makes_of_it(answer: list[int]) -> None:
    last = BYTE_LEVEL.get_vocab()["c"]
    assert answered(BYTE_LEVEL, [5], [*answer, last]) == BYTE_LEVEL.decode([*answer, last])


@settings(max_examples=300, deadline=None)
@given(
    st.text(alphabet=st.characters(exclude_categories=["Cs"])),
    st.text(alphabet=st.characters(exclude_categories=["Cs"])),
    st.sampled_from([TOKENIZER, BYTE_LEVEL, BYTE_FALLBACK]),
)
def test_all_of_unicode_comes_back_after_any_prompt(prompt: str, text: str, tokenizer: Tokenizer) -> None:
    asked = tokenizer.encode(prompt).ids
    assert answered(tokenizer, asked, tokenizer.encode(f"x{text}y").ids).lstrip(" ") == f"x{text}y"


@pytest.mark.parametrize("tokenizer", [TOKENIZER, BYTE_LEVEL, BYTE_FALLBACK])
@pytest.mark.parametrize("prompt", ["caf\ufffd", "caf\ufffd\ufffd", "\ufffd", "a\n", "é"])
def test_a_prompt_is_no_part_of_its_answer(tokenizer: Tokenizer, prompt: str) -> None:
    assert answered(tokenizer, tokenizer.encode(prompt).ids, tokenizer.encode("x").ids[-1:]) == "x"


def test_a_run_of_bytes_waits_for_its_end_and_what_is_unfinished_is_left_out() -> None:
    newline, lead, letter = (FALLBACK_IDS[token] for token in ("<0x0A>", "<0xF0>", "b"))
    text = AnswerText(BYTE_FALLBACK, [letter], ())
    assert [text.add(token) for token in (newline, lead, letter)] == ["", "", "\ufffd\ufffdb"]
    assert answered(BYTE_FALLBACK, [letter], [newline, lead]) == "\n"
    assert answered(BYTE_FALLBACK, [letter], [newline]) == "\n"


@pytest.mark.parametrize("stop", ["<end>", "<end>b", "a<end>"])
def test_special_tokens_are_stop_texts_and_are_never_shown(stop: str) -> None:
    end, a, b = (BYTE_LEVEL.get_vocab()[token] for token in ("<end>", "a", "b"))
    text = AnswerText(BYTE_LEVEL, [], (stop,))
    shown = "".join([text.add(token) for token in (b, a, end, b)])
    assert text.stopped
    assert shown == ("b" if stop.startswith("a") else "ba")
    assert answered(BYTE_LEVEL, [], [a, end, a], stop if stop != "a<end>" and stop != "<end>" else "never") == "aa"


def test_a_special_token_that_no_stop_text_holds_parts_nothing() -> None:
    end, a, b = (BYTE_LEVEL.get_vocab()[token] for token in ("<end>", "a", "b"))
    text = AnswerText(BYTE_LEVEL, [], ("ab",))
    assert [text.add(token) for token in (a, end, b)] == ["", "", ""]
    assert text.stopped

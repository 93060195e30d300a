from collections.abc import Generator
from contextlib import suppress

import pytest

from confide.client.conversation import Conversation
from confide.errors import ServerBusy

SYSTEM = {"role": "system", "content": "Be brief."}


def echo(messages: list[dict[str, str]]) -> Generator[str, None, None]:
    yield from messages[-1]["content"]


def test_each_question_comes_with_what_was_said_before() -> None:
    asked: list[list[dict[str, str]]] = []

    def ask(messages: list[dict[str, str]]) -> Generator[str, None, None]:
        asked.append(messages)
        yield from echo(messages)

    conversation = Conversation("Be brief.")
    assert "".join(conversation.say("one", ask)) == "one"
    assert "".join(conversation.say("two", ask)) == "two"
    assert asked[0] == [SYSTEM, {"role": "user", "content": "one"}]
    assert asked[1] == [
        *asked[0],
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "two"},
    ]
    assert len(conversation.messages) == 5
    conversation.clear()
    assert conversation.messages == [SYSTEM]


def test_a_stopped_answer_stays_as_far_as_it_came() -> None:
    conversation, stopped = Conversation(), []

    def ask(messages: list[dict[str, str]]) -> Generator[str, None, None]:
        try:
            yield from "abcdef"
        finally:
            stopped.append(True)

    pieces = conversation.say("go", ask)
    assert next(pieces) + next(pieces) == "ab"
    with suppress(KeyboardInterrupt):
        pieces.throw(KeyboardInterrupt())
    assert stopped == [True]
    assert [turn["content"] for turn in conversation.messages] == ["go", "ab"]


@pytest.mark.parametrize("pieces", [0, 2])
def test_of_a_failed_answer_nothing_stays(pieces: int) -> None:
    def ask(_: list[dict[str, str]]) -> Generator[str, None, None]:
        yield from "abc"[:pieces]
        raise ServerBusy("Later.")

    conversation = Conversation()
    assert list(conversation.say("hello", echo)) == list("hello")
    with pytest.raises(ServerBusy):
        list(conversation.say("secret", ask))
    assert [turn["content"] for turn in conversation.messages] == ["hello", "hello"]
    assert "hello" not in repr(conversation)

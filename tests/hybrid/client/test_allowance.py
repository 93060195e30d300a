"""What the server says of the licence at the greeting: a text it does not cover is refused before anything is sent."""

import logging
import time

import pytest
import torch

from confide.errors import BudgetExhausted, DisclosureLimit
from confide.hybrid import wire
from confide.hybrid.client.padding import Padding
from confide.models.split import SplitSummary

from .conftest import Open
from .fake import FakeServer

PROMPT = torch.tensor([[5, 6, 7]])
NEEDED = 16 + 15
"""Of a prompt padded to 16 tokens and an answer of 16, of which the last is not computed with."""


def allowance(**limits: int) -> wire.Allowance:
    return wire.Allowance(**limits)  # type: ignore[arg-type]


@pytest.mark.parametrize(("limit", "error"), [("tokens_left", BudgetExhausted), ("answers_left", DisclosureLimit)])
def test_a_text_beyond_the_licence_is_refused_before_anything_is_sent(
    parts: SplitSummary, server: FakeServer, open_shell: Open, limit: str, error: type[Exception]
) -> None:
    server.allowance = allowance(**{limit: NEEDED - 1})
    model = open_shell(parts, server, padding=Padding(16, 16))
    with pytest.raises(error, match=f"has {NEEDED - 1} tokens left.*up to {NEEDED} "):
        model.generate(PROMPT, max_new_tokens=16, do_sample=False)
    assert server.frames == []


def test_what_was_asked_for_since_the_greeting_counts(
    parts: SplitSummary, server: FakeServer, open_shell: Open
) -> None:
    server.allowance = allowance(tokens_left=2 * NEEDED - 1, answers_left=10_000)
    model = open_shell(parts, server, padding=Padding(16, 16))
    model.generate(PROMPT, max_new_tokens=16, do_sample=False)
    asked = max(sum(frame.count for frame in server.frames if frame.group == group) for group in range(4))
    assert asked == NEEDED
    server.frames.clear()
    with pytest.raises(BudgetExhausted, match=f"has {NEEDED - 1} tokens left"):
        model.generate(PROMPT, max_new_tokens=16, do_sample=False)
    assert server.frames == []


def test_a_repeated_request_counts_once(parts: SplitSummary, server: FakeServer, open_shell: Open) -> None:
    server.allowance = allowance(tokens_left=NEEDED + 5)
    model = open_shell(parts, server, padding=Padding(16, 16))
    server.before = lambda message: None if message.p0 else server.forget()
    model.generate(PROMPT, max_new_tokens=16, do_sample=False)
    with pytest.raises(BudgetExhausted, match="has 5 tokens left"):
        model.generate(PROMPT, max_new_tokens=16, do_sample=False)


def test_a_batch_needs_as_many_times_as_much(parts: SplitSummary, server: FakeServer, open_shell: Open) -> None:
    server.allowance = allowance(tokens_left=2 * NEEDED - 1)
    model = open_shell(parts, server, padding=Padding(16, 16))
    with pytest.raises(BudgetExhausted, match=f"up to {2 * NEEDED} "):
        model.generate(PROMPT.repeat(2, 1), max_new_tokens=16, do_sample=False)


def test_little_left_and_an_end_near_are_said_once(
    parts: SplitSummary, server: FakeServer, open_shell: Open, caplog: pytest.LogCaptureFixture
) -> None:
    server.allowance = allowance(tokens_left=2 * NEEDED, expires=int(time.time()) + 86_400)
    model = open_shell(parts, server, padding=Padding(16, 16))
    with caplog.at_level(logging.WARNING):
        model.product.require_allowed(NEEDED)
        assert [record.message for record in caplog.records] == [
            "The licence ends in 1.0 days; ask the model's owner for more time."
        ]
        model.product.require_allowed(NEEDED + 1)
        model.product.require_allowed(NEEDED + 1)
    assert len(caplog.records) == 2
    assert f"about {NEEDED - 1} tokens left" in caplog.records[1].message


def test_without_limits_nothing_is_said(
    parts: SplitSummary, server: FakeServer, open_shell: Open, caplog: pytest.LogCaptureFixture
) -> None:
    model = open_shell(parts, server)
    with caplog.at_level(logging.WARNING):
        model.product.require_allowed(1 << 40)
    assert caplog.records == []

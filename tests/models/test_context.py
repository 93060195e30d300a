"""Prompts and answers that are longer than a model's context."""

import pytest
from transformers import BloomConfig, GPT2Config

from confide.errors import PromptTooLong
from confide.models.context import longest_context, require_room


@pytest.mark.parametrize(("prompt", "answer", "said"), [(64, 1, "shorten"), (600, 1, "shorten"), (60, 5, "most 4 new")])
def test_what_does_not_fit_is_refused_with_what_would(prompt: int, answer: int, said: str) -> None:
    with pytest.raises(PromptTooLong, match=said):
        require_room(GPT2Config(n_positions=64), prompt, answer)


def test_what_fits_and_what_nothing_limits() -> None:
    require_room(GPT2Config(n_positions=64), 60, 4)
    assert longest_context(BloomConfig()) is None
    require_room(BloomConfig(), 10**6, 10**6)

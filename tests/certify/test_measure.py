"""Scores of tiny models with known answers."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from confide.attest.scores import Counts, Metric
from confide.certify.measure import Asked, measure
from confide.certify.tasks import Continuation, Item, Passage, Question, Task
from confide.errors import EvaluationError, InvalidTask
from confide.evaluate.statistics import wilson

VOCABULARY = 32
A, B = 1, 2


class Letters:
    """A token for each letter of a to z. bos: set before every text, as Llama's tokenizer does."""

    def __init__(self, *, bos: bool = False) -> None:
        self.bos_token_id = 30 if bos else None
        self._before = [30] if bos else []

    def __call__(self, text: str, add_special_tokens: bool = True, verbose: bool = True) -> dict[str, list[int]]:
        tokens = [ord(letter) - ord("a") + 1 for letter in text]
        return {"input_ids": self._before + tokens if add_special_tokens else tokens}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    """Goes on from any token with the one after it, and is rather certain of that."""
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=16, n_embd=VOCABULARY, n_layer=0, n_head=1, tie_word_embeddings=False
    )
    made = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        made.transformer.wte.weight.copy_(torch.eye(VOCABULARY))
        made.transformer.wpe.weight.zero_()
        made.lm_head.weight.copy_(torch.roll(torch.eye(VOCABULARY), 1, 0))
    return made


def task(metric: Metric, items: Sequence[Item], context: int | None = None) -> Task:
    return Task("letters", metric, context, tuple(items), "00" * 32)


def measured(model: PreTrainedModel, made: Task, **options: Any) -> Any:
    return measure(made, Asked.stock(model, Letters(**options)))  # type: ignore[arg-type]


def test_perplexity_is_of_every_text_in_windows(model: PreTrainedModel) -> None:
    found = measured(model, task(Metric.PERPLEXITY, [Passage("abcdefgh"), Passage("zyx")], 4))
    ids = [[1, 2, 3, 4], [5, 6, 7, 8], [26, 25, 24]]
    with torch.inference_mode():
        losses = [(float(model(torch.tensor([one]), labels=torch.tensor([one])).loss), len(one) - 1) for one in ids]
    expected = math.exp(sum(loss * count for loss, count in losses) / sum(count for _, count in losses))
    assert found.score.value == float(f"{expected:.6g}")
    assert found.score.low <= found.score.value <= found.score.high
    assert (found.counts, found.sampling.context) == (Counts(2, 8, "tokens"), 4)
    assert "bootstrap over windows" in found.score.interval
    assert str(found.sampling.seed) in found.score.interval


def test_accuracy_is_of_the_likeliest_choice(model: PreTrainedModel) -> None:
    right = Question("a", ("zz", "bc", "q"), 1)
    wrong = Question("a", ("bc", "zz"), 1)
    tied = Question("a", ("b", "b"), 0)
    found = measured(model, task(Metric.ACCURACY, [right, wrong, tied, right]))
    expected = wilson(3, 4)
    assert (found.score.value, found.score.low) == (0.75, float(f"{expected.low:.6g}"))
    assert found.counts == Counts(4, 4, "items")
    assert "Wilson" in found.score.interval


def test_a_longer_choice_is_weighed_as_a_whole(model: PreTrainedModel) -> None:
    """By the sum over its tokens: "bcd" is what the model would say, and each of its tokens takes something away."""
    found = measured(model, task(Metric.ACCURACY, [Question("a", ("bcd", "b"), 1)] * 2))
    assert found.score.value == 1


def test_agreement_is_of_tokens_that_are_ranked_first(model: PreTrainedModel) -> None:
    found = measured(model, task(Metric.AGREEMENT, [Continuation("a", "bcd"), Continuation("a", "bqrz")]))
    assert found.score.value == float(f"{(3 + 1 + 0 + 1 + 0) / 7:.6g}")
    assert found.counts == Counts(2, 7, "tokens")


def test_a_tokenizer_s_first_token_comes_before_every_prompt(model: PreTrainedModel) -> None:
    asked: list[list[int]] = []
    hook = model.register_forward_pre_hook(lambda _module, inputs: asked.append(inputs[0][0].tolist()))
    try:
        measured(model, task(Metric.ACCURACY, [Question("a", ("b", "c"), 0)] * 2), bos=True)
    finally:
        hook.remove()
    assert asked[:2] == [[30, A, B], [30, A, 3]]


@pytest.mark.parametrize(
    "made",
    [
        task(Metric.ACCURACY, [Question("a", ("b", "c"), 0)]),
        task(Metric.ACCURACY, [Question("a" * 10, ("b" * 7, "c"), 0)] * 2),
        task(Metric.AGREEMENT, [Continuation("a", "bc")]),
        task(Metric.AGREEMENT, [Continuation("abc", "bcd")] * 2, 5),
        task(Metric.PERPLEXITY, [Passage("ab")]),
        task(Metric.PERPLEXITY, [Passage("ab")] * 2, 17),
    ],
    ids=range(6),
)
def test_what_has_no_interval_or_no_room_is_refused(model: PreTrainedModel, made: Task) -> None:
    with pytest.raises((InvalidTask, EvaluationError)):
        measured(model, made)


def test_wilson_s_interval() -> None:
    """Values of Newcombe, Two-sided confidence intervals for the single proportion, 1998, table I, method 3."""
    for successes, trials, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        found = wilson(successes, trials)
        assert (round(found.low, 4), round(found.high, 4)) == (low, high)
    assert wilson(20, 20).high == 1
    for successes, trials in ((-1, 2), (3, 2), (0, 0)):
        with pytest.raises(ValueError, match="trials"):
            wilson(successes, trials)

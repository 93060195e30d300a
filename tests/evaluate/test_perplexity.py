"""Perplexity equals what transformers computes, and models are compared window by window."""

import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from confide.errors import EvaluationError
from confide.evaluate.perplexity import WindowLoss, compare_perplexity, measure_loss, window_ratios


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    torch.manual_seed(1)
    return GPT2LMHeadModel(GPT2Config(vocab_size=97, n_positions=512, n_embd=16, n_layer=1, n_head=2)).eval()


def window(seed: int, length: int) -> tuple[int, ...]:
    return tuple(torch.randint(0, 97, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


@pytest.mark.parametrize("length", [2, 257, 258, 512])
def test_the_loss_is_transformers_own(model: PreTrainedModel, length: int) -> None:
    ids = window(length, length)
    with torch.inference_mode():
        expected = float(model(torch.tensor([ids]), labels=torch.tensor([ids])).loss)
    loss = measure_loss(model, ids)
    assert loss.tokens == length - 1
    assert loss.nll / loss.tokens == pytest.approx(expected, rel=1e-5)


def test_the_digest_tells_the_last_bit_of_a_logit(model: PreTrainedModel) -> None:
    ids = window(1, 64)
    before = measure_loss(model, ids)
    assert measure_loss(model, ids) == before
    weight = model.transformer.ln_f.bias.data
    old = float(weight[0])
    try:
        weight[0] = old + 1e-5
        after = measure_loss(model, ids)
    finally:
        weight[0] = old
    assert after.nll == pytest.approx(before.nll, rel=1e-4)
    assert after.logits != before.logits


def test_logits_that_are_not_finite_are_refused(model: PreTrainedModel) -> None:
    broken = GPT2LMHeadModel(model.config)
    broken.transformer.ln_f.bias.data[0] = float("nan")
    with pytest.raises(EvaluationError, match="not all finite"):
        measure_loss(broken, window(1, 8))


def losses(*nll: float) -> list[WindowLoss]:
    return [WindowLoss(each, 10, "") for each in nll]


def test_the_comparison_is_of_means_per_token() -> None:
    reference, other = losses(20, 30, 25), losses(21, 31, 26)
    found = compare_perplexity(other, reference)
    assert found.perplexity.value == pytest.approx(math.exp(78 / 30))
    assert found.ratio.value == pytest.approx(math.exp(0.1))
    # Every window is worse by the same factor, so the paired interval has no width.
    assert found.ratio.low == pytest.approx(found.ratio.high)
    assert found.perplexity.low < found.perplexity.value < found.perplexity.high
    assert window_ratios(other, reference) == pytest.approx([math.exp(0.1)] * 3)


def test_windows_must_be_the_same() -> None:
    with pytest.raises(ValueError, match="zip"):
        compare_perplexity(losses(1, 2, 3), losses(1, 2))

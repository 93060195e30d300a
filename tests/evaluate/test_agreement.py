"""Agreement and accuracy are those that counting by hand gives."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from confide.errors import EvaluationError
from confide.evaluate.agreement import MeasureChoices, WindowChoices, compare_choices

KS = (1, 3, 10)
IDS = tuple(torch.randint(0, 97, (40,), generator=torch.Generator().manual_seed(2)).tolist())


def tiny(seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(vocab_size=97, n_positions=64, n_embd=16, n_layer=1, n_head=2)).eval()


@torch.inference_mode()
def ranking(model: PreTrainedModel) -> list[list[int]]:
    """For each position but the last, all tokens, the likeliest first."""
    return model(torch.tensor([IDS])).logits[0, :-1].argsort(dim=-1, descending=True).tolist()


def test_counts_are_those_of_full_rankings() -> None:
    reference, other = tiny(1), tiny(2)
    measure = MeasureChoices(KS)
    of_reference = measure(reference, IDS)
    found = measure(other, IDS, of_reference)
    first = [row[0] for row in ranking(reference)]
    ranked = ranking(other)
    assert found.tokens == len(ranked) == 39
    assert found.agreeing == tuple(sum(a in row[:k] for a, row in zip(first, ranked, strict=True)) for k in KS)
    assert found.correct == tuple(sum(a in row[:k] for a, row in zip(IDS[1:], ranked, strict=True)) for k in KS)
    assert 0 < found.agreeing[-1] < 39
    assert of_reference.first_choices == tuple(first)
    assert found.first_choices is None


def test_a_model_agrees_with_itself() -> None:
    measure = MeasureChoices(KS)
    reference = measure(tiny(1), IDS)
    assert reference.agreeing == measure(tiny(1), IDS, reference).agreeing == (39, 39, 39)


def test_more_choices_than_tokens_are_refused() -> None:
    with pytest.raises(EvaluationError, match="97"):
        MeasureChoices((1, 98))(tiny(1), IDS)


def test_shares_are_over_all_tokens_and_the_change_is_paired() -> None:
    reference = [WindowChoices(10, (10,), (4,), ""), WindowChoices(30, (30,), (12,), "")]
    other = [WindowChoices(10, (9,), (4,), ""), WindowChoices(30, (28,), (9,), "")]
    found = compare_choices(other, reference, (5,))[5]
    assert found.agreement.value == pytest.approx(37 / 40)
    assert found.accuracy.value == pytest.approx(13 / 40)
    assert found.accuracy_change.value == pytest.approx(-3 / 40)
    assert (found.accuracy_change.low, found.accuracy_change.high) == pytest.approx((-0.1, 0.0))

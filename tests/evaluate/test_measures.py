import numpy as np
import torch

from confide.evaluate.agreement import top1_agreement
from confide.evaluate.timing import TokenClock
from confide.evaluate.uniformity import uniformity_p_value


def test_uniform_numbers_pass_and_others_fail() -> None:
    numbers = np.random.default_rng(1).integers(0, 2**30, 200_000).astype(np.int32)
    assert uniformity_p_value([numbers[:1000], numbers[1000:]], 30) > 0.001
    assert uniformity_p_value([numbers // 2], 30) < 1e-12
    assert uniformity_p_value([np.minimum(numbers, 2**30 - 2**22)], 30) < 1e-6


def test_the_p_value_is_itself_uniform() -> None:
    generator = np.random.default_rng(2)
    values = [uniformity_p_value([generator.integers(0, 2**30, 20_000).astype(np.int32)], 30) for _ in range(200)]
    assert 0.4 < np.mean(values) < 0.6
    assert min(values) < 0.1
    assert max(values) > 0.9


class Counting:
    """A model that always ranks the next number first."""

    device = torch.device("cpu")

    def __call__(self, ids: torch.Tensor) -> object:
        logits = torch.nn.functional.one_hot(ids + 1, 20).float()
        return type("Output", (), {"logits": logits})()


def test_agreement_counts_generated_tokens_only() -> None:
    assert top1_agreement(Counting(), [9, 3, 4, 5, 6], 2) == 1  # type: ignore[arg-type]
    assert top1_agreement(Counting(), [9, 3, 4, 9, 10], 2) == 2 / 3  # type: ignore[arg-type]


def test_the_clock_leaves_the_prompt_out() -> None:
    counted: list[int] = []
    clock = TokenClock(on_token=counted.append)
    for _ in range(4):
        clock.put(torch.tensor([1]))
    clock.end()
    assert counted == [1, 2, 3]
    assert 0 <= clock.ms_per_token < 100

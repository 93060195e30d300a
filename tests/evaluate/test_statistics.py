"""Intervals hold what they should, as often as they should."""

import math

import numpy as np
import pytest

from confide.evaluate.statistics import Estimate, mean_per_token


def test_the_value_is_the_mean_over_tokens_not_over_windows() -> None:
    assert mean_per_token([10.0, 2.0], [10, 1]).value == pytest.approx(12 / 11)


def test_the_same_results_have_the_same_interval() -> None:
    sums, tokens = list(range(30)), [7] * 30
    assert mean_per_token(sums, tokens) == mean_per_token(sums, tokens)


def _windows(generator: np.random.Generator) -> tuple[list[float], list[int]]:
    """Sums of 30 windows of 20 to 60 tokens with a true mean of 3, tokens of one window sharing a shift."""
    tokens = generator.integers(20, 61, 30)
    means = 3 + generator.normal(0, 0.5, 30) + generator.normal(0, 1, 30) / np.sqrt(tokens)
    return list(means * tokens), list(tokens)


def test_19_of_20_intervals_hold_the_true_mean() -> None:
    generator = np.random.default_rng(3)
    estimates = [mean_per_token(*_windows(generator)) for _ in range(300)]
    held = sum(of.low <= 3 <= of.high for of in estimates)
    assert 0.90 <= held / len(estimates) <= 0.98
    assert all(of.low < of.value < of.high for of in estimates)


def test_tokens_that_agree_together_make_the_interval_wider_than_wilsons() -> None:
    generator = np.random.default_rng(4)
    hits = np.where(generator.random(100) < 0.8, 50, 10)  # of 50 tokens each
    of = mean_per_token(list(hits), [50] * 100)
    wilson = 2 * 1.96 * math.sqrt(of.value * (1 - of.value) / 5000)
    assert of.high - of.low > 2 * wilson


def test_pairing_takes_out_what_windows_have_in_common() -> None:
    generator = np.random.default_rng(5)
    sums, tokens = _windows(generator)
    worse = [total + 0.01 * count + generator.normal(0, 0.01) for total, count in zip(sums, tokens, strict=True)]
    alone = mean_per_token(worse, tokens)
    paired = mean_per_token([b - a for a, b in zip(sums, worse, strict=True)], tokens)
    assert paired.value == pytest.approx(0.01, rel=0.03)
    assert paired.high - paired.low < (alone.high - alone.low) / 100


def test_exp_takes_all_three() -> None:
    assert Estimate(0.0, -1.0, 1.0).exp() == Estimate(1.0, math.exp(-1), math.e)


@pytest.mark.parametrize(("sums", "tokens"), [([1.0], [2]), ([1.0, 2.0], [1, 2, 3])])
def test_one_window_or_unequal_numbers_are_refused(sums: list[float], tokens: list[int]) -> None:
    with pytest.raises(ValueError, match="two or more windows"):
        mean_per_token(sums, tokens)

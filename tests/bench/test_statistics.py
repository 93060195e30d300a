"""What is far out is dropped and counted, and a ratio's interval holds the true ratio as often as it says."""

import tracemalloc

import numpy as np
import pytest

from confide.bench import statistics
from confide.bench.results import MAX_RUNS
from confide.bench.statistics import Sample


def test_what_is_more_than_three_deviations_out_is_dropped_and_counted() -> None:
    usual = [1.0 + 0.01 * (index % 5) for index in range(49)]
    sample = Sample.of([*usual, 9.0])
    assert (sample.values, sample.dropped) == (tuple(usual), 1)
    assert sample.mean().value == pytest.approx(np.mean(usual))


def test_both_sides_are_dropped_and_equal_runs_are_not() -> None:
    values = [1.0] * 40 + [5.0, -3.0]
    assert Sample.of(values).dropped == 2
    assert Sample.of([2.0] * 20) == Sample((2.0,) * 20, 0)
    assert Sample.of([2.0]) == Sample((2.0,), 0)


def test_of_ten_runs_none_is_far_enough_out() -> None:
    assert Sample.of([1.0] * 9 + [1e9]).dropped == 0
    assert Sample.of([1.0] * 10 + [1e9]).dropped == 1


def test_an_overhead_is_the_ratio_of_means_less_one() -> None:
    slow, fast = Sample((2.2, 2.2, 2.2), 0), Sample((2.0, 2.0, 2.0), 0)
    found = slow.over(fast)
    assert found.value == found.low == found.high == pytest.approx(0.1)


def test_intervals_hold_the_truth_about_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 500)
    generator = np.random.default_rng(5)
    held = 0
    for _ in range(60):
        slow, fast = (Sample(tuple(generator.normal(mean, 0.1, 30)), 0) for mean in (1.1, 1.0))
        found = slow.over(fast)
        held += found.low <= 0.1 <= found.high
    assert 51 <= held < 60


def test_the_most_runs_of_a_file_take_little_memory() -> None:
    many = Sample(tuple(np.random.default_rng(1).normal(2, 0.1, MAX_RUNS)), 0)
    tracemalloc.start()
    many.over(many)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 4 << 20

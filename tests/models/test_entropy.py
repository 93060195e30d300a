"""What solves a row: counted by what its weights can be, not by eight bits each."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from confide.packages.entropy import row_entropy


def test_a_ternary_row_is_solved_long_before_eight_bits_a_weight() -> None:
    """Whoever counts 8 bits a weight says 20 % where the layer is known."""
    weights = np.random.default_rng(1).integers(-1, 2, (8, 4096), dtype=np.int8)
    assert row_entropy(weights) == pytest.approx(4096 * math.log2(3), rel=0.01)


def test_uniform_weights_have_almost_eight_bits() -> None:
    weights = np.random.default_rng(1).integers(-127, 128, (4, 1 << 16), dtype=np.int8)
    assert row_entropy(weights) == pytest.approx((1 << 16) * math.log2(255), rel=0.01)


def test_the_row_with_the_least_counts() -> None:
    weights = np.random.default_rng(1).integers(-127, 128, (6000, 2048), dtype=np.int8)
    expected = row_entropy(weights)
    weights[4711] = 0
    weights[4711, :4] = [1, -1, 1, 2]
    counts = np.array([2044, 2, 1, 1]) / 2048
    least = -2048 * float((counts * np.log2(counts)).sum())
    assert least < expected / 100
    assert row_entropy(weights) == pytest.approx(least)


def test_a_skewed_row_counts_by_how_often_its_values_come() -> None:
    weights = np.zeros((1, 1024), np.int8)
    weights[0, :16] = 127
    assert row_entropy(weights) < 0.02 * 1024 * math.log2(255) < 1024 * math.log2(255)


def test_constant_rows_hold_nothing_to_solve_for() -> None:
    weights = np.random.default_rng(1).integers(-127, 128, (4, 512), dtype=np.int8)
    expected = row_entropy(weights)
    assert (
        row_entropy(np.concatenate([weights, np.zeros((2, 512), np.int8), np.full((1, 512), 3, np.int8)])) == expected
    )
    assert row_entropy(np.zeros((3, 512), np.int8)) == 8 * 512


@given(
    arrays.arrays(np.int8, arrays.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(-127, 127))
)
def test_it_is_what_a_plain_count_gives(weights: np.ndarray) -> None:
    least = 8.0 * weights.shape[1]
    for row in weights.tolist():
        counts = [row.count(value) / len(row) for value in set(row)]
        if len(counts) > 1:
            empirical = -sum(share * math.log2(share) for share in counts)
            least = min(least, len(row) * min(empirical, math.log2(2 * max(map(abs, row)) + 1)))
    assert row_entropy(weights) == pytest.approx(max(1.0, least))

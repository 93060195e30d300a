"""Ring products against schoolbook products of Python integers, and the margin with which rounding is safe."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.rlwe.ring import inverse, product, transform

from .helpers import DEGREE, negacyclic

MARGIN = 1e-3
"""Rounding needs an error below 0.5. For uniform words it is about 2e-5."""
EXTREME_MARGIN = 0.03
"""Words in step with the ternary factor put all their energy into one frequency."""

EXTREME = {
    "lowest word": torch.full((DEGREE,), -(2**31), dtype=torch.int64),
    "highest word": torch.full((DEGREE,), 2**31 - 1, dtype=torch.int64),
    "unsigned words": torch.full((DEGREE,), 2**32 - 1, dtype=torch.int64),
    "alternating": torch.tensor([-(2**31), 2**31 - 1]).repeat(DEGREE // 2),
    "half and half": torch.tensor([2**31 - 1, -(2**31)]).repeat_interleave(DEGREE // 2),
}
TERNARY = {
    "ones": torch.ones(DEGREE, dtype=torch.int8),
    "minus ones": -torch.ones(DEGREE, dtype=torch.int8),
    "alternating": torch.tensor([1, -1], dtype=torch.int8).repeat(DEGREE // 2),
    "random": torch.randint(-1, 2, (DEGREE,), dtype=torch.int8, generator=torch.Generator().manual_seed(1)),
}


def schoolbook(left: list[int], right: list[int]) -> list[int]:
    """The definition: X^N = -1."""
    degree = len(left)
    result = [0] * degree
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            result[(i + j) % degree] += a * b if i + j < degree else -a * b
    return result


@st.composite
def factors(draw):
    degree = 2 ** draw(st.integers(1, 5))
    words = draw(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=degree, max_size=degree))
    small = draw(st.lists(st.integers(-1, 1), min_size=degree, max_size=degree))
    return words, small


@given(factors())
def test_product_is_the_schoolbook_product(factors):
    words, small = factors
    result = product(transform(torch.tensor(words)), transform(torch.tensor(small)))
    assert result.tolist() == schoolbook(words, small)


@given(factors())
def test_the_long_integer_reference_is_the_schoolbook_product(factors):
    words, small = factors
    assert negacyclic(words, small) == schoolbook(words, small)


@pytest.mark.parametrize("small", TERNARY)
@pytest.mark.parametrize("words", EXTREME)
def test_extreme_products_are_exact_with_a_margin(words, small):
    left, right = EXTREME[words], TERNARY[small]
    coefficients = inverse(transform(left) * transform(right))
    expected = torch.tensor(negacyclic(left.tolist(), right.tolist()))
    assert (coefficients - expected).abs().max() < EXTREME_MARGIN
    assert torch.equal(product(transform(left), transform(right)), expected)


@settings(max_examples=10)
@given(st.integers(0, 2**32))
def test_random_products_at_full_degree_are_exact_with_a_margin(seed):
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(-(2**31), 2**31, (DEGREE,), generator=generator)
    small = torch.randint(-1, 2, (DEGREE,), generator=generator)
    coefficients = inverse(transform(words) * transform(small))
    expected = torch.tensor(negacyclic(words.tolist(), small.tolist()))
    assert (coefficients - expected).abs().max() < MARGIN


def test_products_broadcast():
    generator = torch.Generator().manual_seed(2)
    words = torch.randint(-(2**31), 2**31, (3, 2, 64), generator=generator)
    small = torch.randint(-1, 2, (64,), generator=generator)
    result = product(transform(words), transform(small))
    rows = [negacyclic(row.tolist(), small.tolist()) for row in words.reshape(6, 64)]
    assert result.reshape(6, 64).tolist() == rows


def test_the_ring_wraps_with_a_minus_sign():
    x = torch.zeros(8)
    x[1] = 1
    power = torch.zeros(8, dtype=torch.int64)
    power[7] = 5
    assert product(transform(x), transform(power)).tolist() == [-5] + [0] * 7


def test_transform_leaves_its_input_alone():
    polynomial = torch.arange(16, dtype=torch.float64)
    transform(polynomial)
    assert torch.equal(polynomial, torch.arange(16, dtype=torch.float64))

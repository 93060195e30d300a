import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import InvalidActivation
from confide.models.quantize import largest_weight, quantize_activations, quantize_weights

SIZES = st.integers(1, 9)
MAGNITUDES = st.sampled_from([1e-42, 1e-20, 1e-6, 1.0, 3e4, 1e37])


@settings(deadline=None)
@given(rows=SIZES, columns=SIZES, magnitude=MAGNITUDES, seed=st.integers(0, 99))
def test_weights_are_within_half_a_scale(rows: int, columns: int, magnitude: float, seed: int) -> None:
    weights = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * magnitude
    integers, scale = quantize_weights(weights)
    assert (integers.dtype, scale.dtype, scale.shape) == (torch.int8, torch.float32, (rows,))
    assert integers.min() >= -127
    if magnitude > 1e-40:  # below, the scale itself has too few bits left
        assert (integers.abs().amax(1) == 127).all()
        error = (integers.double() * scale.double()[:, None] - weights.double()).abs()
        assert (error <= 0.5001 * scale.double()[:, None]).all()


@settings(deadline=None)
@given(bits=st.integers(2, 7), seed=st.integers(0, 99))
def test_fewer_bits_fit_and_clip_where_that_is_better(bits: int, seed: int) -> None:
    weights = torch.randn(6, 64, generator=torch.Generator().manual_seed(seed))
    largest = largest_weight(bits)

    def error(integers: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return (integers.float() * scale[:, None] - weights).square().sum(1)

    widest = weights.abs().amax(1) / largest
    unclipped = error((weights / widest[:, None]).round(), widest)
    integers, scale = quantize_weights(weights, bits)
    assert integers.abs().max() <= largest
    assert (error(integers, scale) <= unclipped * 1.0001).all()
    assert bits > 3 or (scale < widest).any()


def test_a_row_of_zeros_has_scale_one() -> None:
    integers, scale = quantize_weights(torch.tensor([[0.0, 0.0], [1.0, -2.0]]))
    assert scale[0] == 1
    assert integers.tolist() == [[0, 0], [64, -127]]
    integers, scale = quantize_weights(torch.zeros(1, 2), 4)
    assert (scale.tolist(), integers.tolist()) == ([1], [[0, 0]])


@settings(deadline=None)
@given(tokens=SIZES, columns=SIZES, bits=st.integers(8, 15), magnitude=MAGNITUDES, seed=st.integers(0, 99))
def test_activations_fill_their_range(tokens: int, columns: int, bits: int, magnitude: float, seed: int) -> None:
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(seed)) * magnitude
    x[0] = 0
    integers, scale = quantize_activations(x, bits)
    limit = 2 ** (bits - 1) - 1
    assert (integers.dtype, scale.dtype, scale.shape) == (torch.int32, torch.float32, (tokens, 1))
    assert integers[0].abs().max() == 0
    assert integers.abs().max() <= limit
    if magnitude > 1e-7:
        assert (integers[1:].abs().amax(1) == limit).all()
    assert ((integers * scale.double() - x.double()).abs() <= 0.51 * scale.double()).all()


def test_each_token_has_its_own_scale() -> None:
    alone, _ = quantize_activations(torch.tensor([[1.0, -0.5]]), 14)
    beside, _ = quantize_activations(torch.tensor([[1.0, -0.5], [1e6, 1.0]]), 14)
    assert torch.equal(alone[0], beside[0])


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(tokens: int, bad: float) -> None:
    x = torch.ones(tokens, 4)
    x[-1, 2] = bad
    with pytest.raises(InvalidActivation):
        quantize_activations(x, 14)

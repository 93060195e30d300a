"""Attention in integers: what it computes, against the same steps in exact arithmetic and against float."""

from fractions import Fraction

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

from confide.attention.quantized import HeadWeights, Magnitudes, QuantizedHeads, Quantizer
from confide.errors import ConfideError

from .test_heads import floats


@pytest.fixture(scope="module")
def weights() -> HeadWeights:
    torch.manual_seed(5)
    attention = GPT2Attention(GPT2Config(n_embd=24, n_head=3), layer_idx=0)
    torch.nn.init.normal_(attention.c_attn.weight, std=0.2)
    torch.nn.init.normal_(attention.c_attn.bias, std=0.2)
    return HeadWeights.of(attention, [0, 2])


def texts(count: int) -> list[Tensor]:
    return list(torch.randn(count, 10, 24, generator=torch.Generator().manual_seed(7)))


def error(weights: HeadWeights, bits: int) -> float:
    heads = QuantizedHeads(weights, Magnitudes.calibrate(weights, texts(20)), bits)
    return max(float((heads(x) - floats(weights, x)).abs().max()) for x in texts(20))


def test_a_bit_more_halves_the_error(weights: HeadWeights) -> None:
    errors = {bits: error(weights, bits) for bits in (5, 7, 9, 11)}
    assert errors[11] < 0.02
    for bits in (5, 7, 9):
        assert 2 < errors[bits] / errors[bits + 2] < 8


def test_levels_are_symmetric_and_the_range_is_kept() -> None:
    quantizer = Quantizer.covering(2.0, 4)
    found = quantizer.quantize(torch.tensor([-9.0, -2.0, -0.15, 0.0, 0.15, 1.0, 2.0, 9.0]))
    assert found.tolist() == [-7, -7, -1, 0, 1, 4, 7, 7]
    assert quantizer.scale * 7 == 2
    assert Quantizer.covering(0.0, 4).quantize(torch.zeros(1)).tolist() == [0]


def test_products_are_exact(weights: HeadWeights) -> None:
    """Context vectors are whole multiples of the product of two scales, as sums of integer products are."""
    magnitudes = Magnitudes.calibrate(weights, texts(20))
    context = QuantizedHeads(weights, magnitudes, 6)(texts(1)[0])
    levels = 2**5 - 1
    step = Fraction(magnitudes.qkv[2]) / levels / levels
    counts = [Fraction(value) / step for value in context.flatten().tolist()]
    assert max(abs(count - round(count)) for count in counts) < Fraction(1, 10**9)
    assert max(abs(count) for count in counts) > levels


def test_attention_is_causal(weights: HeadWeights) -> None:
    heads = QuantizedHeads(weights, Magnitudes.calibrate(weights, texts(20)), 8)
    x = texts(1)[0]
    changed = x.clone()
    changed[6:] = 0
    assert torch.equal(heads(x)[:6], heads(changed)[:6])
    assert not torch.equal(heads(x)[6:], heads(changed)[6:])


def test_heads_are_computed_side_by_side(weights: HeadWeights) -> None:
    second = HeadWeights(weights.projection[:, 1:], weights.bias[:, 1:], weights.scaling)
    magnitudes = Magnitudes.calibrate(weights, texts(20))
    # One scale is for all weights, so the alone head must not have a smaller largest one.
    if float(second.projection.abs().max()) < float(weights.projection.abs().max()):
        second = HeadWeights(weights.projection[:, :1], weights.bias[:, :1], weights.scaling)
        columns = slice(0, 8)
    else:
        columns = slice(8, 16)
    x = texts(1)[0]
    assert torch.equal(QuantizedHeads(weights, magnitudes, 8)(x)[:, columns], QuantizedHeads(second, magnitudes, 8)(x))


@pytest.mark.parametrize("bits", [1, 12])
def test_bits_beyond_the_study_are_refused(weights: HeadWeights, bits: int) -> None:
    with pytest.raises(ConfideError, match="2 to 11"):
        QuantizedHeads(weights, Magnitudes.calibrate(weights, texts(1)), bits)


def test_calibration_needs_texts(weights: HeadWeights) -> None:
    with pytest.raises(ConfideError, match="calibrate"):
        Magnitudes.calibrate(weights, [])

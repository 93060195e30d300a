"""From floating point to the integers that everything exact rests on: int8 weights, wider activations.

Both are symmetric: a float is its integer times a scale, one scale per output channel or per token.
"""

import functools
import math

import torch
from torch import Tensor

from confide.errors import InvalidActivation
from confide.models.gptq import gptq_round

MAX_WEIGHT_BITS = 8
MIN_WEIGHT_BITS = 2
SMALLEST_SCALE = 1e-35
"""Added to every activation scale, so that a token of zeros has one; far below what any real token adds to."""
CLIPPINGS = 40
"""How many smaller scales are tried for a row of few bits, down to half of the one that clips nothing."""


def largest_weight(bits: int) -> int:
    """The largest magnitude of a symmetric integer of so many bits: 127 for 8."""
    return int(2 ** (bits - 1) - 1)


def quantize_weights(
    weights: Tensor, bits: int = MAX_WEIGHT_BITS, moments: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """weights (m, n) float -> int8 (m, n) and float32 scale (m,), with weights = int8 * scale to half a scale.

    A row's largest magnitude becomes 2^(bits-1) - 1; a row of zeros has scale 1. A row that is not finite has a scale
    that is not finite either. Below 8 bits the largest weights of a row are clipped where that makes its squared error
    smaller.

    moments: float32 (n, n), the mean of x x^T over the layer's inputs x, see `calibration.collect`. Below 8 bits the
    weights are then rounded so that the product's error is small rather than each weight's: see `gptq_round`.
    """
    weights = weights.float()
    scale = weights.abs().amax(dim=1) / largest_weight(bits)
    scale = torch.where(scale == 0, 1.0, scale)
    if bits == MAX_WEIGHT_BITS:
        return _rounded(weights, scale, bits).to(torch.int8), scale
    scale = _best_scale(weights, scale, bits)
    if moments is None:
        return _rounded(weights, scale, bits).to(torch.int8), scale
    return gptq_round(weights, scale, largest_weight(bits), moments).to(torch.int8), scale


def _rounded(weights: Tensor, scale: Tensor, bits: int) -> Tensor:
    largest = largest_weight(bits)
    return (weights / scale[:, None]).round_().clamp_(-largest, largest)


def _best_scale(weights: Tensor, widest: Tensor, bits: int) -> Tensor:
    """For each row the scale, of a grid from `widest` to half of it, with the smallest squared error."""
    best, least = widest, torch.full_like(widest, torch.inf)
    for step in range(CLIPPINGS + 1):
        scale = widest * (1 - step / (2 * CLIPPINGS))
        error = (_rounded(weights, scale, bits) * scale[:, None] - weights).square_().sum(dim=1)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best


def quantize_activations(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """x (T, n) float -> int32 (T, n) with |int32| <= 2^(bits-1) - 1, and float32 scale (T, 1). T >= 1.

    Each token's largest magnitude becomes 2^(bits-1) - 1. Raises InvalidActivation where x is not finite.
    """
    # Decoding comes through here once for each layer group and token: every operation is a microsecond.
    limit = 2 ** (bits - 1) - 1
    scale = torch.add(_smallest_scale(x.device), x.abs().amax(-1, True), alpha=1 / limit)
    largest = scale if len(scale) == 1 else scale.max()
    if not math.isfinite(largest.item()):
        raise InvalidActivation(
            "An activation is infinite or not a number, so the model itself has failed; "
            "check the prompt's attention mask, and that the unquantized model works on it."
        )
    return (x / scale).round_().int(), scale


@functools.cache
def _smallest_scale(device: torch.device) -> Tensor:
    return torch.full((1, 1), SMALLEST_SCALE, device=device)

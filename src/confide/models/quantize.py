"""From floating point to the integers that everything exact rests on: int8 weights, wider activations.

Both are symmetric: a float is its integer times a scale, one scale per output channel or per token.
"""

import functools
import math

import torch
from torch import Tensor

from confide.errors import InvalidActivation

MAX_WEIGHT = 127
SMALLEST_SCALE = 1e-35
"""Added to every activation scale, so that a token of zeros has one; far below what any real token adds to."""


def quantize_weights(weights: Tensor) -> tuple[Tensor, Tensor]:
    """weights (m, n) float -> int8 (m, n) and float32 scale (m,), with weights = int8 * scale to half a scale.

    A row's largest magnitude becomes 127; a row of zeros has scale 1. A row that is not finite has a scale that is
    not finite either.
    """
    weights = weights.float()
    scale = weights.abs().amax(dim=1) / MAX_WEIGHT
    scale = torch.where(scale == 0, 1.0, scale)
    integers = (weights / scale[:, None]).round_().clamp_(-MAX_WEIGHT, MAX_WEIGHT)
    return integers.to(torch.int8), scale


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

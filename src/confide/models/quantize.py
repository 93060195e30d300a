"""Symmetric integers for weights and activations, with one scale a row."""

import torch
from torch import Tensor

from confide.errors import InvalidActivation


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A float matrix (m, n) -> int8 (m, n) in [-127, 127] and float32 scales (m,): weight ~ int8 * scale."""
    weight = weight.to(torch.float32)
    scale = weight.abs().amax(dim=1) / 127
    scale = torch.where(scale > 0, scale, 1.0)
    return (weight / scale[:, None]).round_().clamp_(-127, 127).to(torch.int8), scale


def quantize_activations(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Floats (tokens, n) -> int32 (tokens, n) with |value| <= 2^(bits-1) - 1, and float32 scales (tokens, 1).

    Dynamic: each token's largest magnitude sets its scale. InvalidActivation where x is not finite.
    """
    largest = 2 ** (bits - 1) - 1
    reach = torch.linalg.vector_norm(x, float("inf"), dim=-1, keepdim=True)
    if not reach.max().item() < float("inf"):  # also true for NaN
        raise InvalidActivation(
            "An activation is infinite or not a number, so it has no integer form; check the model and its inputs."
        )
    # The smallest normal number keeps a token of zeros at zero.
    scale = reach.div_(largest).clamp_min_(torch.finfo(torch.float32).tiny)
    return (x / scale).round_().to(torch.int32), scale

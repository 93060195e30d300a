"""The output head that stays with the client, in integers: a quarter of the bytes that float32 reads for each token.

Heads are large (a third of a small model) and used once a token, so their time is that of reading them. The integers
are the same whatever kernel takes the product, hence a run in the clear and a private one, or two machines, differ in
nothing.
"""

from typing import Final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from confide.models.quantize import quantize_activations, quantize_weights
from confide.rlwe.packed import PackedMatrix

ACTIVATION_BITS: Final = 14
"""Of what a head reads: two digits of seven bits, which every kernel takes, and next to nothing is lost."""
_DIGIT: Final = 7
_ROWS: Final = 8192
_OFFSET: Final = 1 << (ACTIVATION_BITS - 1)


class IntegerHead:
    """A linear layer's forward pass on int8 weights, one scale a row, and activations of 14 bits, one scale a token."""

    def __init__(self, weights: Tensor, bias: Tensor | None) -> None:
        """weights: float (rows, columns), copied. bias: (rows,)."""
        # In parts, for what quantizing takes beside weights is twice their size.
        parts = [quantize_weights(part) for part in weights.split(_ROWS)]
        integers = torch.cat([matrix for matrix, _ in parts])
        self._scale = torch.cat([scale for _, scale in parts])
        self._packed = PackedMatrix.of(integers)
        # Digits are of activations plus an offset, none of which is negative.
        self._taken_off = integers.sum(1, dtype=torch.float64) * _OFFSET
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """x (..., columns) -> float32 (..., rows). InvalidActivation where x is not finite."""
        integers, scale = quantize_activations(x.reshape(-1, x.shape[-1]), ACTIVATION_BITS)
        integers += _OFFSET
        digits = torch.stack([integers & ((1 << _DIGIT) - 1), integers >> _DIGIT]).to(torch.uint8)
        low, high = self._packed.sums(digits)
        exact = low.double().add_(high, alpha=1 << _DIGIT).sub_(self._taken_off)
        y: Tensor = exact.float().mul_(scale).mul_(self._scale)
        if self._bias is not None:
            y += self._bias
        return y.view(*x.shape[:-1], -1)


def quantize_head(model: PreTrainedModel) -> None:
    """Have a model's output head compute in integers, where it is a plain linear layer that is not protected.

    Its float weights stay, for the embedding that may share them and for whoever saves the model.
    """
    head = model.get_output_embeddings()
    if type(head) is nn.Linear and head.weight.device.type == "cpu":
        setattr(head, "forward", IntegerHead(head.weight.detach(), head.bias))  # noqa: B010 - a method for its stubs

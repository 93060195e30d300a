"""Linear layers that compute in integers: a quarter of the bytes that float32 reads, and what they read is the time.

The integers are the same whatever kernel takes the product, hence two machines, or a run in the clear and a private
one, differ in nothing. Needs a processor; what protects a layer is elsewhere.
"""

from typing import Final

import torch
from torch import Tensor, nn

from confide.models.linear import linear_weights, named_linear
from confide.models.quantize import quantize_activations, quantize_weights
from confide.rlwe.packed import PackedMatrix

ACTIVATION_BITS: Final = 14
"""Of what a layer reads: two digits of seven bits, which every kernel takes, and next to nothing is lost."""
_DIGIT: Final = 7
_ROWS: Final = 8192
_OFFSET: Final = 1 << (ACTIVATION_BITS - 1)


def integers_of(weights: Tensor) -> tuple[Tensor, Tensor]:
    """`quantize_weights` to eight bits, in parts: what it takes beside weights is twice their size."""
    parts = [quantize_weights(part) for part in weights.split(_ROWS)]
    return torch.cat([matrix for matrix, _ in parts]), torch.cat([scale for _, scale in parts])


class IntegerForward:
    """A linear layer's forward pass on int8 weights, one scale a row, and activations of 14 bits, one scale a token."""

    def __init__(self, integers: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        """integers: int8 (rows, columns), copied. scale: float32 (rows,). bias: (rows,)."""
        self._scale, self._bias = scale, bias
        self._packed = PackedMatrix.of(integers)
        # Digits are of activations plus an offset, none of which is negative.
        self._taken_off = integers.sum(1, dtype=torch.float64) * _OFFSET

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


class IntegerLinear(nn.Module):
    """A linear layer whose matrix is int8 `weight` (rows, columns), times float32 `weight_scale` (rows,).

    Both are there for whoever looks at what a model holds; products are taken with a copy in the kernel's own layout.
    """

    def __init__(self, weights: Tensor, bias: Tensor | None) -> None:
        """weights: float (rows, columns). bias: (rows,)."""
        super().__init__()
        integers, scale = integers_of(weights)
        self.register_buffer("weight", integers)
        self.register_buffer("weight_scale", scale)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))
        self._multiply = IntegerForward(integers, scale, bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., columns) -> float32 (..., rows). InvalidActivation where x is not finite."""
        return self._multiply(x)


def quantize_layers(model: nn.Module) -> None:
    """Have every linear layer of a model in float32 compute in integers. Embeddings stay, those of a tied head too."""
    for name, layer in named_linear(model).items():
        bias = getattr(layer, "bias", None)
        model.set_submodule(name, IntegerLinear(linear_weights(layer), None if bias is None else bias.detach()))

"""The layer that stands where a protected one was: it has scales and a bias, and asks someone for the product.

Who that is, a server or a local matrix, it does not know; hence a private run and a run in the clear differ in nothing
but that.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from confide.errors import InvalidPackage
from confide.models.linear import linear_shape
from confide.models.quantize import quantize_activations
from confide.packages.manifest import Group


class IntegerProduct(Protocol):
    """Something that multiplies by the int8 matrices of the layer groups."""

    def __call__(self, group: int, x: Tensor) -> Tensor:
        """x int32 (T, columns) -> W x int32 (T, rows), exact, for the group of this index in the layer table."""
        ...


class SharedProduct:
    """The product of one layer group, asked for once and handed to each of its layers.

    first: the group's index in the layer table. parts: it, or the groups that are parts of its columns, in order.
    """

    def __init__(self, product: IntegerProduct, first: int, parts: Sequence[Group]) -> None:
        self._product = product
        ends = [part.first_column + part.columns for part in parts]
        self._parts = [
            (first + place, slice(part.first_column, end))
            for place, (part, end) in enumerate(zip(parts, ends, strict=True))
        ]
        self._columns = ends[-1]
        self._bits = parts[0].activation_bits
        rows = [layer.rows for layer in parts[0].layers]
        starts = [sum(rows[:position]) for position in range(len(rows))]
        self._slices = [slice(start, start + count) for start, count in zip(starts, rows, strict=True)]
        # Input, result, and the layers that have not had theirs yet. Holding the input is what makes its identity
        # mean something: no later tensor can be the same object.
        self._kept: tuple[Tensor, Tensor, set[int]] | None = None

    def __call__(self, layer: int, x: Tensor) -> Tensor:
        """x (..., columns) -> float32 (T, rows of the layer): W x times the tokens' scales."""
        if len(self._slices) == 1:
            return self._compute(x)
        kept = self._kept
        if kept is None or kept[0] is not x or layer not in kept[2]:
            kept = self._kept = (x, self._compute(x), set(range(len(self._slices))))
        _, result, waiting = kept
        waiting.remove(layer)
        if not waiting:
            self._kept = None
        return result[:, self._slices[layer]]

    def _compute(self, x: Tensor) -> Tensor:
        integers, scale = quantize_activations(x.reshape(-1, self._columns), self._bits)
        first, *rest = self._parts
        result = self._product(first[0], integers[:, first[1]])
        for group, columns in rest:
            result += self._product(group, integers[:, columns])
        return result.float().mul_(scale)


class ProtectedLinear(nn.Module):
    """A linear layer without its matrix: y = W x scaled back, plus bias, in float32.

    layer: its position in the group that `shared` computes. weight_scale: float32 (rows,), empty at first.
    """

    weight_scale: Tensor
    bias: nn.Parameter | None

    def __init__(
        self, shared: SharedProduct, layer: int, rows: int, bias: nn.Parameter | None, device: torch.device | str
    ) -> None:
        super().__init__()
        self._shared = shared
        self._layer = layer
        self.register_buffer("weight_scale", torch.empty(rows, device=device))
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., columns) -> (..., rows)."""
        scaled = self._shared(self._layer, x)
        scale, bias = self.weight_scale, self.bias
        y = scaled * scale if bias is None else torch.addcmul(bias, scaled, scale)
        return y.view(*x.shape[:-1], scale.shape[0])


def protect_group(model: nn.Module, first: int, parts: Sequence[Group], product: IntegerProduct) -> None:
    """Put layers without matrices in the place of a group's linear ones; biases stay, scales are yet to come.

    first, parts: see `manifest.joined`. Raises InvalidPackage where the model has no such layers.
    """
    columns = sum(part.columns for part in parts)
    shared = SharedProduct(product, first, parts)
    for position, layer in enumerate(parts[0].layers):
        try:
            original = model.get_submodule(layer.name)
        except AttributeError:
            original = None
        if original is None or linear_shape(original) != (layer.rows, columns):
            raise InvalidPackage(
                f"The layer table names {layer.name} of {layer.rows} x {columns}, which the shell's model "
                "does not have; run `confide split` again."
            )
        device = next(model.parameters()).device
        protected = ProtectedLinear(shared, position, layer.rows, original._parameters["bias"], device)
        model.set_submodule(layer.name, protected, strict=True)

"""A model whose chosen linear layers have become int8 matrices that lie apart from it.

What multiplies by the matrices can be changed at any time; the model neither knows nor cares. This is what a split
writes to disk, and what runs in the clear or simulated before anything is written.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from confide.errors import InsecureParameters, ModelNotSupported
from confide.models.linear import forget_weights, linear_weights
from confide.models.package import Group, Layer
from confide.models.precision import Recipe
from confide.models.protected import IntegerProduct, protect_group
from confide.models.quantize import quantize_weights
from confide.models.roles import LayerGroup, find_layers, require_untied
from confide.models.server_package import row_norms
from confide.models.source import Source
from confide.rlwe.parameters import Parameters, Profile

OnProgress = Callable[[str, int, int], None]
"""Called with a layer group's name when it is done, the groups done so far, and the groups there are."""

Importance = Mapping[str, Tensor]
"""The mean square of each column of a layer's input, float32 (columns,), by the layer's full name."""


@dataclass(frozen=True)
class QuantizedGroup:
    """A group's line in the layer table, and its stacked matrix: int8 (rows, columns)."""

    group: Group
    weights: Tensor


class QuantizedModel:
    """A stock model, its chosen layers without matrices, and the matrices.

    model: runs once `use` gave it something to multiply with. total_parameters: of the model before.
    """

    def __init__(self, model: PreTrainedModel, profile: Profile) -> None:
        self.model = model
        self.profile = profile
        self.groups: list[QuantizedGroup] = []
        self.total_parameters: int = model.num_parameters()
        self._product: IntegerProduct | None = None

    @classmethod
    def load(
        cls,
        source: Source,
        *,
        protect: str = "all",
        recipe: Recipe | None = None,
        profile: Profile = Profile.PRIVATE_WEIGHTS,
        progress: OnProgress | None = None,
    ) -> Self:
        """Load a model and quantize it; a choice that cannot be is refused before anything is loaded.

        protect: see `ModelLayers.select`.
        """
        chosen = find_layers(source.config).select(protect)
        return cls.quantize(source.load_model(), chosen, recipe=recipe, profile=profile, progress=progress)

    @classmethod
    def quantize(
        cls,
        model: PreTrainedModel,
        chosen: Sequence[LayerGroup],
        *,
        recipe: Recipe | None = None,
        profile: Profile = Profile.PRIVATE_WEIGHTS,
        importance: Importance | None = None,
        progress: OnProgress | None = None,
    ) -> Self:
        """Take matrices out of a stock model, which is changed by that; each float one is let go of at once.

        importance: what a calibration found, for layers of few bits. Raises ModelNotSupported for weights that cannot
        be protected, InsecureParameters where a layer's rows are too long.
        """
        for group in chosen:
            for layer in group.layers:
                require_untied(model, layer)
        _use_cache(model)
        quantized = cls(model, profile)
        for done, group in enumerate(chosen, start=1):
            quantized._take(group, recipe or Recipe(), importance or {})
            if progress:
                progress(group.name, done, len(chosen))
        return quantized

    def _take(self, chosen: LayerGroup, recipe: Recipe, importance: Importance) -> None:
        parts = {name: self._quantize(name, recipe, importance.get(name)) for name in chosen.layers}
        weights = torch.cat([matrix for matrix, _ in parts.values()])
        most = min(recipe.precision(name).activation_bits for name in chosen.layers)
        layers = tuple(Layer(name, len(scale)) for name, (_, scale) in parts.items())
        group = _table_line(chosen.name, layers, weights, self.profile, most)
        protect_group(self.model, len(self.groups), group, self._multiply)
        for name, (_, scale) in parts.items():
            self.model.get_submodule(name).get_buffer("weight_scale").copy_(scale)
        self.groups.append(QuantizedGroup(group, weights))

    def _quantize(self, name: str, recipe: Recipe, importance: Tensor | None) -> tuple[Tensor, Tensor]:
        layer = self.model.get_submodule(name)
        bits = recipe.precision(name).weight_bits
        matrix, scale = quantize_weights(linear_weights(layer), bits, importance)
        if not torch.isfinite(scale).all():
            raise ModelNotSupported(f"The weights of {name} are not all finite; get an undamaged copy of the model.")
        forget_weights(layer)
        return matrix.contiguous(), scale

    @property
    def matrices(self) -> list[Tensor]:
        """The groups' stacked matrices, int8 (rows, columns), in order."""
        return [group.weights for group in self.groups]

    @property
    def protected_parameters(self) -> int:
        """Weights in the matrices."""
        return sum(weights.numel() for weights in self.matrices)

    def use(self, product: IntegerProduct) -> None:
        """Multiply with this from now on."""
        self._product = product

    def _multiply(self, group: int, x: Tensor) -> Tensor:
        if self._product is None:
            raise RuntimeError("A quantized model has nothing to multiply with before `use`.")
        return self._product(group, x)


def _use_cache(model: PreTrainedModel) -> None:
    """Have it keep a KV cache. MPT's checkpoints say no, and each token would send the whole text again."""
    model.config.use_cache = True
    if model.generation_config is not None:
        model.generation_config.use_cache = True


def _table_line(name: str, layers: tuple[Layer, ...], weights: Tensor, profile: Profile, most_bits: int) -> Group:
    """A group's line, with the widest activations, up to most_bits, whose products always fit."""
    rows, columns = weights.shape
    row_l1, row_l2 = row_norms(weights)
    try:
        parameters = Parameters.derive(
            profile, rows=rows, columns=columns, row_l1=row_l1, row_l2=row_l2, most_activation_bits=most_bits
        )
    except InsecureParameters as error:
        raise InsecureParameters(f"{name} cannot be protected. {error}") from error
    return Group(name, layers, columns, parameters.activation_bits, row_l1, row_l2)

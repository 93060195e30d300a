"""A model whose chosen linear layers have become int8 matrices that lie apart from it.

What multiplies by the matrices can be changed at any time; the model neither knows nor cares. This is what a split
writes to disk, and what runs in the clear or simulated before anything is written.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from confide.errors import ConfideError, InsecureParameters, ModelNotSupported
from confide.models.calibration import Moments, OnTokens, collect, cut
from confide.models.head import quantize_head
from confide.models.linear import forget_weights, linear_weights
from confide.models.precision import Recipe
from confide.models.protected import IntegerProduct, protect_group
from confide.models.quantize import MAX_WEIGHT_BITS, quantize_weights
from confide.models.roles import LayerGroup, find_layers, require_untied
from confide.models.source import Source
from confide.packages.entropy import row_entropy
from confide.packages.manifest import Group, Layer
from confide.packages.server_package import row_norms
from confide.rlwe.parameters import RING_DEGREE, Parameters, Profile

_PARTS = (1, 2, 4, 8, 16)
"""Into how many groups the columns of one are cut, at most."""

OnProgress = Callable[[str, int, int], None]
"""Called with a layer group's name when it is done, the groups done so far, and the groups there are."""


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
        texts: Sequence[Tensor] = (),
        progress: OnProgress | None = None,
    ) -> Self:
        """Load a model and quantize it; a choice that cannot be is refused before anything is loaded.

        protect: see `ModelLayers.select`. texts: token ids to calibrate on, see `calibrate`.
        """
        chosen = find_layers(source.config).select(protect)
        recipe = recipe or Recipe()
        model = source.load_model()
        moments = calibrate(model, chosen, recipe, texts) if texts else None
        return cls.quantize(model, chosen, recipe=recipe, profile=profile, moments=moments, progress=progress)

    @classmethod
    def quantize(
        cls,
        model: PreTrainedModel,
        chosen: Sequence[LayerGroup],
        *,
        recipe: Recipe | None = None,
        profile: Profile = Profile.PRIVATE_WEIGHTS,
        moments: Moments | None = None,
        progress: OnProgress | None = None,
    ) -> Self:
        """Take matrices out of a stock model, which is changed by that; each float one is let go of at once.

        moments: of the layers of less than 8 bits, see `calibration.collect`. Raises ModelNotSupported for weights that
        cannot be protected, InsecureParameters where a layer's rows are too long.
        """
        require_untied(model, (layer for group in chosen for layer in group.layers))
        _use_cache(model)
        quantized = cls(model, profile)
        for done, group in enumerate(chosen, start=1):
            quantized._take(group, recipe or Recipe(), moments or {})
            if progress:
                progress(group.name, done, len(chosen))
        quantize_head(model)
        return quantized

    def _take(self, chosen: LayerGroup, recipe: Recipe, moments: Moments) -> None:
        parts = {name: self._quantize(name, recipe, moments.get(name)) for name in chosen.layers}
        weights = torch.cat([matrix for matrix, _ in parts.values()])
        most = min(recipe.precision(name).activation_bits for name in chosen.layers)
        layers = tuple(Layer(name, len(scale)) for name, (_, scale) in parts.items())
        parts_of = _table_lines(chosen.name, layers, weights, self.profile, most)
        protect_group(self.model, len(self.groups), [part.group for part in parts_of], self._multiply)
        for name, (_, scale) in parts.items():
            self.model.get_submodule(name).get_buffer("weight_scale").copy_(scale)
        self.groups += parts_of

    def _quantize(self, name: str, recipe: Recipe, moments: Tensor | None) -> tuple[Tensor, Tensor]:
        layer = self.model.get_submodule(name)
        bits = recipe.precision(name).weight_bits
        matrix, scale = quantize_weights(linear_weights(layer), bits, moments)
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


def calibrate(
    model: PreTrainedModel,
    chosen: Sequence[LayerGroup],
    recipe: Recipe,
    texts: Iterable[Tensor],
    progress: OnTokens | None = None,
) -> Moments:
    """The moments of the groups that a recipe gives less than 8 bits; see `collect`. Long texts are run in pieces.

    ConfideError where there are none, for then there is nothing to gain.
    """
    few = [group for group in chosen if any(_has_few_bits(recipe, layer) for layer in group.layers)]
    if not few:
        raise ConfideError("No layer has less than 8 bits, where calibrating helps; give fewer bits, or no texts.")
    return collect(model, few, cut(model, texts), progress)


def _has_few_bits(recipe: Recipe, layer: str) -> bool:
    return recipe.precision(layer).weight_bits < MAX_WEIGHT_BITS


def _table_lines(
    name: str, layers: tuple[Layer, ...], weights: Tensor, profile: Profile, most_bits: int
) -> list[QuantizedGroup]:
    """A group's line, with the widest activations, up to most_bits, whose products always fit.

    Several lines, for parts of its columns, where its rows are too long for any plaintext modulus.
    """
    columns = weights.shape[1]
    for count in _PARTS:
        # Whole polynomials, so that parts cost no more inputs than they have.
        width = columns if count == 1 else -(-columns // (count * RING_DEGREE)) * RING_DEGREE
        parts = weights.split(width, dim=1)
        try:
            derived = [
                Parameters.derive(
                    profile, row_norms(part), rows=len(part), columns=part.shape[1], most_activation_bits=most_bits
                )
                for part in parts
            ]
        except InsecureParameters as error:
            if count == _PARTS[-1] or width <= RING_DEGREE:
                raise InsecureParameters(f"{name} cannot be protected. {error}") from error
            continue
        break
    bits = min(parameters.activation_bits for parameters in derived)
    return [
        QuantizedGroup(
            Group(
                name if not place else f"{name}.part{place + 1}",
                layers,
                part.shape[1],
                bits,
                parameters.plaintext_bits,
                row_entropy(part.numpy()),
                first_column=place * width,
            ),
            part.contiguous(),
        )
        for place, (part, parameters) in enumerate(zip(parts, derived, strict=True))
    ]

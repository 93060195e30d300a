"""The models that stand side by side: the stock one, and quantized ones made from it.

Each is loaded only when it is measured, and the stock model and a quantized one are never in memory together. A choice
of layers that cannot be is refused before anything is loaded.
"""

import functools
from collections.abc import Mapping, Sequence

from torch import Tensor
from transformers import PreTrainedModel

from confide.evaluate.run import Variant
from confide.hybrid.simulate import SimulatedProduct
from confide.models.calibration import Moments
from confide.models.clear import ClearProduct
from confide.models.precision import Recipe
from confide.models.quantized import QuantizedModel, calibrate
from confide.models.roles import LayerGroup, find_layers
from confide.models.source import Source

FP32 = "fp32"
CLEAR = "quantized"
SIMULATED = "simulated"


def compared_variants(source: Source, protect: str, recipe: Recipe, texts: Sequence[Tensor] = ()) -> list[Variant]:
    """fp32; the quantized model in the clear; and the same with the protocol's arithmetic, but no server.

    protect: see `ModelLayers.select`, errors included. texts: to calibrate on, see `calibrate`. The last two share
    their weights: loading one puts its product into the other too.
    """
    chosen = find_layers(source.config).select(protect)

    @functools.cache
    def quantized() -> QuantizedModel:
        model = source.load_model()
        moments = calibrate(model, chosen, recipe, texts) if texts else None
        return QuantizedModel.quantize(model, chosen, recipe=recipe, moments=moments)

    def clear() -> PreTrainedModel:
        quantized().use(ClearProduct(quantized().matrices))
        return quantized().model

    def simulated() -> PreTrainedModel:
        quantized().use(SimulatedProduct.of(quantized()))
        return quantized().model

    return [Variant(FP32, source.load_model), Variant(CLEAR, clear), Variant(SIMULATED, simulated)]


def swept_variants(
    source: Source, protect: str, recipes: Mapping[int, Recipe], texts: Sequence[Tensor] = ()
) -> tuple[Variant, dict[int, Variant]]:
    """fp32, and for each number of weight bits the quantized model in the clear with that recipe.

    texts: to calibrate on; that is done once for all, on the stock model.
    """
    chosen = find_layers(source.config).select(protect)
    calibration = _Calibration(source, chosen, recipes[min(recipes)], texts)
    by_bits = {
        bits: Variant(f"{bits} bits", functools.partial(_load_swept, source, chosen, recipe, calibration))
        for bits, recipe in recipes.items()
    }
    return Variant(FP32, source.load_model), by_bits


class _Calibration:
    """What is found out once for all recipes. Where it is sent to another process it is found out before."""

    def __init__(self, source: Source, chosen: Sequence[LayerGroup], recipe: Recipe, texts: Sequence[Tensor]) -> None:
        self._of = source, chosen, recipe, texts

    @functools.cached_property
    def moments(self) -> Moments | None:
        """None without texts."""
        source, chosen, recipe, texts = self._of
        return calibrate(source.load_model(), chosen, recipe, texts) if texts else None

    def __getstate__(self) -> dict[str, Moments | None]:
        return {"moments": self.moments}


def _load_swept(
    source: Source, chosen: Sequence[LayerGroup], recipe: Recipe, calibration: _Calibration
) -> PreTrainedModel:
    quantized = QuantizedModel.quantize(source.load_model(), chosen, recipe=recipe, moments=calibration.moments)
    quantized.use(ClearProduct(quantized.matrices))
    return quantized.model

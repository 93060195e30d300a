"""The models of the study on how many bits attention needs: the stock one, and ones with some heads in integers."""

import functools
from collections.abc import Sequence

from transformers import PreTrainedModel

from confide.attention.heads import Heads, ReplacedHeads, attention_inputs, attention_module, chosen_heads
from confide.attention.quantized import HeadWeights, Magnitudes, QuantizedHeads
from confide.evaluate.run import Variant
from confide.evaluate.variants import FP32
from confide.evaluate.windows import Windows
from confide.models.source import Source


def quantized_attention_variants(
    source: Source, layers: Sequence[int], choices: dict[str, Heads], bits: Sequence[int], calibration: Windows
) -> tuple[Variant, dict[tuple[str, int], Variant]]:
    """fp32, and by name of the choice of heads and bits, the model with these heads of `layers` in integers.

    calibration: texts on which the float model's activations give the scales. Raises ModelNotSupported for what is not
    a GPT-2, and for layers or heads that it lacks.
    """
    model = source.load_model()
    modules = {layer: attention_module(model, layer) for layer in layers}
    inputs = attention_inputs(model, modules, calibration.ids)
    heads = {name: chosen_heads(source.config, choice) for name, choice in choices.items()}

    @functools.cache
    def calibrated(name: str, layer: int) -> tuple[HeadWeights, Magnitudes]:
        weights = HeadWeights.of(modules[layer], heads[name])
        return weights, Magnitudes.calibrate(weights, inputs[layer])

    def quantized(name: str, count: int) -> PreTrainedModel:
        changed = source.load_model()
        for layer in layers:
            compute = QuantizedHeads(*calibrated(name, layer), count)
            ReplacedHeads(attention_module(changed, layer), heads[name], compute)
        return changed

    by_choice = {
        (name, count): Variant(f"{name}, {count} bits", functools.partial(quantized, name, count))
        for name in choices
        for count in bits
    }
    return Variant(FP32, source.load_model), by_choice

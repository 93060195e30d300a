import pytest
import torch

from confide.errors import ConfideError, ModelNotSupported
from confide.models.clear import ClearProduct, load_clear
from confide.models.precision import Precision, Recipe
from confide.models.quantized import QuantizedModel
from confide.models.roles import find_layers
from confide.models.source import Source
from confide.models.split import SplitSummary, write_split
from owners import OWNER

IDS = torch.arange(12)[None]


def test_it_runs_as_its_split_does(source: Source, halves: SplitSummary) -> None:
    quantized = QuantizedModel.load(source)
    quantized.use(ClearProduct(quantized.matrices))
    with torch.inference_mode():
        assert torch.equal(quantized.model(IDS).logits, load_clear(halves.client, halves.server)(IDS).logits)


def test_bits_by_layer(tiny_llama: Source, tmp_path_factory: pytest.TempPathFactory) -> None:
    recipe = Recipe.parse(["mlp=4"], ["o_proj=9"])
    quantized = QuantizedModel.load(tiny_llama, recipe=recipe)
    for part in quantized.groups:
        mlp = "mlp" in part.group.name
        assert part.weights.abs().max() == (7 if mlp else 127)
        assert (part.group.activation_bits == 9) == ("o_proj" in part.group.name)
    summary = write_split(quantized, None, tmp_path_factory.mktemp("bits") / "out", owner=OWNER, hint=False)
    quantized.use(ClearProduct(quantized.matrices))
    with torch.inference_mode():
        assert torch.equal(quantized.model(IDS).logits, load_clear(summary.client, summary.server)(IDS).logits)


def test_fewer_bits_are_further_from_the_float_model(tiny_gpt2: Source) -> None:
    stock = tiny_gpt2.load_model()(IDS).logits.detach()

    def distance(bits: int) -> float:
        quantized = QuantizedModel.load(tiny_gpt2, recipe=Recipe(Precision(bits)))
        quantized.use(ClearProduct(quantized.matrices))
        return float((quantized.model(IDS).logits.detach() - stock).norm())

    errors = [distance(bits) for bits in (8, 6, 4, 2)]
    assert errors == sorted(errors)
    assert errors[0] < errors[-1] / 10


def test_a_choice_that_cannot_be_is_refused_before_the_model_is_loaded(tiny_gpt2: Source) -> None:
    gone = Source("gone", "/nowhere", tiny_gpt2.config)
    with pytest.raises(ConfideError, match="No layer's name"):
        QuantizedModel.load(gone, protect="nothing")


def test_a_head_that_turns_out_to_be_tied_is_refused(tiny_llama: Source) -> None:
    """The configuration says that it is not."""
    model = tiny_llama.load_model()
    model.lm_head.weight = model.model.embed_tokens.weight
    with pytest.raises(ModelNotSupported, match="lm_head"):
        QuantizedModel.quantize(model, find_layers(tiny_llama.config).select("all,lm_head"))


def test_it_needs_something_to_multiply_with(tiny_gpt2: Source) -> None:
    with pytest.raises(RuntimeError, match="use"):
        QuantizedModel.load(tiny_gpt2).model(IDS)

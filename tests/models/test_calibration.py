from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from confide.errors import ConfideError, InvalidActivation
from confide.models.calibration import Moments, collect
from confide.models.clear import ClearProduct
from confide.models.gptq import gptq_round
from confide.models.precision import Precision, Recipe
from confide.models.quantize import largest_weight, quantize_weights
from confide.models.quantized import QuantizedModel
from confide.models.roles import LayerGroup, find_layers
from confide.models.source import Source, open_model

WINDOW = 256


def random_ids(texts: int, tokens: int, seed: int) -> Tensor:
    return torch.randint(64, (texts, tokens), generator=torch.Generator().manual_seed(seed))


def mixed_inputs(tokens: int, columns: int, seed: int) -> Tensor:
    """Inputs whose columns depend on each other and differ in size, as those of real layers."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns // 2, columns, generator=torch.Generator().manual_seed(1))
    x = torch.randn(tokens, columns // 2, generator=generator) @ mixing
    return x + 0.3 * torch.randn(tokens, columns, generator=generator)


def moments_of(x: Tensor) -> Tensor:
    return x.t() @ x / len(x)


@pytest.fixture
def stock(tiny_llama: Source) -> PreTrainedModel:
    return tiny_llama.load_model()


@pytest.fixture(scope="module")
def chosen(tiny_llama: Source) -> list[LayerGroup]:
    return find_layers(tiny_llama.config).select("all")


@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_llama"])
def test_moments_are_of_what_each_layer_reads(name: str, request: pytest.FixtureRequest) -> None:
    source = request.getfixturevalue(name)
    model, groups = source.load_model(), find_layers(source.config).select("all")
    read: dict[str, list[Tensor]] = {layer: [] for group in groups for layer in group.layers}
    for layer, noted in read.items():
        model.get_submodule(layer).register_forward_pre_hook(lambda _, args, noted=noted: noted.append(args[0]))
    texts = [random_ids(2, 9, 0), random_ids(1, 5, 1)[0]]
    seen: list[int] = []
    moments = collect(model, groups, texts, seen.append)
    assert seen == [18, 23]
    assert moments.keys() == read.keys()
    for layer, noted in read.items():
        x = torch.cat([x.flatten(0, -2) for x in noted])
        torch.testing.assert_close(moments[layer], moments_of(x), rtol=1e-4, atol=1e-5)
    for group in groups:
        assert len({moments[layer].data_ptr() for layer in group.layers}) == 1


def test_only_chosen_layers_are_noted(stock: PreTrainedModel, tiny_llama: Source) -> None:
    chosen = find_layers(tiny_llama.config).select(r"1\.self_attn\.[kv]_proj|1\.mlp\.down")
    moments = collect(stock, chosen, [random_ids(1, 5, 0)])
    assert {name: tuple(part.shape) for name, part in moments.items()} == {
        "model.layers.1.self_attn.k_proj": (32, 32),
        "model.layers.1.self_attn.v_proj": (32, 32),
        "model.layers.1.mlp.down_proj": (44, 44),
    }


def test_an_interrupt_leaves_the_model_as_it_was(
    stock: PreTrainedModel, chosen: list[LayerGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[nn.Module] = []
    register = nn.Module.register_forward_pre_hook

    def noted(module: nn.Module, hook: Callable[..., object], **options: Any) -> RemovableHandle:
        return register(module, lambda *given: called.append(module) or hook(*given), **options)

    monkeypatch.setattr(nn.Module, "register_forward_pre_hook", noted)

    def texts() -> Iterator[Tensor]:
        yield random_ids(1, 5, 0)
        raise KeyboardInterrupt

    before = stock(random_ids(1, 7, 2)).logits
    with pytest.raises(KeyboardInterrupt):
        collect(stock, chosen, texts())
    assert called
    called.clear()
    assert torch.equal(stock(random_ids(1, 7, 2)).logits, before)
    assert called == []


def test_no_text_is_refused(stock: PreTrainedModel, chosen: list[LayerGroup]) -> None:
    with pytest.raises(ConfideError, match="nothing to calibrate on"):
        collect(stock, chosen, [])


def test_activations_that_are_not_finite_are_refused(stock: PreTrainedModel, chosen: list[LayerGroup]) -> None:
    with torch.no_grad():
        stock.get_input_embeddings().weight[3] = torch.inf
    with pytest.raises(InvalidActivation, match="not a number"):
        collect(stock, chosen, [torch.tensor([[1, 2, 3]])])


@pytest.mark.parametrize("bits", range(2, 8))
@pytest.mark.parametrize("columns", [40, 300])  # one block of columns, and several
def test_the_product_is_closer_on_inputs_that_were_not_seen(bits: int, columns: int) -> None:
    weights = torch.randn(24, columns, generator=torch.Generator().manual_seed(2))
    seen, unseen = mixed_inputs(1000, columns, 3), mixed_inputs(200, columns, 4)

    def error(moments: Tensor | None) -> float:
        integers, scale = quantize_weights(weights, bits, moments)
        assert integers.abs().max() <= largest_weight(bits)
        return float((unseen @ (integers * scale[:, None] - weights).t()).norm())

    assert error(moments_of(seen)) < 0.8 * error(None)


def test_eight_bits_and_given_tensors_stay_as_they_are() -> None:
    weights, moments = torch.randn(6, 40), moments_of(mixed_inputs(100, 40, 0))
    kept = weights.clone(), moments.clone()
    for bits in (8, 4):
        blind, calibrated = quantize_weights(weights, bits), quantize_weights(weights, bits, moments)
        assert torch.equal(blind[0], calibrated[0]) == (bits == 8)
    assert torch.equal(weights, kept[0])
    assert torch.equal(moments, kept[1])


@pytest.mark.parametrize("moments", [torch.zeros(9, 9), torch.diag(torch.arange(9.0)), torch.ones(9, 9)])
def test_columns_without_input_or_with_the_same_one(moments: Tensor) -> None:
    """Alone or independent, columns cannot make up for each other: then GPTQ is plain rounding."""
    weights = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    scale = weights.abs().amax(1) / 7
    rounded = gptq_round(weights, scale, 7, moments)
    assert rounded.isfinite().all()
    plain = (weights / scale[:, None]).round()
    assert torch.equal(rounded, plain) == bool(moments.count_nonzero() < 10)


def test_a_tiny_model_of_few_bits_is_closer_to_the_float_one(tiny_gpt2: Source) -> None:
    groups = find_layers(tiny_gpt2.config).select("all")
    moments = collect(tiny_gpt2.load_model(), groups, [random_ids(8, 64, 0)])
    heldout = random_ids(8, 64, 1)
    assert divergence(tiny_gpt2, heldout, moments) < 0.8 * divergence(tiny_gpt2, heldout, None)


@pytest.mark.slow  # a small model does the same above
def test_the_demo_model_of_few_bits_is_closer_to_the_float_one(test_data: Path) -> None:
    """Calibrated on other books than it is measured on."""
    demo = open_model("demo")
    groups = find_layers(demo.config).select("all")
    text = (test_data / "data/demo-validation/books_heldout.txt").read_text()
    ids = torch.tensor(demo.load_tokenizer()(text)["input_ids"])
    windows = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)
    moments = collect(demo.load_model(), groups, windows[:8].split(2))
    heldout = windows[-4:]
    assert divergence(demo, heldout, moments) < 0.8 * divergence(demo, heldout, None)


def divergence(source: Source, ids: Tensor, moments: Moments | None) -> float:
    """Of a 4-bit model's next token from the float model's: Kullback-Leibler, in nats per token."""
    groups = find_layers(source.config).select("all")
    quantized = QuantizedModel.quantize(
        source.load_model(), groups, recipe=Recipe(Precision(weight_bits=4)), moments=moments
    )
    assert all(matrix.abs().max() <= largest_weight(4) for matrix in quantized.matrices)
    quantized.use(ClearProduct(quantized.matrices))
    with torch.inference_mode():
        expected, given = (model(ids).logits.log_softmax(-1) for model in (source.load_model(), quantized.model))
    return float(kl_div(given, expected, reduction="sum", log_target=True) / ids.numel())

"""Layers in integers, the client's output head above all: exact by any kernel, close to float ones, in every model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.owners import OWNER
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
)

from confide import HybridModel
from confide.errors import InvalidActivation
from confide.models.clear import load_clear
from confide.models.head import quantize_head
from confide.models.integers import ACTIVATION_BITS, IntegerForward, integers_of, quantize_layers
from confide.models.linear import linear_weights, named_linear
from confide.models.quantize import quantize_activations, quantize_weights

SIZES: dict[str, Any] = {"vocab_size": 70, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(3)
    return GPT2LMHeadModel(GPT2Config(vocab_size=70, n_positions=32, n_embd=64, n_layer=1, n_head=2)).eval()


@pytest.mark.parametrize("choice", ["", "fp32"])
@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (600, 600), (40, 4096)])
def test_the_product_is_that_of_python_integers(
    choice: str, rows: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONFIDE_GEMM", choice)
    torch.manual_seed(1)
    weights, bias, x = torch.randn(rows, columns), torch.randn(rows), torch.randn(2, 3, columns)
    x[0, 0] = x[0, 0].sign() * 5  # digits at their ends
    weights[0] = weights[0].sign()
    integers, scale = quantize_weights(weights)
    activations, token_scale = quantize_activations(x.reshape(-1, columns), ACTIVATION_BITS)
    product = torch.tensor((activations.numpy().astype(object) @ integers.numpy().T.astype(object)).astype(float))
    expected = (product.float() * token_scale * scale + bias).view(2, 3, rows)
    assert torch.equal(IntegerForward(*integers_of(weights), bias)(x), expected)


def test_it_is_close_to_the_float_head() -> None:
    torch.manual_seed(2)
    weights, x = torch.randn(300, 256), torch.randn(4, 256)
    exact = x @ weights.t()
    # Weights are off by half a scale at most, evenly; activations by next to nothing.
    assert (IntegerForward(*integers_of(weights), None)(x) - exact).std() < 0.01 * exact.std()


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(odd: float) -> None:
    with pytest.raises(InvalidActivation):
        IntegerForward(*integers_of(torch.ones(2, 2)), None)(torch.tensor([[1.0, odd]]))


def models() -> list[PreTrainedModel]:
    """With and without biases, with matrices the one way round and the other, the head tied and not."""
    torch.manual_seed(4)
    return [gpt2(), LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=64)), PhiForCausalLM(PhiConfig(**SIZES))]


def test_whole_models_in_integers_hold_them_and_are_close() -> None:
    for model in models():
        ids = torch.tensor([[1, 2, 3]])
        stock = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        matrices = {name: linear_weights(layer).clone() for name, layer in named_linear(model).items()}
        with torch.inference_mode():
            embedded, logits = model.get_input_embeddings()(ids), model(ids).logits
            quantize_layers(model)
            assert torch.equal(model.get_input_embeddings()(ids), embedded)
            ours = model(ids).logits
        assert not torch.equal(ours, logits)
        assert (ours - logits).std() < 0.02 * logits.std()
        assert not named_linear(model)
        held = model.state_dict()
        for name, matrix in matrices.items():
            integers, scale = quantize_weights(matrix)
            assert torch.equal(held.pop(f"{name}.weight"), integers)
            assert torch.equal(held.pop(f"{name}.weight_scale"), scale)
        assert held
        assert all(torch.equal(tensor, stock[name]) for name, tensor in held.items())


def test_a_head_of_its_own_with_a_bias_and_one_that_is_the_embedding() -> None:
    for model in models():
        ids = torch.tensor([[1, 2, 3]])
        with torch.inference_mode():
            embedded, stock = model.get_input_embeddings()(ids), model(ids).logits
            quantize_head(model)
            ours = model(ids).logits
            assert torch.equal(model.get_input_embeddings()(ids), embedded)
        assert not torch.equal(ours, stock)
        assert (ours - stock).std() < 0.02 * stock.std()


def test_every_mode_has_the_same_integers(tmp_path: Path) -> None:
    local = HybridModel(gpt2(), protect="mlp", progress=False)
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        expected = local(ids).logits
        summary = local.split(tmp_path / "out", OWNER)
        assert torch.equal(load_clear(summary.client, summary.server)(ids).logits, expected)
    assert isinstance(local.model.get_output_embeddings().forward, IntegerForward)


def test_a_protected_head_is_the_servers() -> None:
    torch.manual_seed(6)
    llama = LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=64))
    local = HybridModel(llama, protect="all,lm_head", progress=False)
    assert not isinstance(local.model.get_output_embeddings().forward, IntegerForward)

"""Heads that something else computes: in the place of the stock ones, and of no others."""

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from confide.attention.heads import ReplacedHeads, attention_module, chosen_heads
from confide.attention.quantized import HeadWeights
from confide.errors import ModelNotSupported, WrongMode

IDS = torch.randint(0, 97, (2, 12), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def model() -> GPT2LMHeadModel:
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=97, n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3)
    return GPT2LMHeadModel(config).eval()


def logits(model: GPT2LMHeadModel) -> Tensor:
    with torch.inference_mode():
        return model(IDS, use_cache=False).logits


def floats(weights: HeadWeights, x: Tensor) -> Tensor:
    """Causal attention of some heads, written out."""
    queries, keys, values = weights.project(x)
    scores = weights.scores(queries, keys).masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), -torch.inf)
    return (scores.softmax(-1) @ values).transpose(0, 1).flatten(1)


@pytest.mark.parametrize("heads", ["all", [2], [0, 3]])
def test_the_same_heads_elsewhere_change_nothing_and_others_do(model: GPT2LMHeadModel, heads: list[int]) -> None:
    stock, attention = logits(model), attention_module(model, 1)
    chosen = chosen_heads(model.config, heads)
    weights = HeadWeights.of(attention, chosen)
    same = ReplacedHeads(attention, chosen, lambda x: floats(weights, x))
    assert torch.allclose(logits(model), stock, atol=1e-4)
    same.remove()
    ReplacedHeads(attention, chosen, lambda x: torch.zeros(len(x), 8 * len(chosen)))
    assert (logits(model) - stock).abs().max() > 0.1


def test_only_the_columns_of_chosen_heads_are_exchanged(model: GPT2LMHeadModel) -> None:
    attention = attention_module(model, 0)
    seen: list[Tensor] = []
    attention.c_proj.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    logits(model)
    replaced = ReplacedHeads(attention, [1], lambda x: torch.full((len(x), 8), 7.0))
    logits(model)
    stock, changed = seen
    assert (changed[..., 8:16] == 7).all()
    assert torch.equal(changed[..., :8], stock[..., :8])
    assert torch.equal(changed[..., 16:], stock[..., 16:])
    replaced.remove()
    logits(model)
    assert torch.equal(seen[2], stock)


def test_a_kv_cache_is_refused(model: GPT2LMHeadModel) -> None:
    ReplacedHeads(attention_module(model, 0), [0], lambda x: torch.zeros(len(x), 8))
    with pytest.raises(WrongMode, match="use_cache=False"):
        model(IDS, use_cache=True)


def test_what_a_model_lacks_is_refused(model: GPT2LMHeadModel) -> None:
    with pytest.raises(ModelNotSupported, match="0 to 1"):
        attention_module(model, 2)
    for heads in ([4], [-1], []):
        with pytest.raises(ModelNotSupported, match="0 to 3"):
            chosen_heads(model.config, heads)
    llama = LlamaForCausalLM(
        LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    )
    with pytest.raises(ModelNotSupported, match="llama"):
        attention_module(llama, 0)

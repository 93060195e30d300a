"""Each family that can be written as GGUF: llama.cpp's probabilities are those of transformers."""

import asyncio
from pathlib import Path
from shutil import copy
from typing import Any
from unittest import mock

import pytest
import torch
import xllamacpp
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from confide.enclave.engines.gguf_engine import GgufEngine
from confide.errors import ModelNotSupported
from confide.models.gguf.types import GgufType
from confide.models.gguf.write import write_gguf
from confide.models.source import DEMO_FOLDER, Source, open_model

TOKENS = 120
ROWS = 4100
SMALL = {
    "vocab_size": ROWS,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
GROUPED = SMALL | {"intermediate_size": 96, "num_key_value_heads": 2}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", GROUPED),
    "qwen2-tied-linear": ("qwen2", GROUPED | {"tie_word_embeddings": True, "rope_parameters": LINEAR}),
    "qwen3": ("qwen3", GROUPED | {"head_dim": 32}),
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    found = open_model("demo").load_tokenizer()
    assert found is not None
    return found


def random_model(family: str, config: dict[str, Any], folder: Path) -> Source:
    """Random weights that float16 and bfloat16 hold exactly, with the demo's tokenizer."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
            parameter.copy_(parameter.bfloat16().float())
    model.save_pretrained(folder)
    copy(DEMO_FOLDER / "tokenizer.json", folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return open_model(str(folder))


def unprintable(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end within a character, or that end an answer."""
    return [0, *(token for token in range(ROWS) if token >= len(tokenizer) or "\ufffd" in tokenizer.decode([token]))]


def sampled(file: Path, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """What llama.cpp says of each token of an answer that it draws at random, in the engine that serves."""
    load, servers, entries = xllamacpp.Server, list[Any](), list[dict[str, Any]]()
    request = {
        "prompt": [5],
        "max_tokens": TOKENS,
        "stream": True,
        "logprobs": 1,
        "temperature": 1.0,
        "samplers": ["temperature"],
        "seed": 7,
        "logit_bias": {str(token): False for token in unprintable(tokenizer)},  # llama.cpp tells nothing of them
    }

    def caught(params: xllamacpp.CommonParams) -> Any:
        servers.append(load(params))
        return servers[-1]

    def deliver(chunk: dict[str, Any]) -> bool:
        assert "error" not in chunk
        entries.extend((chunk["choices"][0]["logprobs"] or {}).get("content", ()))
        return False

    with mock.patch.object(xllamacpp, "Server", caught):
        engine = GgufEngine(file, "model", threads=1, parallel=1, tokenizer=tokenizer)
    servers[0].handle_completions(request, deliver)
    asyncio.run(engine.close())
    return entries


def compare(source: Source, entries: list[dict[str, Any]]) -> tuple[float, float]:
    """How often both hold the same token for the likeliest, and by what share their perplexities differ."""
    ids = [entry["id"] for entry in entries]
    with torch.no_grad():
        logits = source.load_model()(torch.tensor([[5, *ids]])).logits[0, :-1]
    theirs = logits.log_softmax(-1)
    same = [entry["top_logprobs"][0]["id"] for entry in entries] == theirs.argmax(-1).numpy()
    chosen = theirs[range(len(ids)), ids]
    difference = torch.tensor([entry["logprob"] for entry in entries]).mean() - chosen.mean()
    return float(same.mean()), abs(float(torch.expm1(difference)))


@pytest.mark.parametrize("type", [GgufType.F16, GgufType.BF16])
@pytest.mark.parametrize("case", FAMILIES)
def test_a_family_has_the_same_probabilities_in_llama_cpp(
    case: str, type: GgufType, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    family, config = FAMILIES[case]
    source = random_model(family, config, tmp_path / "model")
    entries = sampled(write_gguf(source, tmp_path / "model.gguf", type).path, tokenizer)
    assert len(entries) == TOKENS
    assert len({entry["id"] for entry in entries}) > TOKENS / 2  # no loop, of which little could be learnt
    agreement, difference = compare(source, entries)
    # llama.cpp rounds what it multiplies with bfloat16 weights to 8 bits as well, and the model is random: of its 4,100
    # tokens the two likeliest are often closer to each other than that.
    assert agreement > (0.99 if type is GgufType.F16 else 0.96)
    assert difference < 0.005


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2-sliding": ("qwen2", GROUPED | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "qwen2-yarn": ("qwen2", GROUPED | {"rope_parameters": LINEAR | {"rope_type": "yarn"}}),
    "qwen3-bias": ("qwen3", GROUPED | {"attention_bias": True}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_variant_that_llama_cpp_computes_otherwise_is_refused(case: str, tmp_path: Path) -> None:
    family, config = REFUSED[case]
    source = random_model(family, config, tmp_path / "model")
    with pytest.raises(ModelNotSupported, match=r"llama\.cpp"):
        write_gguf(source, tmp_path / "model.gguf", GgufType.F16)
    assert not (tmp_path / "model.gguf").exists()

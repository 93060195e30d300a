"""Each family that can be written as GGUF: llama.cpp's probabilities are those of transformers."""

import asyncio
from pathlib import Path
from shutil import copy
from typing import Any
from unittest import mock

import pytest
import torch
import xllamacpp
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    FalconConfig,
    GPTNeoXConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.models.falcon.modeling_falcon import FalconAttention

from confide.enclave.engines.gguf_engine import GgufEngine
from confide.errors import ModelNotSupported
from confide.models.gguf import write
from confide.models.gguf.architectures import find_architecture
from confide.models.gguf.ggml import Bytes, Floats, quantize_blocks
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
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16}
NEAR_AND_FAR = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 20000.0, "factor": 2.0},
}
MPT = {"vocab_size": ROWS, "d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 256, "eos_token_id": 0}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", GROUPED),
    "qwen2-tied-linear": ("qwen2", GROUPED | {"tie_word_embeddings": True, "rope_parameters": LINEAR}),
    "qwen3": ("qwen3", GROUPED | {"head_dim": 32}),
    "mistral": ("mistral", GROUPED | {"head_dim": 32}),
    "gemma": ("gemma", GROUPED | {"head_dim": 32}),
    "gemma2": ("gemma2", GROUPED | GEMMA),
    "gemma3": ("gemma3_text", GROUPED | GEMMA | {"num_hidden_layers": 6, "rope_parameters": NEAR_AND_FAR}),
    "phi": ("phi", SMALL | {"intermediate_size": 96}),
    "phi-grouped-whole-linear": ("phi", GROUPED | {"rope_parameters": LINEAR | {"partial_rotary_factor": 1.0}}),
    "phi3": ("phi3", GROUPED),
    "neox": ("gpt_neox", SMALL | {"intermediate_size": 96}),
    "neox-serial": ("gpt_neox", SMALL | {"intermediate_size": 96, "use_parallel_residual": False}),
    "falcon-7b": ("falcon", SMALL | {"ffn_hidden_size": 96}),
    "falcon-40b": ("falcon", SMALL | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-11b": (
        "falcon",
        SMALL | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    "falcon-heads": ("falcon", SMALL | {"multi_query": False, "tie_word_embeddings": False}),
    "mpt": ("mpt", MPT),
    "mpt-clip-odd-heads": ("mpt", MPT | {"d_model": 96, "n_heads": 6, "attn_config": {"clip_qkv": 2.0}}),
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
        engine = GgufEngine(file, "model", threads=1, parallel=1)
    servers[0].handle_completions(request, deliver)
    asyncio.run(engine.close())
    return entries


def compare(source: Source, entries: list[dict[str, Any]], lead: float) -> tuple[float, float]:
    """How often both hold the same token for the likeliest, and by what share their perplexities differ.

    lead: by which the likeliest of a token's logits must be ahead for that to count, since of a random model's tokens
    the two likeliest are at times closer to each other than halves can tell.
    """
    ids = [entry["id"] for entry in entries]
    with torch.no_grad():
        logits = source.load_model()(torch.tensor([[5, *ids]])).logits[0, :-1]
    theirs = logits.log_softmax(-1)
    best, second = theirs.topk(2).values.T
    decided = (best - second > lead).numpy()
    assert decided.mean() > 0.8
    same = [entry["top_logprobs"][0]["id"] for entry in entries] == theirs.argmax(-1).numpy()
    chosen = theirs[range(len(ids)), ids]
    difference = torch.tensor([entry["logprob"] for entry in entries]).mean() - chosen.mean()
    return float(same[decided].mean()), abs(float(torch.expm1(difference)))


QUICK = {
    ("qwen2", GgufType.BF16),
    *((case, GgufType.F16) for case in ("qwen2", "qwen3", "gemma2", "gemma3", "phi3", "neox", "falcon-40b", "mpt")),
    *((case, GgufType.F16) for case in ("mistral", "gemma", "phi")),
}
CASES = [
    pytest.param(case, type, marks=() if (case, type) in QUICK else pytest.mark.slow)
    for case in FAMILIES
    for type in (GgufType.F16, GgufType.BF16)
]


@pytest.mark.parametrize(("case", "type"), CASES)
def test_a_family_has_the_same_probabilities_in_llama_cpp(
    case: str, type: GgufType, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    family, config = FAMILIES[case]
    source = random_model(family, config, tmp_path / "model")
    entries = sampled(write_gguf(source, tmp_path / "model.gguf", type).path, tokenizer)
    assert len(entries) == TOKENS
    assert len({entry["id"] for entry in entries}) > TOKENS / 2  # no loop, of which little could be learnt
    # llama.cpp rounds what it multiplies with bfloat16 weights to 8 bits as well
    agreement, difference = compare(source, entries, lead=0.01 if type is GgufType.F16 else 0.05)
    assert agreement > 0.99
    assert difference < 0.005


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case == "falcon-40b" else pytest.mark.slow) for case in FAMILIES]
)
def test_a_calibration_text_weighs_every_matrix_but_embedding_and_head(case: str, tmp_path: Path) -> None:
    family, config = FAMILIES[case]
    source = random_model(family, config, tmp_path / "model")
    weighed = list[tuple[int, ...]]()

    def note(values: Floats, kind: GGMLQuantizationType, importance: Floats | None = None) -> Bytes:
        assert importance is not None
        assert importance.min() > 0
        assert importance.mean() == pytest.approx(1, rel=1e-3)
        weighed.append(values.shape)
        return quantize_blocks(values, kind, importance)

    with mock.patch.object(write, "quantize_blocks", note):
        file = write_gguf(source, tmp_path / "model.gguf", GgufType.Q4_0, texts=[torch.arange(50)]).path
    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(file).tensors if len(tensor.shape) > 1}
    assert {name for name, kind in kinds.items() if kind != "Q4_0"} <= {"token_embd.weight", "output.weight"}
    assert len(weighed) == list(kinds.values()).count("Q4_0")


def test_fused_queries_keys_and_values_are_parted_as_transformers_parts_them() -> None:
    """For all ways of Falcon and GPT-NeoX to group their heads, without a model."""
    small = SMALL | {"ffn_hidden_size": 96}
    for config, heads in (
        (FalconConfig(**small), 1),
        (FalconConfig(**small, new_decoder_architecture=True, num_kv_heads=2), 2),
        (FalconConfig(**small, multi_query=False), 4),
    ):
        attention = FalconAttention(config, layer_idx=0)
        fused = attention.query_key_value.weight.detach()
        ours = _converted("falcon", "transformer.h.0.self_attention.query_key_value.weight", fused, config)
        query, key, value = attention._split_heads(fused.T[None])  # (1, hidden, heads, 16), keys once for each query
        once = slice(None, None, 4 // heads)
        theirs = [part[0].flatten(1).T for part in (query, key[:, :, once], value[:, :, once])]
        assert torch.equal(ours, torch.cat(theirs))
    neox = GPTNeoXConfig(**SMALL)
    bias = torch.arange(3 * 64)
    parted = _converted("gpt_neox", "gpt_neox.layers.0.attention.query_key_value.bias", bias, neox)
    assert torch.equal(parted, torch.cat(bias.view(4, 3 * 16).split(16, 1)).view(3, 4, 16).flatten())


def _converted(family: str, name: str, weight: torch.Tensor, config: PreTrainedConfig) -> torch.Tensor:
    assert config.model_type == family
    return find_architecture(config).convert(name, weight, config)


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-no-heads": ("llama", GROUPED | {"num_key_value_heads": 0}),
    "llama-huge": ("llama", GROUPED | {"intermediate_size": 2**40}),
    "gemma3-no-window": ("gemma3_text", GROUPED | GEMMA | {"sliding_window": 0}),
    "phi3-window-below-0": ("phi3", GROUPED | {"sliding_window": -1}),
    "qwen2-sliding": ("qwen2", GROUPED | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "qwen2-yarn": ("qwen2", GROUPED | {"rope_parameters": LINEAR | {"rope_type": "yarn"}}),
    "qwen3-bias": ("qwen3", GROUPED | {"attention_bias": True}),
    "mistral-dynamic": ("mistral", GROUPED | {"rope_parameters": LINEAR | {"rope_type": "dynamic"}}),
    "gemma-bias": ("gemma", GROUPED | {"attention_bias": True}),
    "gemma-both-ways": ("gemma", GROUPED | {"use_bidirectional_attention": True}),
    "gemma-head": ("gemma", GROUPED | {"tie_word_embeddings": False}),
    "gemma2-both-ways": ("gemma2", GROUPED | GEMMA | {"use_bidirectional_attention": True}),
    "gemma3-both-ways": ("gemma3_text", GROUPED | GEMMA | {"use_bidirectional_attention": True}),
    "phi-norms": ("phi", GROUPED | {"qk_layernorm": True}),
    "phi-tied": ("phi", GROUPED | {"tie_word_embeddings": True}),
    "phi-relu": ("phi", GROUPED | {"hidden_act": "relu"}),
    "phi-wide": ("phi", GROUPED | {"head_dim": 32}),
    "gemma2-scale": ("gemma2", GROUPED | GEMMA | {"query_pre_attn_scalar": 16}),
    "gemma2-windows": ("gemma2", GROUPED | GEMMA | {"layer_types": ["full_attention"] * 2}),
    "gemma2-no-cap": ("gemma2", GROUPED | GEMMA | {"final_logit_softcapping": None}),
    "gemma3-cap": ("gemma3_text", GROUPED | GEMMA | {"final_logit_softcapping": 30.0}),
    "gemma3-near": (
        "gemma3_text",
        GROUPED | GEMMA | {"rope_parameters": NEAR_AND_FAR | {"sliding_attention": LINEAR}},
    ),
    "phi3-long": (
        "phi3",
        GROUPED
        | {
            "original_max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * 8,
                "long_factor": [2.0] * 8,
            },
        },
    ),
    "neox-no-bias": ("gpt_neox", SMALL | {"attention_bias": False}),
    "neox-tied": ("gpt_neox", SMALL | {"tie_word_embeddings": True}),
    "neox-relu": ("gpt_neox", SMALL | {"hidden_act": "relu"}),
    "falcon-alibi": ("falcon", SMALL | {"alibi": True}),
    "falcon-bias": ("falcon", SMALL | {"bias": True}),
    "falcon-serial": ("falcon", SMALL | {"parallel_attn": False}),
    "mpt-scale": ("mpt", MPT | {"attn_config": {"softmax_scale": 0.1}}),
    "mpt-positions": ("mpt", MPT | {"attn_config": {"alibi": False}}),
    "mpt-bias": ("mpt", MPT | {"no_bias": False}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_variant_that_llama_cpp_computes_otherwise_is_refused(case: str) -> None:
    family, config = REFUSED[case]
    config = AutoConfig.for_model(family, **config)
    with pytest.raises(ModelNotSupported, match=r"llama\.cpp"):
        find_architecture(config).write_facts(GGUFWriter(None, family), config)


@pytest.mark.parametrize("family", ["phi3", "mistral"])
def test_of_a_window_that_llama_cpp_does_not_keep_the_context_is_kept(family: str) -> None:
    config = AutoConfig.for_model(family, **GROUPED, sliding_window=100)
    assert find_architecture(config).context(config) == 100
    config.sliding_window = None
    assert find_architecture(config).context(config) == 256
    config.max_position_embeddings = 0
    with pytest.raises(ModelNotSupported, match="how long"):
        find_architecture(config).context(config)


def test_a_family_that_is_not_known_is_refused_by_its_name() -> None:
    with pytest.raises(ModelNotSupported, match=r"'olmo' cannot be written .* falcon and mpt"):
        find_architecture(AutoConfig.for_model("olmo"))

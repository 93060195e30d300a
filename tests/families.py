"""One small configuration of each model family, as its real checkpoints have it apart from the size."""

from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MptConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

POSITIONS = 32
TOKENS = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
SHAPE = TOKENS | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = SHAPE | {"intermediate_size": 48, "max_position_embeddings": POSITIONS}
GROUPED = WIDE | {"num_key_value_heads": 2}
GEMMA = GROUPED | {"head_dim": 12}
"""Gemma's heads together are not as wide as its residual stream."""
WINDOW = 4
LOCAL_AND_GLOBAL = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
FALCON = SHAPE | {"max_position_embeddings": POSITIONS, "alibi": False, "bias": False}
NEW_FALCON = FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": POSITIONS // 4,
}

FAMILIES: dict[str, PreTrainedConfig] = {
    "gpt2": GPT2Config(**TOKENS, n_positions=POSITIONS, n_embd=32, n_layer=2, n_head=4),
    "pythia": GPTNeoXConfig(**WIDE, use_parallel_residual=True, rotary_pct=0.25),
    "gpt_neox-sequential": GPTNeoXConfig(**WIDE, use_parallel_residual=False),
    "falcon-7b": FalconConfig(**FALCON, multi_query=True, parallel_attn=True),
    "falcon-rw": FalconConfig(**FALCON | {"alibi": True, "bias": True}, multi_query=False, parallel_attn=False),
    "falcon-40b": FalconConfig(**NEW_FALCON),
    "falcon-11b": FalconConfig(**NEW_FALCON, num_ln_in_parallel_attn=1, tie_word_embeddings=False),
    "mpt": MptConfig(**TOKENS, d_model=32, n_heads=4, n_layers=2, expansion_ratio=2, max_seq_len=POSITIONS),
    "phi": PhiConfig(**WIDE),
    "llama": LlamaConfig(**GROUPED),
    "llama-3": LlamaConfig(**GROUPED, rope_parameters=LLAMA_3),
    "mistral": MistralConfig(**GROUPED, sliding_window=WINDOW),
    "qwen2": Qwen2Config(**GROUPED, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**GROUPED, head_dim=12),
    "gemma": GemmaConfig(**GEMMA),
    "gemma2": Gemma2Config(**GEMMA, query_pre_attn_scalar=12, **LOCAL_AND_GLOBAL),
    "gemma3_text": Gemma3TextConfig(**GEMMA, query_pre_attn_scalar=12, **LOCAL_AND_GLOBAL),
}

UNLISTED = OPTConfig(**SHAPE, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=POSITIONS)
"""An architecture that is not in the table, and can be split all the same."""


def randomise(model: PreTrainedModel) -> PreTrainedModel:
    """Weights large enough that logits differ, biases that are not zero."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def save_random(config: PreTrainedConfig, folder: Path) -> Path:
    """A model of this configuration, with random weights, as a checkpoint in a folder."""
    randomise(AutoModelForCausalLM.from_config(config)).save_pretrained(folder)
    return folder

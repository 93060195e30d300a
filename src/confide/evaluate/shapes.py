"""Models by their published dimensions, to plan for: no weight and no name of anybody's model is needed."""

from types import MappingProxyType
from typing import Final

from transformers import GPT2Config, LlamaConfig, PreTrainedConfig

GPT2_SMALL: Final = GPT2Config()
"""Radford et al., Language models are unsupervised multitask learners (2019), the smallest, with GPT-2's vocabulary."""
LLAMA_1B: Final = LlamaConfig(
    vocab_size=128256,
    hidden_size=2048,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    intermediate_size=8192,
    max_position_embeddings=131072,
    tie_word_embeddings=True,
)
"""The model card and configuration of Llama 3.2 1B."""
LLAMA_8B: Final = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    intermediate_size=14336,
    max_position_embeddings=131072,
    tie_word_embeddings=False,
)
"""Grattafiori et al., The Llama 3 herd of models (arXiv:2407.21783), table 3."""
LLAMA_70B: Final = LlamaConfig(
    vocab_size=128256,
    hidden_size=8192,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    intermediate_size=28672,
    max_position_embeddings=131072,
    tie_word_embeddings=False,
)
"""The same table."""

SHAPES: Final = MappingProxyType[str, PreTrainedConfig](
    {"gpt2-small": GPT2_SMALL, "1b": LLAMA_1B, "8b": LLAMA_8B, "70b": LLAMA_70B}
)
"""By the names that `confide plan --model-shape` has."""

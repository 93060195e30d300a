"""What llama.cpp calls the architectures it shares with transformers, and how their weights differ in the file."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import torch
from gguf import MODEL_ARCH, GGUFWriter, get_tensor_name_map
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from confide.errors import ModelNotSupported

_ROPE_FREQS: Final = "rope_freqs.weight"
_FIXED_ROPE: Final = ("default", "linear", "llama3")
"""Rotary embeddings whose frequencies do not depend on the text's length."""


@dataclass(frozen=True)
class Architecture:
    """One of them.

    describe: writes the model's shape as metadata; ModelNotSupported for a variant that llama.cpp computes otherwise.
    convert: a weight as the file has it, from its name and the model's configuration.
    added: tensors that have no counterpart among the weights.
    """

    arch: MODEL_ARCH
    describe: Callable[[GGUFWriter, PreTrainedConfig], None]
    convert: Callable[[str, Tensor, PreTrainedConfig], Tensor]
    added: Callable[[PreTrainedModel], dict[str, Tensor]]

    def tensors(self, model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
        """Names and values for the file. A head that is tied to the embedding is not repeated."""
        names = get_tensor_name_map(self.arch, model.config.num_hidden_layers)
        yield from self.added(model).items()
        for name, parameter in model.named_parameters():  # tied ones come once
            if (known := names.get_name(name, try_suffixes=(".weight", ".bias"))) is None:
                raise ModelNotSupported(f"llama.cpp has no place for {name}; use a model of the stock architecture.")
            yield known, self.convert(name, parameter.detach(), model.config)


def find_architecture(config: PreTrainedConfig) -> Architecture:
    """By transformers' model_type. Raises ModelNotSupported for all others."""
    if (found := _ARCHITECTURES.get(config.model_type)) is None:
        raise ModelNotSupported(
            f"The architecture {config.model_type!r} cannot be written as GGUF here, only "
            f"{' and '.join(_ARCHITECTURES)}; convert the model with llama.cpp's own convert_hf_to_gguf.py, or "
            "serve it unquantized."
        )
    return found


def _describe_gpt2(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    _require(config, activation_function="gelu_new", scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


def _convert_gpt2(name: str, weight: Tensor, _: PreTrainedConfig) -> Tensor:
    """GPT-2's Conv1D keeps matrices as [inputs, outputs]; llama.cpp wants [outputs, inputs]."""
    transposed = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
    return weight.T if transposed else weight


def _describe_llama(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    _require(config, hidden_act="silu")
    rope = config.rope_parameters
    if rope["rope_type"] not in _FIXED_ROPE or rope.get("partial_rotary_factor", 1) != 1:
        raise ModelNotSupported(
            f"Rotary embeddings of the type {rope['rope_type']!r} cannot be written as GGUF here; convert the model "
            "with llama.cpp's own convert_hf_to_gguf.py."
        )
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _convert_llama(name: str, weight: Tensor, config: PreTrainedConfig) -> Tensor:
    """transformers rotates a head's first half against its second, llama.cpp each even row against the next odd one."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(weight.shape) if heads else weight


def _rope_frequencies(model: PreTrainedModel) -> dict[str, Tensor]:
    """By what each rotary frequency is divided, where the model scales them. Shape [head_dim / 2], float32."""
    config = model.config
    scaled = model.get_buffer("model.rotary_emb.inv_freq")
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    factors = config.rope_parameters["rope_theta"] ** -exponents / scaled
    return {} if config.rope_parameters["rope_type"] == "default" else {_ROPE_FREQS: factors}


def _require(config: PreTrainedConfig, **standard: object) -> None:
    for field, value in standard.items():
        if (found := getattr(config, field)) != value:
            raise ModelNotSupported(
                f"llama.cpp computes {config.model_type} with {field} = {value!r}, and this model has {found!r}; "
                "serve it unquantized."
            )


_ARCHITECTURES: Final = {
    "gpt2": Architecture(MODEL_ARCH.GPT2, _describe_gpt2, _convert_gpt2, lambda _: {}),
    "llama": Architecture(MODEL_ARCH.LLAMA, _describe_llama, _convert_llama, _rope_frequencies),
}

"""What llama.cpp calls the architectures it shares with transformers, and how their weights differ in the file."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from gguf import MODEL_ARCH, GGUFWriter, RopeScalingType, get_tensor_name_map
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from confide.errors import ModelNotSupported
from confide.models.context import longest_context

_ROPE_FREQS: Final = "rope_freqs.weight"
_LARGEST: Final = 2**31
"""Above all numbers of a model's shape; the file holds them in 32 bits."""

Numbers = Mapping[Callable[[GGUFWriter, Any], None], str]
"""How the writer is told a number, and the configuration's field that has it."""

_SHAPE: Final[Numbers] = {
    GGUFWriter.add_vocab_size: "vocab_size",
    GGUFWriter.add_embedding_length: "hidden_size",
    GGUFWriter.add_block_count: "num_hidden_layers",
    GGUFWriter.add_head_count: "num_attention_heads",
}
_GATED: Final[Numbers] = {
    **_SHAPE,
    GGUFWriter.add_feed_forward_length: "intermediate_size",
    GGUFWriter.add_head_count_kv: "num_key_value_heads",
    GGUFWriter.add_layer_norm_rms_eps: "rms_norm_eps",
}
_GEMMA: Final[Mapping[str, tuple[object, ...]]] = {
    "attention_bias": (False,),
    "use_bidirectional_attention": (None, False),
}
_GELU: Final = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")
"""Of which llama.cpp takes the approximation by tanh for all; they differ by 0.0005 at most."""


def _nothing(_: GGUFWriter, __: PreTrainedConfig) -> None:
    pass


def _as_it_is(_: str, weight: Tensor, __: PreTrainedConfig) -> Tensor:
    return weight


@dataclass(frozen=True)
class Architecture:
    """One of them.

    numbers: of the model's shape. computed: the values of the configuration's fields with which llama.cpp computes what
    transformers does. describe: writes what else is to say; ModelNotSupported for a variant that llama.cpp computes
    otherwise. convert: a weight as the file has it, from its name and the model's configuration. added: tensors that
    have no counterpart among the weights. window: the field that says how many tokens a token sees, where llama.cpp
    lets it see all.
    """

    arch: MODEL_ARCH
    numbers: Numbers
    computed: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    describe: Callable[[GGUFWriter, PreTrainedConfig], None] = _nothing
    convert: Callable[[str, Tensor, PreTrainedConfig], Tensor] = _as_it_is
    added: Callable[[PreTrainedModel], dict[str, Tensor]] = lambda _: {}
    window: str | None = None

    def context(self, config: PreTrainedConfig) -> int:
        """Tokens for which llama.cpp computes what transformers does. ModelNotSupported where nothing says how many."""
        if (longest := longest_context(config)) is None:
            raise ModelNotSupported("The model's configuration does not say for how long a text it was made; add it.")
        if self.window and getattr(config, self.window) is not None:
            longest = min(longest, int(_positive(config, self.window)))
        return longest

    def write_facts(self, writer: GGUFWriter, config: PreTrainedConfig) -> None:
        """The model's shape as metadata. ModelNotSupported for a variant that llama.cpp computes otherwise."""
        for name, values in self.computed.items():
            _require(config, name, getattr(config, name, None), values)
        writer.add_context_length(self.context(config))
        for add, name in self.numbers.items():
            add(writer, _positive(config, name))
        self.describe(writer, config)

    def names(self, model: PreTrainedModel) -> dict[str, str]:
        """What the file calls each parameter. A head that is tied to the embedding is not repeated."""
        known = get_tensor_name_map(self.arch, model.config.num_hidden_layers)
        names = {}
        for name, _ in model.named_parameters():  # tied ones come once
            if (found := known.get_name(name, try_suffixes=(".weight", ".bias"))) is None:
                raise ModelNotSupported(f"llama.cpp has no place for {name}; use a model of the stock architecture.")
            names[name] = found
        return names

    def tensors(self, model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
        """Names and values for the file."""
        yield from self.added(model).items()
        for name, known in self.names(model).items():
            yield known, self.convert(name, model.get_parameter(name).detach(), model.config)


def find_architecture(config: PreTrainedConfig) -> Architecture:
    """By transformers' model_type. Raises ModelNotSupported for all others."""
    if (found := _ARCHITECTURES.get(config.model_type)) is None:
        *others, last = _ARCHITECTURES
        raise ModelNotSupported(
            f"The architecture {config.model_type!r} cannot be written as GGUF here, only {', '.join(others)} and "
            f"{last}; convert the model with llama.cpp's own convert_hf_to_gguf.py, or serve it unquantized."
        )
    return found


def _require(config: PreTrainedConfig, name: str, found: object, values: tuple[object, ...]) -> None:
    if found not in values:
        raise ModelNotSupported(
            f"llama.cpp computes {config.model_type} with {name} = {' or '.join(map(repr, values))}, and this model "
            f"has {found!r}; serve it unquantized."
        )


def _positive(config: PreTrainedConfig, name: str) -> float:
    """A number of the configuration, as the file holds numbers. ModelNotSupported for what is none."""
    value = getattr(config, name, None)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _LARGEST:
        raise ModelNotSupported(
            f"llama.cpp needs a {name} above 0 of a {config.model_type} model, and this one has {value!r}; get an "
            "undamaged copy, or serve it unquantized."
        )
    return value


def _head_dim(config: PreTrainedConfig) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _describe_heads(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """Heads of a width of their own, and their rotations."""
    writer.add_key_length(_head_dim(config))
    writer.add_value_length(_head_dim(config))
    _describe_rope(writer, config, config.rope_parameters)


def _describe_rope(
    writer: GGUFWriter,
    config: PreTrainedConfig,
    rope: Mapping[str, Any],
    types: tuple[str, ...] = ("default", "linear"),
) -> None:
    """Rotary embeddings whose frequencies do not depend on the text's length, of all of a head or its first part."""
    if rope["rope_type"] not in types:
        raise ModelNotSupported(
            f"Rotary embeddings of the type {rope['rope_type']!r} cannot be written as GGUF here; convert the model "
            "with llama.cpp's own convert_hf_to_gguf.py."
        )
    writer.add_rope_dimension_count(int(_head_dim(config) * rope.get("partial_rotary_factor", 1)))
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _describe_gpt2(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)


def _convert_gpt2(name: str, weight: Tensor, _: PreTrainedConfig) -> Tensor:
    """GPT-2's Conv1D keeps matrices as [inputs, outputs]; llama.cpp wants [outputs, inputs]."""
    transposed = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
    return weight.T if transposed else weight


def _describe_llama(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    rope = config.rope_parameters
    _require(config, "partial_rotary_factor", rope.get("partial_rotary_factor", 1), (1,))
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    _describe_rope(writer, config, rope, ("default", "linear", "llama3"))


def _convert_llama(name: str, weight: Tensor, config: PreTrainedConfig) -> Tensor:
    """transformers rotates a head's first half against its second, llama.cpp each even row against the next odd one."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(weight.shape) if heads else weight


def _rope_frequencies(model: PreTrainedModel) -> dict[str, Tensor]:
    """By what each rotary frequency is divided, where it differs between them. Shape [head_dim / 2], float32."""
    config = model.config
    if config.rope_parameters["rope_type"] != "llama3":
        return {}
    scaled = model.get_buffer("model.rotary_emb.inv_freq")
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    return {_ROPE_FREQS: config.rope_parameters["rope_theta"] ** -exponents / scaled}


def _describe_qwen(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    _require(config, "layer_types", sorted(set(config.layer_types)), (["full_attention"],))
    _describe_heads(writer, config)


def _describe_gemma2(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_attn_logit_softcapping(_positive(config, "attn_logit_softcapping"))
    writer.add_final_logit_softcapping(_positive(config, "final_logit_softcapping"))
    _describe_windows(writer, config, every=2, large=46)
    _describe_heads(writer, config)


def _describe_gemma3(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    _describe_windows(writer, config, every=6, large=62)
    near = config.rope_parameters["sliding_attention"]
    _require(config, "rope_parameters['sliding_attention']['rope_type']", near["rope_type"], ("default",))
    writer.add_rope_freq_base_swa(near["rope_theta"])
    writer.add_key_length(_head_dim(config))
    writer.add_value_length(_head_dim(config))
    _describe_rope(writer, config, config.rope_parameters["full_attention"])


def _describe_windows(writer: GGUFWriter, config: PreTrainedConfig, every: int, large: int) -> None:
    """Layers that see the tokens of a window, but for each `every`th.

    large: the layers of that one size of the family whose attention llama.cpp scales by the hidden width of a head.
    """
    layers = config.num_hidden_layers
    order = ["sliding_attention"] * (every - 1) + ["full_attention"]
    if config.layer_types != [order[layer % every] for layer in range(layers)]:
        raise ModelNotSupported(
            f"In llama.cpp one of every {every} layers of {config.model_type} sees all tokens, and the others a window "
            "of them; this model has another order: serve it unquantized."
        )
    is_large = layers == large
    width = config.hidden_size // config.num_attention_heads if is_large else _head_dim(config)
    _require(config, "query_pre_attn_scalar", config.query_pre_attn_scalar, (width,))
    writer.add_sliding_window(int(_positive(config, "sliding_window")))


def _convert_gemma(name: str, weight: Tensor, _: PreTrainedConfig) -> Tensor:
    """transformers adds 1 to what norms multiply by, llama.cpp does not."""
    return weight + 1 if name.endswith("norm.weight") else weight


def _describe_phi(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """Phi-1 to Phi-2, whose heads are as wide together as the hidden state: llama.cpp loads no others."""
    _require(config, "head_dim", _head_dim(config), (config.hidden_size // config.num_attention_heads,))
    _describe_rope(writer, config, config.rope_parameters)


def _describe_neox(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    _describe_rope(writer, config, config.rope_parameters)
    writer.add_parallel_residual(config.use_parallel_residual)


def _convert_neox(name: str, weight: Tensor, config: PreTrainedConfig) -> Tensor:
    return _ungroup(name, weight, config, config.num_attention_heads)


def _ungroup(name: str, weight: Tensor, config: PreTrainedConfig, groups: int) -> Tensor:
    """From queries, key and value of each group of heads in turn to all queries, all keys and all values."""
    if ".query_key_value." not in name:
        return weight
    parts = weight.unflatten(0, (groups, config.num_attention_heads // groups + 2, -1))
    return torch.cat([part.flatten(0, 2) for part in (parts[:, :-2], parts[:, -2:-1], parts[:, -1:])])


def _describe_falcon(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_head_count_kv(_falcon_groups(config))
    _describe_rope(writer, config, config.rope_parameters)


def _convert_falcon(name: str, weight: Tensor, config: PreTrainedConfig) -> Tensor:
    return _ungroup(name, weight, config, _falcon_groups(config))


def _falcon_groups(config: PreTrainedConfig) -> int:
    """Heads of keys and values."""
    if config.new_decoder_architecture:
        return int(config.num_kv_heads)
    return 1 if config.multi_query else int(config.num_attention_heads)


def _describe_mpt(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    attention = config.attn_config
    for name, value in (("alibi", True), ("softmax_scale", None), ("qk_ln", False), ("prefix_lm", False)):
        _require(config, f"attn_config.{name}", getattr(attention, name), (value,))
    writer.add_feed_forward_length(4 * config.hidden_size)
    writer.add_max_alibi_bias(attention.alibi_bias_max)
    if attention.clip_qkv:
        writer.add_clamp_kqv(attention.clip_qkv)


_ARCHITECTURES: Final = {
    "gpt2": Architecture(
        MODEL_ARCH.GPT2,
        {**_SHAPE, GGUFWriter.add_layer_norm_eps: "layer_norm_epsilon"},
        {
            "activation_function": ("gelu_new",),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
        },
        _describe_gpt2,
        _convert_gpt2,
    ),
    "llama": Architecture(
        MODEL_ARCH.LLAMA, _GATED, {"hidden_act": ("silu",)}, _describe_llama, _convert_llama, _rope_frequencies
    ),
    "mistral": Architecture(
        MODEL_ARCH.LLAMA,
        _GATED,
        {"hidden_act": ("silu",)},
        _describe_llama,
        _convert_llama,
        _rope_frequencies,
        window="sliding_window",
    ),
    "qwen2": Architecture(MODEL_ARCH.QWEN2, _GATED, {"hidden_act": ("silu",)}, _describe_qwen),
    "qwen3": Architecture(
        MODEL_ARCH.QWEN3, _GATED, {"hidden_act": ("silu",), "attention_bias": (False,)}, _describe_qwen
    ),
    "gemma": Architecture(
        MODEL_ARCH.GEMMA,
        _GATED,
        {**_GEMMA, "hidden_act": ("gelu_pytorch_tanh",), "tie_word_embeddings": (True,)},
        _describe_heads,
        _convert_gemma,
    ),
    "gemma2": Architecture(
        MODEL_ARCH.GEMMA2,
        _GATED,
        {**_GEMMA, "hidden_activation": ("gelu_pytorch_tanh",), "tie_word_embeddings": (True,)},
        _describe_gemma2,
        _convert_gemma,
    ),
    "gemma3_text": Architecture(
        MODEL_ARCH.GEMMA3,
        _GATED,
        {
            **_GEMMA,
            "hidden_activation": ("gelu_pytorch_tanh",),
            "attn_logit_softcapping": (None,),
            "final_logit_softcapping": (None,),
        },
        _describe_gemma3,
        _convert_gemma,
    ),
    "phi": Architecture(
        MODEL_ARCH.PHI2,
        {
            **_SHAPE,
            GGUFWriter.add_feed_forward_length: "intermediate_size",
            GGUFWriter.add_head_count_kv: "num_key_value_heads",
            GGUFWriter.add_layer_norm_eps: "layer_norm_eps",
        },
        {"hidden_act": _GELU, "qk_layernorm": (False,), "tie_word_embeddings": (False,)},
        _describe_phi,
    ),
    "phi3": Architecture(MODEL_ARCH.PHI3, _GATED, {"hidden_act": ("silu",)}, _describe_heads, window="sliding_window"),
    "gpt_neox": Architecture(
        MODEL_ARCH.GPTNEOX,
        {
            **_SHAPE,
            GGUFWriter.add_feed_forward_length: "intermediate_size",
            GGUFWriter.add_layer_norm_eps: "layer_norm_eps",
        },
        {"hidden_act": _GELU, "attention_bias": (True,), "tie_word_embeddings": (False,)},
        _describe_neox,
        _convert_neox,
    ),
    "falcon": Architecture(
        MODEL_ARCH.FALCON,
        {
            **_SHAPE,
            GGUFWriter.add_feed_forward_length: "ffn_hidden_size",
            GGUFWriter.add_layer_norm_eps: "layer_norm_epsilon",
        },
        {"activation": _GELU, "alibi": (False,), "bias": (False,), "parallel_attn": (True,)},
        _describe_falcon,
        _convert_falcon,
    ),
    "mpt": Architecture(
        MODEL_ARCH.MPT,
        {**_SHAPE, GGUFWriter.add_layer_norm_eps: "layer_norm_epsilon"},
        {"no_bias": (True,), "logit_scale": (None,)},
        _describe_mpt,
    ),
}

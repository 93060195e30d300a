"""Which linear layers each architecture has, what they are for, and which of them a user chose to protect.

One table, and the choice made from it by names alone; it has never seen a weight. Which layers share an input, and
thereby a round trip, `sharing` finds out.
"""

import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import Final, Literal, get_args

from transformers import PreTrainedConfig, PreTrainedModel

from confide.errors import ConfideError, ModelNotSupported
from confide.models.linear import first_tied, named_linear
from confide.models.sharing import expert_blocks, shared_inputs, tried_model

Kind = Literal["attention", "mlp", "lm_head"]
_KINDS: tuple[Kind, ...] = get_args(Kind)
_OTHER_STATES: Final = {
    "conv": "the last inputs of a convolution (a state)",
    "hybrid": "a recurrent state in some layers",
    "hybrid_sliding": "a recurrent state in some layers",
    "linear_attention": "a recurrent state",
    "mamba": "a recurrent state",
    "recurrent": "a recurrent state",
}
"""Of transformers' `layer_types`: what layers keep that are no attention."""
_MAX_NAME = 256

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Architecture:
    """blocks: the module list of transformer blocks. attention, mlp: linear layers by their names inside a block."""

    blocks: str
    attention: tuple[str, ...]
    mlp: tuple[str, ...]

    def kinds(self, blocks: int) -> dict[str, Kind]:
        """Full layer names in a model of so many blocks, and what they are for."""
        kinds: dict[str, Kind] = {}
        for block in range(blocks):
            kinds |= {f"{self.blocks}.{block}.{layer}": "attention" for layer in self.attention}
            kinds |= {f"{self.blocks}.{block}.{layer}": "mlp" for layer in self.mlp}
        return kinds


@dataclass(frozen=True)
class LayerGroup:
    """Layers of one model that share an input: full module names, in the order of their stacked matrix."""

    layers: tuple[str, ...]

    @property
    def name(self) -> str:
        """What the layers have in common, then each one's own: such as `model.layers.0.self_attn.q_proj-k_proj`."""
        paths = [layer.split(".") for layer in self.layers]
        shared = len(
            list(takewhile(lambda names: len(set(names)) == 1, zip(*(path[:-1] for path in paths), strict=False)))
        )
        name = ".".join([*paths[0][:shared], "-".join(".".join(path[shared:]) for path in paths)])
        return name if len(name) <= _MAX_NAME else f"{self.layers[0]}-and-{len(self.layers) - 1}-more"[-_MAX_NAME:]

    def only(self, wanted: Callable[[str], object]) -> "LayerGroup":
        """Those of its layers that are wanted."""
        return LayerGroup(tuple(filter(wanted, self.layers)))


_LLAMA = Architecture(
    "model.layers",
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)

ARCHITECTURES = {
    "gpt2": Architecture("transformer.h", ("attn.c_attn", "attn.c_proj"), ("mlp.c_fc", "mlp.c_proj")),
    "gpt_neox": Architecture(
        "gpt_neox.layers",
        ("attention.query_key_value", "attention.dense"),
        ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    ),
    "falcon": Architecture(
        "transformer.h",
        ("self_attention.query_key_value", "self_attention.dense"),
        ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    ),
    "mpt": Architecture("transformer.blocks", ("attn.Wqkv", "attn.out_proj"), ("ffn.up_proj", "ffn.down_proj")),
    "phi": Architecture(
        "model.layers",
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.dense"),
        ("mlp.fc1", "mlp.fc2"),
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
}
"""By transformers' model_type. Fused and separate projections, biases and grouped queries need no more than names."""


@dataclass(frozen=True)
class ModelLayers:
    """The linear layers of a model.

    model: without weights, for shapes. groups: in the order they run. kinds: of each layer by its name. experts: the
    blocks that send each token to some of their experts, whose layers are in none of the groups.
    """

    model: PreTrainedModel
    groups: tuple[LayerGroup, ...]
    kinds: dict[str, Kind]
    experts: tuple[str, ...] = ()

    def select(self, protect: str) -> list[LayerGroup]:
        """The layer groups to protect: kinds with commas between them, `all`, or a regular expression on full names.

        `all` are those of the transformer blocks, without the language-modelling head. A group holds just the layers
        that were chosen; groups without any are left out. Raises ConfideError where the choice is no regular
        expression or matches nothing, ModelNotSupported for a head that is tied to the embedding, and where experts
        are among those that are asked for.
        """
        wanted = self._by_kind(protect) or _pattern(protect)
        if self.experts and self._asks_for_experts(protect, wanted):
            raise ModelNotSupported(
                f"The layers in {self.experts[0]} cannot be protected: this {self.model.config.model_type} model sends "
                "each token to some of its experts, and the server would see to which. Protect its attention alone, "
                "with --protect attention."
            )
        chosen = [group.only(wanted) for group in self.groups]
        chosen = [group for group in chosen if group.layers]
        if not chosen:
            raise ConfideError(
                f"No layer's name matches {protect!r}; they look like {self.groups[0].layers[0]}. "
                "Use all, attention, mlp, lm_head or another regular expression."
            )
        require_untied(self.model, (layer for group in chosen for layer in group.layers))
        return chosen

    def _asks_for_experts(self, protect: str, wanted: Callable[[str], object]) -> bool:
        if self._by_kind(protect) is not None:
            return not {name.strip() for name in protect.split(",")} <= {"attention", "lm_head"}
        inside = tuple(f"{block}." for block in self.experts)
        names = (name for name, _ in self.model.named_modules())
        return any(wanted(name) for name in names if name in self.experts or name.startswith(inside))

    def _by_kind(self, protect: str) -> Callable[[str], object] | None:
        names = {name.strip() for name in protect.split(",")}
        if not names <= {"all", *_KINDS}:
            return None
        kinds = names | {"attention", "mlp"} if "all" in names else names
        return lambda layer: self.kinds[layer] in kinds


def find_layers(config: PreTrainedConfig) -> ModelLayers:
    """Every linear layer of a model, by its configuration alone.

    An architecture that is not in the table is taken apart as far as its linear layers go, with a warning. Raises
    ModelNotSupported for one that keeps another state than a KV cache, for one whose experts cannot be told from its
    other layers, and for unknown variants of an architecture in the table.
    """
    model = tried_model(config)
    _require_cache_only(config, model)
    experts = tuple(expert_blocks(model))
    _require_known_experts(config, experts)
    inputs = shared_inputs(model)
    head = next((name for name, module in model.named_modules() if module is model.get_output_embeddings()), None)
    groups = tuple(map(LayerGroup, inputs))
    called = [layer for group in groups for layer in group.layers]
    architecture = ARCHITECTURES.get(config.model_type)
    if architecture is None:
        _warn_of_unknown(config, len(called))
        kinds = {layer: _guess(layer) for layer in called}
    else:
        kinds = architecture.kinds(config.num_hidden_layers)
        _require_standard(config, kinds.keys() ^ (named_linear(model).keys() - {head}))
    if head in called:
        kinds[head] = "lm_head"
    return ModelLayers(model, groups, kinds, experts)


def require_untied(model: PreTrainedModel, layers: Iterable[str]) -> None:
    """ModelNotSupported where one of the layers' matrix is the embedding's too, which the client must hold."""
    if layer := first_tied(model, layers):
        raise ModelNotSupported(
            f"{layer} cannot be protected in this model: its matrix is the input embedding's too, which the client "
            "holds to look tokens up. Leave it out of --protect, or use a model whose embeddings are not tied."
        )


def _require_cache_only(config: PreTrainedConfig, model: PreTrainedModel) -> None:
    """By what transformers says of it, before anything is tried: with padding such a state would be another."""
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ()) & _OTHER_STATES.keys()
    if kinds or getattr(model, "_is_stateful", False):
        state = _OTHER_STATES[min(kinds)] if kinds else "a recurrent state"
        raise ModelNotSupported(
            f"The architecture {config.model_type!r} cannot be split: it keeps {state} instead of a KV cache, which "
            "padding would spoil, so the server would see how long texts are. Use a transformer."
        )


def _require_known_experts(config: PreTrainedConfig, experts: tuple[str, ...]) -> None:
    names = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    routes = any((getattr(config.get_text_config(), name, None) or 0) > 1 for name in names)
    if routes and (not experts or any("att" in name.rpartition(".")[2] for name in experts)):
        raise ModelNotSupported(
            f"The architecture {config.model_type!r} cannot be split: it sends each token to some of its experts, and "
            "the server would see to which. Use a dense model."
        )


def _require_standard(config: PreTrainedConfig, odd: set[str]) -> None:
    """Otherwise `--protect all` would leave some layers to the client without a word."""
    if odd:
        raise ModelNotSupported(
            f"This {config.model_type} model is a variant whose layer {min(odd)} cannot be protected; "
            "use one with the standard layers."
        )


def _warn_of_unknown(config: PreTrainedConfig, layers: int) -> None:
    _log.warning(
        "The architecture %r is not among those that were tested (%s): its %d linear layers were found without a "
        "table. Compare its answers with the unprotected model's before you rely on it.",
        config.model_type,
        ", ".join(ARCHITECTURES),
        layers,
    )


def _guess(layer: str) -> Kind:
    return "attention" if "att" in layer.lower() else "mlp"


def _pattern(protect: str) -> Callable[[str], object]:
    try:
        return re.compile(protect).search
    except re.error as error:
        raise ConfideError(
            f"{protect!r} is not a regular expression ({error}); use all, attention, mlp, lm_head or a valid one."
        ) from error

"""Which linear layers each architecture has, which of them share an input, and which a user chose to protect.

One table, and the choice made from it by names alone; it has never seen a weight.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedConfig

from confide.errors import ConfideError, ModelNotSupported

Kind = Literal["attention", "mlp"]


@dataclass(frozen=True)
class Role:
    """Layers of one block that read the same activations, by their names inside the block."""

    name: str
    layers: tuple[str, ...]
    kind: Kind


@dataclass(frozen=True)
class Architecture:
    """blocks: the module list of transformer blocks; roles: a block's layer groups, in the order they run."""

    blocks: str
    roles: tuple[Role, ...]


@dataclass(frozen=True)
class LayerGroup:
    """A group of one model: full module names."""

    name: str
    layers: tuple[str, ...]


def _alone(layer: str, kind: Kind) -> Role:
    return Role(layer, (layer,), kind)


ARCHITECTURES = {
    "gpt2": Architecture(
        "transformer.h",
        (
            _alone("attn.c_attn", "attention"),
            _alone("attn.c_proj", "attention"),
            _alone("mlp.c_fc", "mlp"),
            _alone("mlp.c_proj", "mlp"),
        ),
    ),
    "llama": Architecture(
        "model.layers",
        (
            Role("self_attn.qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "attention"),
            _alone("self_attn.o_proj", "attention"),
            Role("mlp.gate_up", ("mlp.gate_proj", "mlp.up_proj"), "mlp"),
            _alone("mlp.down_proj", "mlp"),
        ),
    ),
}


def all_groups(config: PreTrainedConfig) -> list[tuple[LayerGroup, Kind]]:
    """Every layer group of a model, in the order they run; ModelNotSupported for an unknown architecture."""
    architecture = ARCHITECTURES.get(config.model_type)
    if architecture is None:
        raise ModelNotSupported(
            f"The architecture {config.model_type!r} cannot be split yet; use a model of one of these: "
            f"{', '.join(ARCHITECTURES)}."
        )
    groups = []
    for block in range(config.num_hidden_layers):
        for role in architecture.roles:
            prefix = f"{architecture.blocks}.{block}."
            group = LayerGroup(prefix + role.name, tuple(prefix + layer for layer in role.layers))
            groups.append((group, role.kind))
    return groups


def select_groups(config: PreTrainedConfig, protect: str) -> list[LayerGroup]:
    """The layer groups to protect: `all`, `attention`, `mlp`, or a regular expression on full layer names.

    A group holds just the layers that were chosen; groups without any are left out. Raises ModelNotSupported for an
    unknown architecture, ConfideError where the choice is no regular expression or matches nothing.
    """
    groups = all_groups(config)
    if protect == "all":
        return [group for group, _ in groups]
    if protect in ("attention", "mlp"):
        return [group for group, kind in groups if kind == protect]
    matches = _pattern(protect)
    chosen = [LayerGroup(group.name, tuple(filter(matches, group.layers))) for group, _ in groups]
    if not any(group.layers for group in chosen):
        raise ConfideError(
            f"No layer's name matches {protect!r}; they look like {groups[0][0].layers[0]}. "
            "Use all, attention, mlp or another regular expression."
        )
    return [group for group in chosen if group.layers]


def _pattern(protect: str) -> Callable[[str], object]:
    try:
        return re.compile(protect).search
    except re.error as error:
        raise ConfideError(
            f"{protect!r} is not a regular expression ({error}); use all, attention, mlp or a valid one."
        ) from error

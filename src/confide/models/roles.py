"""Which linear layers each architecture has, and which of them share an input and so form one layer group."""

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from confide.errors import ModelNotSupported

ATTENTION, MLP = "attention", "mlp"


@dataclass(frozen=True)
class Role:
    """A group's layers by their names inside a transformer block, in calling order; the first names the group."""

    kind: str
    layers: tuple[str, ...]


ROLES: dict[str, tuple[Role, ...]] = {
    "gpt2": (
        Role(ATTENTION, ("attn.c_attn",)),
        Role(ATTENTION, ("attn.c_proj",)),
        Role(MLP, ("mlp.c_fc",)),
        Role(MLP, ("mlp.c_proj",)),
    ),
    "llama": (
        Role(ATTENTION, ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        Role(ATTENTION, ("self_attn.o_proj",)),
        Role(MLP, ("mlp.gate_proj", "mlp.up_proj")),
        Role(MLP, ("mlp.down_proj",)),
    ),
}
"""Module roles by `model_type`."""


@dataclass(frozen=True)
class LinearGroup:
    """A layer group of one model: full module names of linear layers that share an input."""

    name: str
    layers: tuple[str, ...]


def protected_groups(model: PreTrainedModel, protect: str) -> list[LinearGroup]:
    """The layer groups to protect, in calling order.

    protect: `all`, `attention`, `mlp`, or a regular expression searched for in the layers' full names.
    ModelNotSupported where the architecture is unknown or nothing matches.
    """
    model_type = str(model.config.model_type)
    if model_type not in ROLES:
        raise ModelNotSupported(
            f"The architecture {model_type!r} is not known; known ones are {', '.join(sorted(ROLES))}."
        )
    groups = []
    for block, role in _blocks(model, ROLES[model_type]):
        names = tuple(name for layer in role.layers if _chosen(name := f"{block}.{layer}", role.kind, protect))
        if names:
            groups.append(LinearGroup(names[0], names))
    if not groups:
        raise ModelNotSupported(f"No layer of this model matches {protect!r}; use all, attention, mlp or a layer's name.")
    return groups


def _blocks(model: PreTrainedModel, roles: tuple[Role, ...]) -> list[tuple[str, Role]]:
    """Every (block name, role) of the model, in module order, which is calling order."""
    suffixes = {layer: (place, role) for place, role in enumerate(roles) for layer in role.layers}
    found: dict[str, set[int]] = defaultdict(set)
    for name, module in model.named_modules():
        for suffix, (place, _) in suffixes.items():
            if name.endswith(f".{suffix}") and isinstance(module, nn.Linear | Conv1D):
                found[name.removesuffix(f".{suffix}")].add(place)
    return [(block, roles[place]) for block, places in found.items() for place in sorted(places)]


def _chosen(name: str, kind: str, protect: str) -> bool:
    if protect in ("all", ATTENTION, MLP):
        return protect in ("all", kind)
    try:
        return re.search(protect, name) is not None
    except re.error as error:
        raise ModelNotSupported(f"{protect!r} is not a regular expression ({error}); use all, attention or mlp.") from error


def linear_weight(module: nn.Module) -> Tensor:
    """A linear layer's matrix as (outputs, inputs), whichever way the module stores it."""
    weight = cast(Tensor, module.weight)
    return weight.t() if isinstance(module, Conv1D) else weight

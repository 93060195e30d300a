"""Which linear layers of a model read the same activations, found by running the model without weights.

Layers that are called on one and the same tensor share a layer group, hence a round trip. One forward pass on the
`meta` device, which has shapes and no numbers, tells them apart for any architecture; it takes milliseconds a block
and no memory.
"""

import copy
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from confide.errors import ModelNotSupported
from confide.models.linear import named_linear


def empty_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The architecture of a configuration: stock, in float32, on the meta device, in evaluation mode."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    return cast(PreTrainedModel, model.eval())


def expert_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that send each token to some of their experts, by their full names; none within another."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        routes = any(child in ("experts", "router") for child, _ in module.named_children())
        if routes and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    return found


def tried_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The empty model of a configuration as `shared_inputs` can run it."""
    # The other attention implementations look at the mask's numbers.
    config = copy.deepcopy(config)
    config._attn_implementation = "eager"
    return empty_model(config)


def shared_inputs(model: PreTrainedModel) -> list[tuple[str, ...]]:
    """The names of a model's linear layers: those with one input together, in the order they run.

    model: see `tried_model`. Layers inside `expert_blocks` are left out: which of them run, and how often, only numbers
    say. Raises ModelNotSupported where a forward pass fails without numbers, or runs a layer more than once.
    """
    config = model.config
    calls: list[tuple[Tensor, str]] = []  # holds the tensors: an address must not be given out twice
    for name, module in named_linear(model).items():
        module.register_forward_pre_hook(partial(_note, calls, name))
    ids = torch.zeros(1, 2, dtype=torch.long, device="meta")
    experts = expert_blocks(model).values()
    for block in experts:
        block.forward = _passed_over
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    except Exception as error:  # whatever code that was never tried here stumbles over
        raise ModelNotSupported(
            f"The architecture {config.model_type!r} cannot be split: which of its layers share an input cannot be "
            f"found out, because a trial run without weights fails ({type(error).__name__}). Use a model of another "
            "architecture."
        ) from error
    finally:
        for block in experts:
            del block.forward
    return _grouped(config.model_type, calls)


def _passed_over(hidden: Tensor, *_: object, **__: object) -> Tensor:
    return torch.empty_like(hidden)


def _note(calls: list[tuple[Tensor, str]], name: str, _: nn.Module, args: tuple[Tensor, ...]) -> None:
    calls.append((args[0], name))


def _grouped(model_type: str, calls: list[tuple[Tensor, str]]) -> list[tuple[str, ...]]:
    groups: dict[int, list[str]] = {}
    seen: set[str] = set()
    for given, name in calls:
        if name in seen:
            raise ModelNotSupported(
                f"The architecture {model_type!r} cannot be split: it runs the layer {name} more than once for a "
                "token, and a mask hides one input only. Use a model of another architecture."
            )
        seen.add(name)
        groups.setdefault(id(given), []).append(name)
    return [tuple(names) for names in groups.values()]

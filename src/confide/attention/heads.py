"""Chosen heads of a stock GPT-2 attention module, computed by something else in their place.

The module itself stays as it is: what enters it is noted, and what enters its output projection is exchanged where the
chosen heads have their columns. The other heads and the projection are computed in the clear, as ever.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

from confide.errors import ModelNotSupported, WrongMode

ComputeHeads = Callable[[Tensor], Tensor]
"""Context vectors of the chosen heads, (tokens, heads * head width), of one text's block inputs, (tokens, width).

Inputs are those of the attention module, after the block's first norm.
"""

Heads = Sequence[int] | Literal["all"]


def attention_module(model: PreTrainedModel, layer: int) -> GPT2Attention:
    """The attention module of a block of a GPT-2. Raises ModelNotSupported where there is none."""
    config = model.config
    if config.model_type != "gpt2" or config.add_cross_attention:
        raise ModelNotSupported(
            f"Encrypted attention is for GPT-2 and models of its shape, not for {config.model_type!r}; use such a one."
        )
    if not 0 <= layer < config.num_hidden_layers:
        last = config.num_hidden_layers - 1
        raise ModelNotSupported(f"The model has no layer {layer}; choose layers from 0 to {last}.")
    attention = cast(GPT2Attention, model.get_submodule(f"transformer.h.{layer}.attn"))
    if attention.scaling != attention.head_dim**-0.5:
        raise ModelNotSupported("This GPT-2 scales its scores otherwise than stock ones; use one that does not.")
    return attention


def chosen_heads(config: PreTrainedConfig, heads: Heads) -> tuple[int, ...]:
    """The heads' numbers, ascending. Raises ModelNotSupported for heads that the model lacks."""
    every = range(config.num_attention_heads)
    chosen = tuple(every) if heads == "all" else tuple(sorted(set(heads)))
    if not chosen or not set(chosen) <= set(every):
        raise ModelNotSupported(f"The model has heads 0 to {every[-1]} in each layer; choose among them, or `all`.")
    return chosen


class ReplacedHeads:
    """Has some heads of an attention module computed by `compute`, until `remove` is called.

    Texts of a batch go through one after the other. They must have no padding, and there is no KV cache.
    """

    def __init__(self, attention: GPT2Attention, heads: Sequence[int], compute: ComputeHeads) -> None:
        self._compute = compute
        width = attention.head_dim
        self._columns = [head * width + column for head in heads for column in range(width)]
        self._inputs: Tensor | None = None
        self._hooks = (
            attention.register_forward_pre_hook(self._note, with_kwargs=True),
            attention.c_proj.register_forward_pre_hook(self._exchange),
        )

    def remove(self) -> None:
        """Leave the module as it was."""
        for hook in self._hooks:
            hook.remove()

    def _note(self, _: nn.Module, args: tuple[Tensor, ...], options: dict[str, Any]) -> None:
        if options.get("past_key_values") is not None:
            raise WrongMode("Heads that are computed elsewhere keep no KV cache; call the model with use_cache=False.")
        self._inputs = args[0]

    def _exchange(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        (context,), inputs = args, self._inputs
        assert inputs is not None  # noqa: S101 - the projection is called by the attention module alone
        self._inputs = None
        context = context.clone()
        for text, row in zip(inputs, context, strict=True):
            row[:, self._columns] = self._compute(text).to(row)
        return (context,)


@torch.inference_mode()
def attention_inputs(
    model: PreTrainedModel, modules: Mapping[int, GPT2Attention], texts: Sequence[Sequence[int]]
) -> dict[int, list[Tensor]]:
    """What attention modules, by layer, read while the model runs: (tokens, width) for each text of token ids."""
    found: dict[int, list[Tensor]] = {layer: [] for layer in modules}

    def note(layer: int, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        found[layer].append(args[0][0])

    with ExitStack() as hooks:
        for layer, module in modules.items():
            hooks.enter_context(module.register_forward_pre_hook(functools.partial(note, layer)))
        for ids in texts:
            model(torch.tensor([ids], device=model.device), use_cache=False)
    return found

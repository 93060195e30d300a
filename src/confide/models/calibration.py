"""Calibration: what a model's linear layers read while it runs on given text, for rounding to few bits.

The moments say which weights matter, and which make up for each other; see `quantize_weights`. Their diagonal alone is
what llama.cpp calls an importance matrix.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from confide.errors import ConfideError, InvalidActivation
from confide.models.context import longest_context
from confide.models.linear import linear_weights
from confide.models.roles import LayerGroup

Moments = Mapping[str, Tensor]
"""The mean of x x^T over a layer's inputs x, float32 (columns, columns), by its full name; a group shares one."""

OnTokens = Callable[[int], None]
"""Called with the tokens that the model has run on so far."""


_CONTEXT: Final = 512
"""Tokens at most that are run at a time; what a layer reads hardly depends on more."""


def cut(model: PreTrainedModel, texts: Iterable[Tensor]) -> Iterator[Tensor]:
    """Texts, token ids int64 (..., tokens), in pieces that the model has the context for."""
    context = min(longest_context(model.config) or _CONTEXT, _CONTEXT)
    return (part for ids in texts for part in ids.split(context, dim=-1) if part.numel())


def collect(
    model: PreTrainedModel, chosen: Sequence[LayerGroup], inputs: Iterable[Tensor], progress: OnTokens | None = None
) -> Moments:
    """Run a stock model on texts and note the moments of what its chosen layers read.

    inputs: token ids, int64 (texts, tokens) or (tokens,), at least one and at most the model's context long, without
    padding; one tensor at a time is held and run. Some thousand tokens are enough. Memory: 4 columns^2 bytes for each
    group, together 0.8 to 1.6 times the layers' weights in float32; so choose only groups that get less than 8 bits.
    An exception from `inputs` or `progress`, or an interrupt, ends it and leaves the model as it was.
    Raises ConfideError without any token, InvalidActivation where an activation is not finite.
    """
    sums = [_zeros(model, group) for group in chosen]
    # a group's layers share their inputs, so the first stands for all
    adders = {group.layers[0]: partial(_add_moments, total) for group, total in zip(chosen, sums, strict=True)}
    _run(model, adders, sums, inputs, progress)
    return {layer: mean for group, mean in zip(chosen, sums, strict=True) for layer in group.layers}


def collect_squares(
    model: PreTrainedModel, layers: Iterable[str], inputs: Iterable[Tensor], progress: OnTokens | None = None
) -> dict[str, Tensor]:
    """As `collect`, of linear layers: by their names the mean square of each column, float32 (columns,)."""
    sums = {
        layer: torch.zeros(linear_weights(model.get_submodule(layer)).shape[1], device=model.device) for layer in layers
    }
    _run(model, {layer: partial(_add_squares, total) for layer, total in sums.items()}, sums.values(), inputs, progress)
    return sums


@torch.no_grad()
def _run(
    model: PreTrainedModel,
    adders: Mapping[str, Callable[[Tensor], object]],
    sums: Collection[Tensor],
    inputs: Iterable[Tensor],
    progress: OnTokens | None,
) -> None:
    """Add what layers read, float32 (tokens, columns), to sums, which become means over tokens."""
    tokens = 0
    with _noted(model, adders):
        for ids in inputs:
            model(input_ids=ids.reshape(-1, ids.shape[-1]).to(model.device), use_cache=False)
            tokens += ids.numel()
            if progress:
                progress(tokens)
    if not tokens:
        raise ConfideError("There is nothing to calibrate on; give token ids of some text, best a few thousand.")
    if not all(bool(total.isfinite().all()) for total in sums):
        raise InvalidActivation(
            "An activation is infinite or not a number on this text; check that the unquantized model works on it."
        )
    for total in sums:
        total /= tokens


def _zeros(model: PreTrainedModel, group: LayerGroup) -> Tensor:
    weights = linear_weights(model.get_submodule(group.layers[0]))
    return torch.zeros(weights.shape[1], weights.shape[1], device=weights.device)


@contextmanager
def _noted(model: PreTrainedModel, adders: Mapping[str, Callable[[Tensor], object]]) -> Iterator[None]:
    """Meanwhile each layer's inputs are handed to its adder."""

    def read(add: Callable[[Tensor], object], _: nn.Module, args: tuple[Tensor, ...]) -> None:
        add(args[0].reshape(-1, args[0].shape[-1]).float())

    with ExitStack() as hooks:
        for layer, add in adders.items():
            hooks.enter_context(model.get_submodule(layer).register_forward_pre_hook(partial(read, add)))
        yield


def _add_moments(total: Tensor, x: Tensor) -> None:
    total.addmm_(x.t(), x)


def _add_squares(total: Tensor, x: Tensor) -> None:
    total.add_(x.square().sum(0))

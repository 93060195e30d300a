"""Calibration: what a model's linear layers read while it runs on given text, for rounding to few bits.

The moments say which weights matter, and which make up for each other; see `quantize_weights`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from confide.errors import ConfideError, InvalidActivation
from confide.models.linear import linear_weights
from confide.models.roles import LayerGroup

Moments = Mapping[str, Tensor]
"""The mean of x x^T over a layer's inputs x, float32 (columns, columns), by its full name; a group shares one."""

OnTokens = Callable[[int], None]
"""Called with the tokens that the model has run on so far."""


@torch.no_grad()
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
    tokens = 0
    with _noted(model, chosen, sums):
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
    return {layer: mean for group, mean in zip(chosen, sums, strict=True) for layer in group.layers}


def _zeros(model: PreTrainedModel, group: LayerGroup) -> Tensor:
    weights = linear_weights(model.get_submodule(group.layers[0]))
    return torch.zeros(weights.shape[1], weights.shape[1], device=weights.device)


@contextmanager
def _noted(model: PreTrainedModel, chosen: Sequence[LayerGroup], sums: Sequence[Tensor]) -> Iterator[None]:
    """Meanwhile each group's inputs are added to its sum. Its layers share them, so the first stands for all."""
    with ExitStack() as hooks:
        for group, total in zip(chosen, sums, strict=True):
            layer = model.get_submodule(group.layers[0])
            hooks.enter_context(layer.register_forward_pre_hook(partial(_add, total)))
        yield


def _add(total: Tensor, _: nn.Module, args: tuple[Tensor, ...]) -> None:
    x = args[0].reshape(-1, len(total)).float()
    total.addmm_(x.t(), x)

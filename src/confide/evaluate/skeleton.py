"""The skeleton of a model, everything but its linear layers: what a client computes however much is protected.

It is built from the configuration and runs on made-up numbers, so that its time is known before any weight is there.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from confide.evaluate.cost_model import SkeletonTimes
from confide.models.linear import linear_weights, named_linear
from confide.models.sharing import empty_model

STEPS = 15
"""Steps of decoding measured."""
PROMPTS = 3


class _NoLinear(nn.Module):
    """Zeros of a linear layer's shape."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self._rows = rows

    def forward(self, x: Tensor) -> Tensor:
        """x (..., columns) -> (..., rows)."""
        return x.new_zeros(*x.shape[:-1], self._rows)


def time_skeleton(config: PreTrainedConfig, prompt: int) -> SkeletonTimes:
    """Median seconds of a skeleton's prompt of so many tokens, and of a step of decoding after it."""
    model = without_linear(config)
    with torch.inference_mode():
        ids = torch.zeros(1, prompt, dtype=torch.long)
        first = [timed(lambda: model(ids, use_cache=True, logits_to_keep=1)) for _ in range(PROMPTS)]
        cache = first[-1][1].past_key_values
        steps = [timed(lambda: model(ids[:, :1], past_key_values=cache, use_cache=True))[0] for _ in range(STEPS)]
    return SkeletonTimes(statistics.median(steps), statistics.median(seconds for seconds, _ in first), prompt)


def without_linear(config: PreTrainedConfig) -> PreTrainedModel:
    """A model of this configuration whose linear layers give zeros, and that has no weights of anybody's."""
    model = empty_model(config)
    for name, layer in named_linear(model).items():
        model.set_submodule(name, _NoLinear(len(linear_weights(layer))))
    _materialise(model)
    return model


def _materialise(model: PreTrainedModel) -> None:
    """Give the model memory, and numbers where it computes with them; of the embedding only one row is read."""
    embedding = model.get_input_embeddings().weight
    model.to_empty(device="cpu")
    model.eval()
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.shape == embedding.shape:
            tensor[:1].detach().zero_()
        else:
            tensor.detach().fill_(1)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that a call took, and what it returned."""
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result

"""Which type a model is computed in where nobody says: the one whose products take least time here, by measurement.

Processors differ by ten times and both ways: with AMX bfloat16 is the fastest there is, and where nothing is made for
it, it takes nine times as long as float32. Knows no model: one layer as wide as the model's stands for it.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import linear

from confide.enclave.engines.engine import Dtype

TORCH_DTYPES: Final[Mapping[Dtype, torch.dtype]] = {Dtype.F32: torch.float32, Dtype.BF16: torch.bfloat16}
"""Those that a measurement chooses from. int8 changes answers by more than a rounding, so it is asked for by name."""
GAIN: Final = 0.8
"""The share of float32's time that bfloat16 has to stay below: it rounds, and a measurement is not exact."""
_PROMPT: Final = 32
"""Tokens of a prompt in one product."""
_PROMPT_SHARE: Final = 8
"""Tokens of prompts to one of an answer: 1,024 to 128, as in Chrapek et al. (arXiv 2509.18886)."""
_LAYER: Final = 1 << 22
_STREAMED: Final = 1 << 24
"""Weights that a token of an answer goes through, 64 MiB in float32: they come from memory and not from a cache."""
_ENOUGH: Final = 0.1
"""Seconds of one product, after which it is not measured again; twice it is in any case, the first time warms up."""
_RUNS: Final = 4

_log = logging.getLogger(__name__)


def fastest_dtype(width: int) -> Dtype:
    """By a measurement of less than a second, for a model of so many features, on this thread's processors."""
    seconds = {dtype: _token_seconds(kind, width) for dtype, kind in TORCH_DTYPES.items()}
    chosen = faster(seconds)
    times = ", ".join(f"{dtype} {1e3 * taken:.1f} ms" for dtype, taken in seconds.items())
    _log.info("The model is computed in %s, by a measurement of one layer: %s", chosen, times)
    return chosen


def faster(seconds: Mapping[Dtype, float]) -> Dtype:
    """float32, unless another type takes less than `GAIN` of its time; then the one that takes least."""
    best = min(seconds, key=seconds.__getitem__)
    return best if seconds[best] < GAIN * seconds[Dtype.F32] else Dtype.F32


def _token_seconds(dtype: torch.dtype, width: int) -> float:
    """Of a token of an answer, and of its share of the prompt, through `_STREAMED` weights."""
    width = min(width, _LAYER)
    weights = torch.ones(_STREAMED // width, width, dtype=dtype)  # no zeros, and nothing that is no number
    layer = weights[: _LAYER // width]
    prompt, token = torch.ones(_PROMPT, width, dtype=dtype), torch.ones(1, width, dtype=dtype)
    with torch.inference_mode():
        prefill = shortest(lambda: linear(prompt, layer)) * weights.numel() / layer.numel() / _PROMPT
        return shortest(lambda: linear(token, weights)) + _PROMPT_SHARE * prefill


def shortest(product: Callable[[], Tensor], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of the shortest of `_RUNS` runs; of fewer, two at least, where they take `_ENOUGH` seconds together."""
    runs: list[float] = []
    while len(runs) < 2 or (len(runs) < _RUNS and sum(runs) < _ENOUGH):
        started = clock()
        product()
        runs.append(clock() - started)
    return min(runs)

"""Which type a model is computed in where nobody says: the one whose products take least time here, by measurement.

Processors differ by ten times and both ways: with AMX bfloat16 is the fastest there is, and where nothing is made for
it, it takes three times as long as float32, or thirty where a matrix lies the other way round. So what is timed is a
matrix of the model's own shape and order, and no model.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from confide.enclave.engines.engine import Dtype
from confide.enclave.engines.transformers_engine import PREFILL
from confide.models.linear import linear_shape, named_linear

TORCH_DTYPES: Final[Mapping[Dtype, torch.dtype]] = {Dtype.F32: torch.float32, Dtype.BF16: torch.bfloat16}
"""Those that a measurement chooses from, the exact one first. int8 rounds far more, so it is asked for by name."""
GAIN: Final = 0.8
"""The share of float32's time that bfloat16 has to stay below: it rounds, and a measurement is not exact."""
_PROMPT_SHARE: Final = 8
"""Tokens of prompts to one of an answer: 1,024 to 128, as in Chrapek et al. (arXiv 2509.18886)."""
_TOGETHER: Final = 8
"""Answers whose next tokens are computed at once where several users ask: in one type as slow as many lone tokens, in
another as fast as one."""
_WIDEST: Final = 1 << 14
_LAYER: Final = 1 << 20
_STREAMED: Final = 1 << 24
"""Weights that a token of an answer goes through, 64 MiB in float32: they come from memory and not from a cache."""
_ENOUGH: Final = 0.05
"""Seconds of one product, after which it is not measured again; twice it is, the first time warms up."""
_RUNS: Final = 4
_HOPELESS: Final = 3
"""Times what it has to stay below: what takes so long warming up is not run again."""

_log = logging.getLogger(__name__)


def fastest_dtype(model: PreTrainedModel) -> Dtype:
    """By a measurement of less than a second on this thread's processors. model: may be without weights."""
    head = model.get_output_embeddings()  # which a prompt goes through once, and its other layers with every token
    shapes = [
        (math.prod(shape), shape[1], isinstance(layer, Conv1D))
        for layer in named_linear(model).values()
        if layer is not head and (shape := linear_shape(layer))
    ]
    if not shapes:
        return Dtype.F32
    _, columns, other_way = max(shapes)
    seconds = {Dtype.F32: token_seconds(torch.float32, columns, other_way=other_way)}
    seconds[Dtype.BF16] = token_seconds(torch.bfloat16, columns, other_way=other_way, most=seconds[Dtype.F32])
    chosen = faster(seconds)
    times = ", ".join(f"{dtype} {1e3 * taken:.1f} ms" for dtype, taken in seconds.items())
    _log.info("The model is computed in %s, by a measurement of one layer: %s", chosen, times)
    return chosen


def faster(seconds: Mapping[Dtype, float]) -> Dtype:
    """float32, unless another type takes less than `GAIN` of its time; then the one that takes least."""
    best = min(seconds, key=seconds.__getitem__)
    return best if seconds[best] < GAIN * seconds[Dtype.F32] else Dtype.F32


def token_seconds(dtype: torch.dtype, columns: int, *, other_way: bool, most: float = math.inf) -> float:
    """Of an answer's share of its prompt, a lone token and a step of `_TOGETHER` answers, or a part from `most` on.

    All of them go through `_STREAMED` weights.

    other_way: whether matrices are (columns, rows), as GPT-2's are.
    """

    def pass_seconds(tokens: int, weights: int, most: float) -> float:
        return _STREAMED * product_seconds(
            dtype, columns, tokens, weights, other_way=other_way, most=most * weights / _STREAMED
        )

    each = _PROMPT_SHARE / PREFILL
    seconds = each * pass_seconds(PREFILL, _LAYER, most / each)
    for tokens in (1, _TOGETHER):
        if seconds < most:
            seconds += pass_seconds(tokens, _STREAMED, most)
    return seconds


def product_seconds(
    dtype: torch.dtype, columns: int, tokens: int, weights: int, *, other_way: bool, most: float = math.inf
) -> float:
    """Of so many tokens with a matrix of so many weights, for each of these.

    other_way: whether matrices are (columns, rows), as GPT-2's are. most: seconds of the product above which nobody
    wants to know exactly.
    """
    columns = min(columns, _WIDEST)
    rows = weights // columns
    x = torch.ones(tokens, columns, dtype=dtype)
    with torch.inference_mode():
        matrix = torch.ones(columns, rows, dtype=dtype) if other_way else torch.ones(rows, columns, dtype=dtype)
        return shortest((lambda: x @ matrix) if other_way else (lambda: linear(x, matrix)), most) / matrix.numel()


def shortest(
    product: Callable[[], Tensor], most: float = math.inf, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of the shortest of `_RUNS` runs; of fewer, where they take `_ENOUGH` seconds or are far above `most`."""
    runs: list[float] = []
    while not runs or (len(runs) < 2 and runs[0] < _HOPELESS * most) or (len(runs) < _RUNS and sum(runs) < _ENOUGH):
        started = clock()
        product()
        runs.append(clock() - started)
    return min(runs)

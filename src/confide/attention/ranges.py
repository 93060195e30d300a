"""Calibration: in which ranges the polynomials must hold, measured on float runs."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from confide.attention import reference
from confide.attention.shape import AttentionShape
from confide.attention.weights import AttentionWeights
from confide.errors import EvaluationError

SCORE_MARGIN = 1.25
"""How much wider than measured the range of scores is made."""
SUM_MARGIN = 1.5
"""How much further than measured a sum of exponentials may lie, up or down."""
SMALLEST_HALF_RANGE = 0.25
"""Of scores: below it a narrower range saves no level."""


@dataclass(frozen=True)
class Ranges:
    """Where scores and sums lie, keys being centred at key_centre, (heads, head_width).

    A score s of head h satisfies |s - centre[h]| <= half_range[h]. The sum over keys of exp(s - centre[h]), of head h
    and token t, lies between sum_low[h][t] and sum_high[h][t]. The first token is left out: it attends to one key
    only, so that its softmax is 1 whatever the score; its sum is set to 1.
    """

    key_centre: tuple[tuple[float, ...], ...]
    centre: tuple[float, ...]
    half_range: tuple[float, ...]
    sum_low: tuple[tuple[float, ...], ...]
    sum_high: tuple[tuple[float, ...], ...]

    @property
    def sum_ratio(self) -> float:
        """The largest ratio between the ends of a sum's range."""
        return float(np.max(np.asarray(self.sum_high) / np.asarray(self.sum_low)))

    def widened(self, half_range: float, sum_ratio: float) -> "Ranges":
        """Every range as wide as the polynomials allow: what costs nothing keeps more texts inside."""
        low, high = np.array(self.sum_low), np.array(self.sum_high)
        middle, reach = np.sqrt(low * high), np.sqrt(sum_ratio)
        return replace(
            self,
            half_range=_rounded(np.full(len(self.half_range), half_range)),
            sum_low=tuple(map(_rounded, middle / reach)),
            sum_high=tuple(map(_rounded, middle * reach)),
        )


def calibrate(inputs: Iterable[NDArray[np.float64]], weights: AttentionWeights, shape: AttentionShape) -> Ranges:
    """Ranges from float runs on inputs (tokens, width), as they come out of the layer norm, widened by the margins.

    Raises EvaluationError where no input has as many tokens as the shape.
    """
    runs = [x[: shape.tokens] for x in inputs if len(x) > 1]
    if not any(len(x) == shape.tokens for x in runs):
        raise EvaluationError(
            f"No text for calibration has {shape.tokens} tokens; give longer texts or compile for fewer tokens."
        )
    keys = np.concatenate([reference.projections(x, weights)[1] for x in runs], axis=1)
    key_centre = tuple(map(_rounded, keys.mean(axis=1)))
    centred = weights.with_centred_keys(np.array(key_centre))
    measured = [reference.scores(x, centred) for x in runs]
    high = np.max([scores[:, 1:].max(axis=(1, 2)) for scores in measured], axis=0)
    low = np.min(
        [-(-scores[:, 1:]).max(axis=(1, 2), where=scores[:, 1:] > -np.inf, initial=-np.inf) for scores in measured],
        axis=0,
    )
    centre = (low + high) / 2
    half_range = np.maximum((high - low) / 2 * SCORE_MARGIN, SMALLEST_HALF_RANGE)
    sum_low = np.full((shape.heads, shape.tokens), np.inf)
    sum_high = np.zeros((shape.heads, shape.tokens))
    for scores in measured:
        sums = np.exp(scores - centre[:, None, None]).sum(axis=-1)
        rows = slice(sums.shape[1])
        sum_low[:, rows] = np.minimum(sum_low[:, rows], sums / SUM_MARGIN)
        sum_high[:, rows] = np.maximum(sum_high[:, rows], sums * SUM_MARGIN)
    sum_low[:, 0] = sum_high[:, 0] = 1
    return Ranges(
        key_centre=key_centre,
        centre=_rounded(centre),
        half_range=_rounded(half_range),
        sum_low=tuple(map(_rounded, sum_low)),
        sum_high=tuple(map(_rounded, sum_high)),
    )


def _rounded(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values)

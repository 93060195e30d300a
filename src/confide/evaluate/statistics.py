"""Confidence intervals of what was measured window by window.

Tokens of one window share a context, and hence their errors: an interval that took them for independent draws, such as
Wilson's for a share, would be too narrow. Windows are nearly independent. So windows are what is resampled (a cluster
bootstrap: Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8), whatever the measure.
Questions with one answer each are independent, and there Wilson's is the interval.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 10_000
_CHUNK = 500
"""Resamples taken at a time, which bounds the memory."""
SEED = 20_240_229
"""Fixed, so that the same results have the same intervals."""


@dataclass(frozen=True)
class Estimate:
    """A measured value and its 95% confidence interval."""

    value: float
    low: float
    high: float

    def exp(self) -> "Estimate":
        """e to the power of each; exp is monotone, so the interval stays one."""
        return Estimate(math.exp(self.value), math.exp(self.low), math.exp(self.high))


def mean_per_token(sums: Sequence[float], tokens: Sequence[int]) -> Estimate:
    """The mean of something over all tokens, from its sum and the number of tokens in each of two or more windows.

    The interval is the percentile bootstrap's over windows (RESAMPLES resamples). Give differences between two models
    on the same windows, and it is the interval of a paired comparison, in which the windows' own difficulty cancels.
    With fewer than some twenty windows it is too narrow, and where all windows have the same mean its width is zero.
    """
    totals, counts = np.asarray(sums, np.float64), np.asarray(tokens, np.float64)
    if len(totals) < 2 or totals.shape != counts.shape:
        raise ValueError(f"sums and tokens of the same two or more windows, not {totals.shape} and {counts.shape}")
    draws = _draws(len(totals))
    parts = (draws[start : start + _CHUNK].astype(np.float64) for start in range(0, RESAMPLES, _CHUNK))
    means = np.concatenate([(part @ totals) / (part @ counts) for part in parts])
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(float(totals.sum() / counts.sum()), float(low), float(high))


def wilson(successes: int, trials: int) -> Estimate:
    """The share of successes in independent trials, with Wilson's score interval.

    Source: E. B. Wilson, Probable Inference, the Law of Succession, and Statistical Inference, 1927.
    """
    if not 0 <= successes <= trials or not trials:
        raise ValueError(f"{successes} successes in {trials} trials")
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    share, weight = successes / trials, z * z / trials
    centre = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt((share * (1 - share) + weight / 4) / trials) / (1 + weight)
    # At 0 and at 1 the interval ends there, which rounding may miss.
    return Estimate(share, min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half)))


@functools.lru_cache(maxsize=1)
def _draws(windows: int) -> NDArray[np.uint8]:
    """How often each window is in each resample: (RESAMPLES, windows). More than 255 times does not happen."""
    generator = np.random.default_rng(SEED)
    even = np.full(windows, 1 / windows)
    draws = np.empty((RESAMPLES, windows), np.uint8)
    for start in range(0, RESAMPLES, _CHUNK):
        draws[start : start + _CHUNK] = generator.multinomial(windows, even, size=_CHUNK)
    return draws

"""What is said of timed runs: a mean and its interval, and how much longer one machine takes than another.

Runs are taken for independent draws, and resampled one by one (the percentile bootstrap: Efron and Tibshirani, An
Introduction to the Bootstrap, 1993, section 13.3). Drift within a machine is not in these intervals.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from confide.evaluate.statistics import CONFIDENCE, Estimate

MOST_DEVIATIONS: Final = 3.0
RESAMPLES: Final = 2_000
_CHUNK: Final = 100
"""Resamples taken at a time, which bounds the memory."""
_SEED: Final = 20_240_229
"""Fixed, so that the same runs have the same intervals."""


@dataclass(frozen=True)
class Sample:
    """Runs of one kind, without those that lie too far out. dropped: how many these were."""

    values: tuple[float, ...]
    dropped: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Sample":
        """Leave out, once, what is more than MOST_DEVIATIONS standard deviations from the mean: |z| > 3.

        Of ten runs or fewer none can be so far out, since |z| is at most (n - 1) / sqrt(n).
        """
        found = np.asarray(values, np.float64)
        deviation = float(found.std(ddof=1)) if len(found) > 1 else 0.0
        far = np.abs(found - found.mean()) > MOST_DEVIATIONS * deviation if deviation else np.zeros(len(found), bool)
        return cls(tuple(found[~far].tolist()), int(far.sum()))

    def mean(self) -> Estimate:
        """Of the runs that are left. Of a single one the interval has no width, and says nothing."""
        means = self._resampled(np.random.default_rng(_SEED))
        return _estimate(float(np.mean(self.values)), means)

    def over(self, baseline: "Sample") -> Estimate:
        """By what share this mean exceeds the baseline's: 0.05 for five percent more."""
        generator = np.random.default_rng(_SEED)
        mine, theirs = self._resampled(generator), baseline._resampled(generator)
        return _estimate(float(np.mean(self.values) / np.mean(baseline.values) - 1), mine / theirs - 1)

    def _resampled(self, generator: np.random.Generator) -> NDArray[np.float64]:
        """Means of RESAMPLES resamples."""
        values = np.asarray(self.values, np.float64)
        even = np.full(len(values), 1 / len(values))
        parts = (generator.multinomial(len(values), even, size=_CHUNK) @ values for _ in range(RESAMPLES // _CHUNK))
        return np.concatenate(list(parts)) / len(values)


def _estimate(value: float, draws: NDArray[np.float64]) -> Estimate:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))

"""What the client reads out of decrypted slots: context vectors, and whether the calibrated ranges held."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confide.attention import layout
from confide.attention.plan import Plan
from confide.errors import OutsideCalibration

NOISE_TOLERANCE = 1e-3
"""How far beyond its range a decrypted number may lie for the scheme's noise alone."""


@dataclass(frozen=True)
class Result:
    """Context vectors and how the ranges held.

    `context` is float64 (tokens, heads * head_width), before the output projection. `largest_score` is the largest
    |score - centre| / half_range, `largest_sum` the largest |sum - middle| in units of half the sum's range; both
    are at most 1 where the calibration holds. The client reads them from every score and every sum of the run.
    """

    context: NDArray[np.float64]
    largest_score: float
    largest_sum: float

    @classmethod
    def from_slots(
        cls, context: NDArray[np.complex128], checks: NDArray[np.complex128], tokens: int, plan: Plan
    ) -> "Result":
        """Reads the slots of the circuit's outputs for an input of this many tokens."""
        rows = slice(tokens)
        distances = np.arange(plan.shape.token_slots)
        attended = distances[None, :] <= np.arange(tokens)[:, None]
        attended[0] = False  # its exponential is constant
        scores = layout.unpack_scores(checks.real, plan.shape)[:, rows][:, attended]
        # Sums come divided by the spread, which makes their range 1 / spread - 1 to 1 / spread + 1.
        second = (checks / layout.unit(len(checks))).real
        sums = layout.unpack_sums(second, plan.shape)[:, rows] - 1 / plan.inverse.spread
        return cls(
            context=layout.unpack_output(context.real, plan.shape)[rows],
            largest_score=float(np.abs(scores).max(initial=0)),
            largest_sum=float(np.abs(sums).max()),
        )

    @property
    def in_range(self) -> bool:
        """Whether every score and sum lay where the polynomials were calibrated."""
        return max(self.largest_score, self.largest_sum) <= 1 + NOISE_TOLERANCE

    def require_in_range(self) -> None:
        """Raises OutsideCalibration where the context vectors cannot be trusted."""
        if not self.in_range:
            raise OutsideCalibration(
                f"A score lay at {self.largest_score:.2f} and a sum of exponentials at {self.largest_sum:.2f} of the "
                "calibrated range (1 is its end), so the result is not attention; compile again with texts like this "
                "one."
            )

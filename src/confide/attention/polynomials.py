"""The two functions that softmax needs, as polynomials."""

from dataclasses import dataclass

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import NDArray

from confide.attention.ranges import Ranges
from confide.errors import EvaluationError

EXPONENTIAL_LEVELS = range(2, 9)
EXPONENTIAL_DEGREES = (3, 7, 15)
INVERSE_STEPS = range(1, 11)


@dataclass(frozen=True)
class Exponential:
    """exp(r u) for |u| <= 1 as p(u) ** (2 ** squarings), p of degree 2^n - 1 interpolating exp(r u / 2^squarings)."""

    degree: int
    squarings: int

    @property
    def levels(self) -> int:
        """Multiplicative depth: log2(degree + 1) for the polynomial by halving, one for each squaring."""
        return (self.degree + 1).bit_length() - 1 + self.squarings

    def coefficients(self, half_range: float) -> NDArray[np.float64]:
        """Of p, lowest first, (degree + 1,) float64, for r = half_range."""
        small = half_range / 2**self.squarings
        found = chebyshev.cheb2poly(chebyshev.chebinterpolate(lambda u: np.exp(small * u), self.degree))
        return np.pad(found, (0, self.degree + 1 - len(found)))  # trailing zeros are left out there

    def relative_error(self, half_range: float) -> float:
        """The largest |p(u)^(2^squarings) / exp(r u) - 1| on a fine grid of [-1, 1]; infinite where it overflows."""
        u = np.linspace(-1, 1, 2001)
        with np.errstate(over="ignore", invalid="ignore"):
            values = np.polynomial.polynomial.polyval(u, self.coefficients(half_range))
            error = float(np.max(np.abs(values ** (2**self.squarings) * np.exp(-half_range * u) - 1)))
        return error if np.isfinite(error) else np.inf

    def widest(self, tolerance: float) -> float:
        """The largest half range, by bisection, at which the relative error is within the tolerance."""
        inside, outside = 0.0, 1000.0
        while outside - inside > 1e-3:
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if self.relative_error(middle) <= tolerance else (inside, middle)
        return inside


@dataclass(frozen=True)
class Inverse:
    """1/s for 1 - spread <= s <= 1 + spread: Goldschmidt's iteration, with Chebyshev polynomials for powers.

    With y = (1 - s) / spread and y0 = 1 / spread the residual after n steps is T_N(y) / T_N(y0), N = 2^n, the
    smallest possible for a polynomial of degree N - 1. Each step doubles N: T_2N = 2 T_N^2 - 1, and the inverse
    gains the factor 2 T_N(y0) / T_2N(y0) (T_N(y) + T_N(y0)). (From T_2N(y0) q_2N s = T_2N(y0) - T_2N(y) and
    T_2N(y0) - T_2N(y) = 2 (T_N(y0) - T_N(y)) (T_N(y0) + T_N(y)).)
    """

    steps: int
    spread: float

    @property
    def levels(self) -> int:
        """Multiplicative depth."""
        return self.steps

    @property
    def relative_error(self) -> float:
        """The largest |s q(s) - 1|."""
        return 1 / self.at_zero(self.steps)

    @property
    def scale_growth(self) -> float:
        """By how much the factors before each step, and the spread / 2 of the sums, enlarge a ciphertext's scale."""
        return self.at_zero(self.steps) * 2.0 ** (1 - self.steps)

    def at_zero(self, step: int) -> float:
        """T_N(y0) with N = 2^step, the Chebyshev polynomial at s = 0."""
        return float(np.cosh(2**step * np.arccosh(1 / self.spread)))

    @classmethod
    def widest(cls, steps: int, tolerance: float) -> "Inverse":
        """The one for the widest range that these steps bring within the tolerance."""
        return cls(steps, float(1 / np.cosh(np.arccosh(1 / tolerance) / 2**steps)))

    @property
    def sum_ratio(self) -> float:
        """Between the ends of its range."""
        return (1 + self.spread) / (1 - self.spread)


def choose_exponential(ranges: Ranges, tolerance: float) -> Exponential:
    """The most exact one of the fewest levels within the tolerance, a relative error. Raises EvaluationError."""
    widest = max(ranges.half_range)
    for levels in EXPONENTIAL_LEVELS:
        fitting = (Exponential(degree, levels - (degree + 1).bit_length() + 1) for degree in EXPONENTIAL_DEGREES)
        best = min((e for e in fitting if e.squarings >= 0), key=lambda e: e.relative_error(widest))
        if best.relative_error(widest) <= tolerance:
            return best
    raise EvaluationError(
        f"Scores up to {widest:.0f} from their centre are too far for a polynomial exponential; choose other heads or "
        "another layer."
    )


def choose_inverse(ranges: Ranges, tolerance: float) -> Inverse:
    """The widest one of the fewest steps within the tolerance, a relative error. Raises EvaluationError."""
    for steps in INVERSE_STEPS:
        if (inverse := Inverse.widest(steps, tolerance)).sum_ratio >= ranges.sum_ratio:
            return inverse
    raise EvaluationError(
        f"Sums of exponentials differ by a factor of {ranges.sum_ratio:.0f}, too many for a polynomial inverse; "
        "choose other heads or another layer."
    )

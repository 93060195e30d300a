"""What client and server agree on before anything is encrypted: ranges, polynomials, levels, parameters."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.attention.parameters import HEADROOM_BITS, CkksParameters, choose_parameters
from confide.attention.polynomials import Exponential, Inverse, choose_exponential, choose_inverse
from confide.attention.ranges import Ranges, calibrate
from confide.attention.shape import AttentionShape
from confide.attention.weights import AttentionWeights
from confide.errors import ConfideError, InvalidPackage

EXPONENTIAL_TOLERANCE = 2e-3
INVERSE_TOLERANCE = 1e-3
"""Relative errors, worst in the calibrated range."""
LARGEST_SLOT = 2.0 ** (HEADROOM_BITS - 2)
"""What decrypts without wrapping."""


@dataclass(frozen=True)
class Plan:
    """A compiled attention block. It holds nothing secret, but ranges say something of weights and texts."""

    shape: AttentionShape
    ranges: Ranges
    exponential: Exponential
    inverse: Inverse
    parameters: CkksParameters
    largest_norm: float
    """Of a token's input. Up to here no score can leave the modulus, so that the client sees all that are too large."""

    def __post_init__(self) -> None:
        heads, tokens = self.shape.heads, self.shape.tokens
        sums = (self.ranges.sum_low, self.ranges.sum_high)
        if any(len(values) != heads for values in (self.ranges.centre, self.ranges.half_range, *sums)) or any(
            len(row) != tokens for rows in sums for row in rows
        ):
            raise InvalidPackage("The plan's ranges are for another number of heads or tokens; compile again.")
        if self.parameters.levels != levels(self.exponential, self.inverse) or (
            self.parameters.slots < self.shape.slots
        ):
            raise InvalidPackage("The plan's parameters do not fit its circuit; compile again.")

    @property
    def value_level(self) -> int:
        """Where values meet exponentials: after that product, one more by the inverse reaches level 0."""
        return 2

    @cached_property
    def baby_steps(self) -> int:
        """Of a projection; queries, keys and values share their rotations, so that they are many."""
        candidates = [1 << bits for bits in range(1, self._diagonals.bit_length())]
        return min(candidates, key=lambda babies: babies + 3 * (self._diagonals // babies))

    @property
    def giant_steps(self) -> int:
        """Of a projection, each with a rotation of its own."""
        return self._diagonals // self.baby_steps

    @property
    def _diagonals(self) -> int:
        return min(self.shape.input_positions, self.shape.output_positions)

    @cached_property
    def sum_scales(self) -> NDArray[np.float64]:
        """(heads, tokens): what brings sums from their range to 1 / spread - 1 and 1 / spread + 1."""
        low, high = np.array(self.ranges.sum_low), np.array(self.ranges.sum_high)
        return np.asarray(2 / (low + high) / self.inverse.spread)

    def to_json(self) -> bytes:
        """For the other party."""
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, text: bytes) -> "Plan":
        """Reads and checks what `to_json` wrote. Raises InvalidPackage."""
        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            if isinstance(error.__cause__, ConfideError):
                raise error.__cause__ from error
            raise InvalidPackage("This is not a plan of an attention block; compile again.") from error


def compile_plan(weights: AttentionWeights, shape: AttentionShape, inputs: Sequence[NDArray[np.float64]]) -> Plan:
    """Calibrates on inputs (tokens, width) as they come out of the layer norm, and chooses polynomials and parameters.

    Raises EvaluationError where texts are too short or ranges too wide, InsecureParameters where no ring fits.
    """
    ranges = calibrate(inputs, weights, shape)
    exponential = choose_exponential(ranges, EXPONENTIAL_TOLERANCE)
    inverse = choose_inverse(ranges, INVERSE_TOLERANCE)
    ranges = ranges.widened(exponential.widest(EXPONENTIAL_TOLERANCE), inverse.sum_ratio)
    parameters = choose_parameters(levels(exponential, inverse), shape.slots)
    return Plan(shape, ranges, exponential, inverse, parameters, _largest_norm(weights, ranges, inverse))


def levels(exponential: Exponential, inverse: Inverse) -> int:
    """Multiplicative depth: projection, scores, mask; exponential; inverse or weighted sum; their product."""
    return 3 + exponential.levels + max(inverse.levels, 2) + 1


def _largest_norm(weights: AttentionWeights, ranges: Ranges, inverse: Inverse) -> float:
    """The norm n for which every head's (|Wq| n + |bq|) (|Wk| n + |bk|) / sqrt(head_width), which bounds its scores,
    stays below LARGEST_SLOT in units of its half range, and the result's bound |Wv| n + |bv| below it times the scale
    that the inverse leaves it. |W| is the spectral norm."""
    matrices, biases = weights.with_centred_keys(np.array(ranges.key_centre)).by_role()
    slope_q, slope_k, slope_v = np.linalg.norm(matrices, 2, axis=(2, 3))
    start_q, start_k, start_v = np.linalg.norm(biases, axis=2)
    half_range, centre = np.array(ranges.half_range), np.abs(ranges.centre)
    bound = (LARGEST_SLOT * half_range - centre) * np.sqrt(matrices.shape[2])
    # a n^2 + b n + c = 0, of which the positive root.
    a, b, c = slope_q * slope_k, slope_q * start_k + slope_k * start_q, start_q * start_k - bound
    by_scores = (-b + np.sqrt(b**2 - 4 * a * c)) / (2 * a)
    by_values = (LARGEST_SLOT / inverse.scale_growth - start_v) / slope_v
    return float(np.minimum(by_scores, by_values).min())

"""The parameters of one layer group, derived from its weights and checked before they exist.

Protocol 3: R = Z_q[X]/(X^N + 1) with N = 2048 and q = 2^48. An activation x travels as d = delta x + e - pad with
delta = q / t, and an answer is the top 32 bits of W d + U p0. With the client's v = <h, s> added, what is left beside
delta W x is W e + U e0 + epsilon s + the answer's rounding; a value is right while that stays below delta / 2.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self

from confide.errors import InsecureParameters
from confide.rlwe.security import require_secure_ring

RING_DEGREE: Final = 2048
MODULUS_BITS: Final = 48
PLANES: Final = 6
"""Balanced base-256 digits of a coefficient."""
ANSWER_BITS: Final = 32
HINT_PLANES: Final = 5
"""Of a hint's coefficients the top 40 bits are kept."""
U_BITS: Final = 6
"""Entries of U are uniform in [-32, 31]: with fewer, false keys would read them in few tokens."""

ERROR_BITS: Final = 42
"""The RLWE error is a centred binomial: the weight of 42 uniform bits, minus 21."""
ERROR_VARIANCE: Final = ERROR_BITS / 4
ERROR_STD: Final = math.sqrt(ERROR_VARIANCE)
"""3.24, the same distribution that Microsoft SEAL uses for the nominal 3.2."""

MIN_PLAINTEXT_BITS: Final = 27
MAX_PLAINTEXT_BITS: Final = 30
MIN_ACTIVATION_BITS: Final = 8
MAX_ACTIVATION_BITS: Final = 15
MAX_COLUMNS: Final = 28672
"""Of a group. int8 sums over columns and U's N stay below 2^29, so that int32 accumulation and carries are exact."""
NOISE_STDS: Final = 11.6
"""2 exp(-11.6^2 / 2) is 2^-96: over the 2^17 outputs of a token of any model here, less than 2^-64."""

_U_MEAN_SQUARE: Final = (2 * 32**2 + 1) / 6
_WORST_U_L2: Final = math.sqrt(RING_DEGREE * _U_MEAN_SQUARE * 1.2)
_WORST_HINT_L2: Final = math.sqrt(RING_DEGREE * (256**2 / 12 + ERROR_VARIANCE) * 1.2)
"""With a fifth added to the mean square; `require_noise_fits` looks at the ones that were drawn."""


class Profile(StrEnum):
    """What the protocol keeps secret besides the activations."""

    PRIVATE_WEIGHTS = "private-weights"
    OPEN_WEIGHTS = "open-weights"


@dataclass(frozen=True)
class Norms:
    """The largest L1 and the largest L2 norm of a row of an int8 matrix."""

    row_l1: int
    row_l2: float


@dataclass(frozen=True)
class Parameters:
    """Everything that the arithmetic of one layer group depends on. Public: both sides hold equal values.

    rows, columns: the group's stacked weight matrix W, int8, is (rows, columns). plaintext_bits: log2 of t; with open
    weights 32, for then pads are uniform mod 2^32 and there is no noise. activation_bits: activations are integers with
    |x| <= 2^(activation_bits - 1) - 1.

    Raises InsecureParameters from the constructor for what is out of range. Whether the noise fits hangs on the weights
    as well, which only their owner knows: see `derive` and `require_noise_fits`.
    """

    profile: Profile
    rows: int
    columns: int
    plaintext_bits: int
    activation_bits: int

    @classmethod
    def derive(
        cls,
        profile: Profile,
        norms: Norms,
        *,
        rows: int,
        columns: int,
        most_activation_bits: int = MAX_ACTIVATION_BITS,
    ) -> Self:
        """The largest t whose noise bound holds, and the widest activations that cannot wrap around it."""
        if profile is Profile.OPEN_WEIGHTS:
            bits = _activation_bits(ANSWER_BITS, norms.row_l1, most_activation_bits)
            return cls(profile, rows, columns, ANSWER_BITS, bits)
        std = noise_std(norms.row_l2, _WORST_U_L2, _WORST_HINT_L2)
        fitting = [bits for bits in range(MAX_PLAINTEXT_BITS, MIN_PLAINTEXT_BITS - 1, -1) if _fits(bits, std)]
        if not fitting:
            raise InsecureParameters(
                f"A row of norm {norms.row_l2:.0f} has too much noise for any plaintext modulus; split the columns in "
                "two groups."
            )
        bits = _activation_bits(fitting[0], norms.row_l1, most_activation_bits)
        return cls(profile, rows, columns, fitting[0], bits)

    def __post_init__(self) -> None:
        if self.private:
            require_secure_ring(RING_DEGREE, MODULUS_BITS, ERROR_STD)
        if not (1 <= self.columns <= MAX_COLUMNS and self.rows >= 1):
            raise InsecureParameters(
                f"A group of {self.rows} x {self.columns} weights is outside 1..{MAX_COLUMNS} columns; split it."
            )
        allowed = range(MIN_PLAINTEXT_BITS, MAX_PLAINTEXT_BITS + 1) if self.private else (ANSWER_BITS,)
        if self.plaintext_bits not in allowed:
            raise InsecureParameters(f"A plaintext modulus of 2^{self.plaintext_bits} does not go with {self.profile}.")
        if not MIN_ACTIVATION_BITS <= self.activation_bits <= MAX_ACTIVATION_BITS:
            raise InsecureParameters(
                f"Activations of {self.activation_bits} bits are outside {MIN_ACTIVATION_BITS}.."
                f"{MAX_ACTIVATION_BITS}: these weights' rows are too long for one group; split the columns in two."
            )

    @property
    def private(self) -> bool:
        """Whether weights are kept from the client."""
        return self.profile is Profile.PRIVATE_WEIGHTS

    @property
    def name(self) -> str:
        """Such as n2048_q48_t30_a32, or open_t32."""
        if not self.private:
            return f"open_t{self.plaintext_bits}"
        return f"n{RING_DEGREE}_q{MODULUS_BITS}_t{self.plaintext_bits}_a{ANSWER_BITS}"

    @property
    def blocks(self) -> int:
        """Polynomials that hold one token's inputs."""
        return -(-self.columns // RING_DEGREE)

    @property
    def planes(self) -> int:
        """Digits of a coordinate of d: bytes that an input travels as."""
        return PLANES if self.private else ANSWER_BITS // 8

    @property
    def shift(self) -> int:
        """log2 of delta."""
        return MODULUS_BITS - self.plaintext_bits if self.private else 0

    @property
    def answer_shift(self) -> int:
        """log2 of delta in answers, of which the low bits were rounded away."""
        return ANSWER_BITS - self.plaintext_bits

    @property
    def max_activation(self) -> int:
        """The largest |x|."""
        return int(2 ** (self.activation_bits - 1) - 1)


def noise_std(weights_l2: float, u_l2: float, hint_l2: float) -> float:
    """A bound on the noise's standard deviation, for rows of these norms; strictly sub-Gaussian, so tails are too.

    sigma^2 = 10.5 (|W|^2 + |U|^2) + 2/3 |epsilon|^2: e and e0 have variance 42 / 4, a ternary s has 2/3, and epsilon is
    the hint's whole error, its rounding included.
    """
    return math.sqrt(ERROR_VARIANCE * (weights_l2**2 + u_l2**2) + 2 / 3 * hint_l2**2)


def require_noise_fits(parameters: Parameters, std: float) -> None:
    """InsecureParameters unless the largest of the rows' exact standard deviations leaves less than 2^-64 a token."""
    if parameters.private and not _fits(parameters.plaintext_bits, std):
        raise InsecureParameters(
            f"A value would be wrong too often: noise of standard deviation {std:.0f} does not fit "
            f"t = 2^{parameters.plaintext_bits}; use a smaller plaintext modulus."
        )


def _fits(plaintext_bits: int, std: float) -> bool:
    """Half a step, less half a place of the answers, must be NOISE_STDS deviations."""
    room = 2 ** (MODULUS_BITS - 1 - plaintext_bits) - 2 ** (MODULUS_BITS - 1 - ANSWER_BITS)
    return bool(room >= NOISE_STDS * std)


def _activation_bits(plaintext_bits: int, row_l1: int, most: int) -> int:
    """The widest activations with row_l1 |x| < t / 2."""
    widest = 1 + math.floor(math.log2((2 ** (plaintext_bits - 1) - 1) / max(row_l1, 1) + 1))
    return min(MAX_ACTIVATION_BITS, most, widest)

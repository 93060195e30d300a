"""The parameters of one layer group's encryption, derived from its weights and checked before they exist.

All of this page's noise is counted in units of the kept modulus's last place, 2^(modulus_bits - kept_bits):
that is what is left after the server's modulus switch.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from confide.errors import InsecureParameters
from confide.rlwe.security import require_secure_ring

ERROR_BITS = 42
"""The RLWE error is a centred binomial: the weight of 42 uniform bits, minus 21."""
ERROR_STD = math.sqrt(ERROR_BITS) / 2
"""3.24, the same distribution that Microsoft SEAL uses for the nominal 3.2."""
DROWNING_TERMS = 4
"""Drowning noise is a sum of this many uniforms (Irwin-Hall): bounded, and with finite Fisher information."""

PLAINTEXT_BITS = 30
"""t = 2^30: two bits below the answers' 32 leave room for noise, and all online arithmetic wraps in 32-bit words."""
ANSWER_BITS = 32
"""Online answers, and the client's unmasking values, are the kept modulus's top 32 bits."""
MAX_ACTIVATION_BITS = 15
MIN_ACTIVATION_BITS = 8
MAX_COLUMNS = 1 << 16
"""int8 x int8 sums of this many products stay below 2^30, so int32 accumulation is exact."""

MAX_DROWNING_BITS = 60
"""The sum of four uniforms of 2^60 stays below 2^62, which 64-bit limbs carry exactly."""
MIN_DROWNING_RATIO = 2.0**40
MAX_LOG2_FAILURE = -64.0


class Profile(StrEnum):
    """What the protocol keeps secret besides the activations."""

    PRIVATE_WEIGHTS = "private-weights"
    OPEN_WEIGHTS = "open-weights"


@dataclass(frozen=True)
class Parameters:
    """Everything that the encryption of one layer group depends on. Public: both sides hold equal values.

    rows, columns: the group's stacked weight matrix W, int8, is (rows, columns).
    row_l1, row_l2: upper bounds on the largest L1 and L2 norm of a row of W.
    activation_bits: activations are integers with |x| <= 2^(activation_bits - 1) - 1.
    drowning_bits: each of the four uniforms of the drowning noise spans 2^drowning_bits; 0 means none.

    Raises InsecureParameters from the constructor where the ring misses the security table, drowning misses
    2^40, a product could wrap around the plaintext modulus, or a pack could fail with more than 2^-64.
    """

    profile: Profile
    rows: int
    columns: int
    row_l1: int
    row_l2: float
    activation_bits: int
    ring_degree: int = 4096
    modulus_bits: int = 96
    plaintext_bits: int = PLAINTEXT_BITS
    kept_bits: int = 40
    drowning_bits: int = 60

    @classmethod
    def derive(
        cls,
        profile: Profile,
        *,
        rows: int,
        columns: int,
        row_l1: int,
        row_l2: float,
        most_activation_bits: int = MAX_ACTIVATION_BITS,
    ) -> Self:
        """The parameters for weights with these norms: the widest activations, up to a limit, that can never wrap.

        |W x| <= row_l1 * (2^(B-1) - 1) must stay below half the plaintext modulus, 2^29.
        """
        bits = most_activation_bits
        while bits >= MIN_ACTIVATION_BITS and row_l1 * (2 ** (bits - 1) - 1) >= 2**29:
            bits -= 1
        return cls.for_shape(profile, rows=rows, columns=columns, activation_bits=bits, row_l1=row_l1, row_l2=row_l2)

    @classmethod
    def for_shape(
        cls,
        profile: Profile,
        *,
        rows: int,
        columns: int,
        activation_bits: int,
        row_l1: int | None = None,
        row_l2: float | None = None,
    ) -> Self:
        """The same parameters from what a client may know: the shape and the activation width.

        Where a norm is not given, the worst that `activation_bits` and int8 weights allow stands in for it.
        """
        if row_l1 is None:
            row_l1 = min(127 * columns, (2**29 - 1) // max(1, 2 ** (activation_bits - 1) - 1))
        if row_l2 is None:
            row_l2 = 127.0 * math.sqrt(columns)
        private = profile is Profile.PRIVATE_WEIGHTS
        return cls(
            profile=profile,
            rows=rows,
            columns=columns,
            row_l1=row_l1,
            row_l2=row_l2,
            activation_bits=activation_bits,
            modulus_bits=96 if private else 64,
            drowning_bits=60 if private else 0,
        )

    def __post_init__(self) -> None:
        require_secure_ring(self.ring_degree, self.modulus_bits, ERROR_STD)
        self._require_arithmetic_fits()
        if self.profile is Profile.PRIVATE_WEIGHTS and self.drowning_ratio < MIN_DROWNING_RATIO:
            raise InsecureParameters(
                f"The drowning noise is only 2^{math.log2(max(self.drowning_ratio, 1.0)):.1f} times the noise that "
                f"depends on the weights, below 2^40; use more drowning_bits or narrower layers."
            )
        if self.log2_failure > MAX_LOG2_FAILURE:
            raise InsecureParameters(
                f"A pack would decrypt wrongly with probability 2^{self.log2_failure:.1f}, above 2^-64; "
                "use a smaller plaintext modulus or keep more bits."
            )

    def _require_arithmetic_fits(self) -> None:
        if not (1 <= self.columns <= MAX_COLUMNS and self.rows >= 1):
            raise InsecureParameters(
                f"A group of {self.rows} x {self.columns} weights is outside 1..{MAX_COLUMNS} columns; split it."
            )
        if self.modulus_bits % 32 or self.kept_bits != ANSWER_BITS + 8 or self.kept_bits > self.modulus_bits:
            raise InsecureParameters("The modulus must be whole 32-bit words, of which the top 40 bits are kept.")
        if not 0 <= self.drowning_bits <= MAX_DROWNING_BITS:
            raise InsecureParameters(f"Drowning noise of {self.drowning_bits} bits is outside 0..{MAX_DROWNING_BITS}.")
        if self.plaintext_bits >= ANSWER_BITS:
            raise InsecureParameters(f"Use a plaintext modulus below 2^{ANSWER_BITS}: answers need room for noise.")
        if not MIN_ACTIVATION_BITS <= self.activation_bits <= MAX_ACTIVATION_BITS:
            raise InsecureParameters(
                f"Activations of {self.activation_bits} bits are outside {MIN_ACTIVATION_BITS}.."
                f"{MAX_ACTIVATION_BITS}: these weights' rows are too long for one group."
            )
        if self.row_l1 * self.max_activation >= 2 ** (self.plaintext_bits - 1):
            raise InsecureParameters("A product could wrap around the plaintext modulus; use fewer activation bits.")

    @property
    def name(self) -> str:
        """Such as n4096_q96_t30_keep40."""
        return f"n{self.ring_degree}_q{self.modulus_bits}_t{self.plaintext_bits}_keep{self.kept_bits}"

    @property
    def tokens(self) -> int:
        """Mask indexes in one pack: one per coefficient of the ring."""
        return self.ring_degree

    @property
    def max_activation(self) -> int:
        """The largest |x|."""
        return int(2 ** (self.activation_bits - 1) - 1)

    @property
    def words(self) -> int:
        """32-bit words of a coefficient."""
        return self.modulus_bits // 32

    @property
    def planes(self) -> int:
        """8-bit digit planes of a coefficient."""
        return self.modulus_bits // 8

    @property
    def kept_planes(self) -> int:
        """Digit planes that survive the modulus switch."""
        return self.kept_bits // 8

    @property
    def noise_std(self) -> float:
        """Standard deviation, at the full modulus, of the noise that depends on W or on the client's secrets.

        W e from the masks' encryption, and u e_pk + e1 s from the fresh zero (u and s are ternary: variance 2/3).
        """
        weights = (ERROR_STD * self.row_l2) ** 2
        if self.profile is Profile.OPEN_WEIGHTS:
            return math.sqrt(weights)
        return math.sqrt(weights + 2 * ERROR_STD**2 * (2 / 3) * self.ring_degree)

    @property
    def drowning_std(self) -> float:
        """Standard deviation, at the full modulus, of the sum of four uniforms."""
        return float(2.0**self.drowning_bits * math.sqrt(DROWNING_TERMS / 12)) if self.drowning_bits else 0.0

    @property
    def drowning_ratio(self) -> float:
        """How far the drowning noise exceeds what it hides (Li, Micciancio, Schultz, Sorrell, CRYPTO 2022)."""
        return self.drowning_std / self.noise_std

    @property
    def switched_noise_std(self) -> float:
        """Standard deviation after the modulus switch, with the rounding of both halves.

        The rounding of the a half is multiplied by s; its norm is bounded by the worst case, all of s nonzero.
        """
        unit = 2.0 ** (self.modulus_bits - self.kept_bits)
        rounding = (self.ring_degree + 1) / 12
        return math.sqrt(rounding + (self.drowning_std / unit) ** 2 + (self.noise_std / unit) ** 2)

    @property
    def noise_budget(self) -> int:
        """The largest noise that still decodes: half a plaintext step, less half a place of the 32-bit answers."""
        step = 2 ** (self.kept_bits - self.plaintext_bits)
        return int(step // 2 - 2 ** (self.kept_bits - ANSWER_BITS) // 2)

    @property
    def log2_failure(self) -> float:
        """log2 of a bound on the probability that any value of a pack decodes wrongly.

        Every term is strictly sub-Gaussian (uniforms and their sums), so P(|noise| > x) <= 2 exp(-x^2 / 2 std^2);
        a union bound takes it to all rows x tokens values.
        """
        tail = math.log(2) - self.noise_budget**2 / (2 * self.switched_noise_std**2)
        return (tail + math.log(self.rows * self.tokens)) / math.log(2)

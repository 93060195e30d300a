"""CKKS parameters: ring degree, levels and primes, held to the security table."""

from dataclasses import dataclass
from functools import cached_property

from confide.errors import InsecureParameters
from confide.rlwe.security import MAX_MODULUS_BITS, require_secure_ring

SEAL_ERROR_STD = 3.2
"""Standard deviation of the errors that SEAL draws."""

LARGEST_PRIME_BITS = 60
LARGEST_SCALE_BITS = 40
SMALLEST_SCALE_BITS = 33
"""Below it the error of a deep circuit shows in the third decimal."""
HEADROOM_BITS = 14
"""The last prime exceeds the scale by these: decrypted numbers may be as large as 2^13."""
SWITCHING_BITS = 20
"""The prime for key switching exceeds the scale by these. Switching adds noise in proportion to the ratio of the
largest other prime to this one."""


@dataclass(frozen=True)
class CkksParameters:
    """A ring of dimension ring_degree, and a modulus of one large prime, `levels` primes of scale_bits and one more
    large prime for key switching. Raises InsecureParameters above the table's bound.
    """

    ring_degree: int
    levels: int
    scale_bits: int

    def __post_init__(self) -> None:
        require_secure_ring(self.ring_degree, self.modulus_bits, SEAL_ERROR_STD)

    @cached_property
    def prime_bits(self) -> tuple[int, ...]:
        """Bits of every prime: the last one left by rescaling, those of the levels, the one for key switching."""
        last, switching = _large_prime_bits(self.scale_bits)
        return (last, *(self.scale_bits,) * self.levels, switching)

    @property
    def modulus_bits(self) -> int:
        """Of the whole modulus, as the security table counts."""
        return sum(self.prime_bits)

    @property
    def slots(self) -> int:
        """Complex numbers in a ciphertext."""
        return self.ring_degree // 2

    def ciphertext_bytes(self, level: int) -> int:
        """Of two polynomials at this level, uncompressed."""
        return 2 * (level + 1) * self.ring_degree * 8

    @property
    def switching_key_bytes(self) -> int:
        """Of one relinearisation or Galois key in memory: a pair of polynomials for every prime but the last."""
        return (self.levels + 1) * self.ciphertext_bytes(self.levels + 1)


def choose_parameters(levels: int, slots: int) -> CkksParameters:
    """The smallest ring with these levels and slots, at its largest scale. Raises InsecureParameters."""
    for ring_degree, allowed in MAX_MODULUS_BITS.items():
        scale_bits = _largest_scale(levels, allowed)
        if ring_degree >= 2 * slots and scale_bits is not None:
            return CkksParameters(ring_degree, levels, scale_bits)
    raise InsecureParameters(
        f"{levels} levels and {slots} slots fit no ring of the security table; choose heads or texts with a narrower "
        "range of scores, or fewer tokens."
    )


def _largest_scale(levels: int, allowed: int) -> int | None:
    for bits in range(LARGEST_SCALE_BITS, SMALLEST_SCALE_BITS - 1, -1):
        if levels * bits + sum(_large_prime_bits(bits)) <= allowed:
            return bits
    return None


def _large_prime_bits(scale_bits: int) -> tuple[int, int]:
    return scale_bits + HEADROOM_BITS, min(LARGEST_PRIME_BITS, scale_bits + SWITCHING_BITS)

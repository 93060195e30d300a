"""Freivalds' check of W x with vectors instead of the matrix: exact, in float64 products and 64-bit words.

Whoever has W draws a secret u, uniform over the field of p = 2^61 - 1, and hands out c = u^T W mod p. Then y = W x
implies u y = c x mod p, and any other y passes with probability 1/p over u. Needs no tensor library.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from confide.rlwe.pads import Int32Array
from confide.rlwe.streams import Stream, derive_key

Field = NDArray[np.uint64]
"""Elements of the field, each below PRIME."""

PRIME_BITS: Final = 61
PRIME: Final = (1 << PRIME_BITS) - 1
MAX_VALUE: Final = 1 << 29
"""Activations and right answers are at most this large in magnitude: 28,672 products of 127 by 127 stay below. Under
open weights a server can make an answer larger, and it is wrong then."""
MAX_LENGTH: Final = 1 << 17
"""The most rows and columns, together, that one check takes."""

_EXACT_BITS = 53
_SECRET_LIMB_BITS = 31
_ROWS_AT_A_TIME = 1 << 10
_VALUES_AT_A_TIME = 1 << 12
_PRODUCTS_AT_A_TIME = 1 << 18
"""OpenBLAS takes more than one thread for a larger product, and those spin for a while once it is done: on the core of
a layer server, where it runs on the same machine."""


def secret_vector(seed: bytes, group: int, rows: int) -> Field:
    """The secret u of a layer group: uint64 (rows,), each value within 2^-67 of uniform over the field."""
    words = np.empty((rows, 2), np.uint64)
    Stream(derive_key(seed, "integrity", group.to_bytes(4, "big"))).fill(words)
    # 128 bits mod p: 2^64 is 8 mod p, and 8 (p - 1) still fits 64 bits.
    words %= np.uint64(PRIME)
    high = words[:, 1] * np.uint64(8) % np.uint64(PRIME)
    return (words[:, 0] + high) % np.uint64(PRIME)


def check_vector(weights: NDArray[np.int8], secret: Field) -> Field:
    """c = u^T W mod p: int8 (rows, columns), uint64 (rows,) -> uint64 (columns,)."""
    total = np.zeros(weights.shape[1], np.uint64)
    for start in range(0, len(weights), _ROWS_AT_A_TIME):
        limbs = _unsigned_limbs(secret[start : start + _ROWS_AT_A_TIME])
        # 2^31 * 2^7 * 2^10 rows stays below 2^53.
        sums = weights[start : start + _ROWS_AT_A_TIME].T.astype(np.float64) @ limbs
        total += _evaluate(sums, _SECRET_LIMB_BITS)
        total %= np.uint64(PRIME)
    return total


class AnswerCheck:
    """Tells right answers of one layer group from wrong ones.

    secret: u, uint64 (rows,). vector: c, uint64 (columns,). ValueError where they are too long together.
    """

    def __init__(self, secret: Field, vector: Field) -> None:
        self._rows = len(secret)
        length = len(secret) + len(vector)
        if length > MAX_LENGTH:
            raise ValueError(f"A check of {length} values is longer than {MAX_LENGTH}; split the layer group.")
        self._bits = limb_bits(length)
        coefficients = self._words = np.concatenate([secret, np.uint64(PRIME) - vector])
        self._floats = coefficients.astype(np.float64)
        self._limbs = signed_limbs(coefficients, self._bits)

    def __repr__(self) -> str:
        return f"AnswerCheck(rows={self._rows}, <hidden>)"

    def __call__(self, y: Int32Array, x: Int32Array) -> NDArray[np.bool_]:
        """Which tokens have u y = c x and |y| <= 2^29: int32 (tokens, rows), (tokens, columns) -> bool (tokens,).

        |x| is at most 2^29.
        """
        tokens = len(y)
        # As unsigned numbers, which wrap around, both bounds are one.
        possible: NDArray[np.bool_] = (y.view(np.uint32) + np.uint32(MAX_VALUE)).max(axis=1) <= 2 * MAX_VALUE
        if tokens == 1:
            possible &= self._one_token(np.concatenate([y[0], x[0]]).astype(np.int64)) % PRIME == 0
            return possible
        sums = np.empty((tokens, self._limbs.shape[1]))
        at_a_time = max(1, _PRODUCTS_AT_A_TIME // self._limbs.size)
        values = np.empty((min(tokens, at_a_time), len(self._limbs)))
        for start in range(0, tokens, at_a_time):
            part = slice(start, start + at_a_time)
            block = values[: tokens - start]
            block[:, : self._rows] = y[part]
            block[:, self._rows :] = x[part]
            np.matmul(block, self._limbs, out=sums[part])
        possible &= _evaluate(sums, self._bits) == 0
        return possible

    def _one_token(self, values: NDArray[np.int64]) -> int:
        """The same sum for one token, as in decoding, where reading the limbs would cost more than computing.

        64-bit words give its low half, because they wrap around; float64 gives the high half, being wrong by less than
        half of 2^64: for n values by at most (n + 2) 2^-53 times n 2^61 2^29 (Higham, Accuracy and Stability, 3.1),
        which for n = 2^12 is 2^61 and a bit.
        """
        total = 0
        for start in range(0, len(values), _VALUES_AT_A_TIME):
            part = slice(start, start + _VALUES_AT_A_TIME)
            low = int(self._words[part] @ values[part].view(np.uint64))
            high = round((float(self._floats[part] @ values[part].astype(np.float64)) - low) / 2.0**64)
            total += low + (high << 64)
        return total


def _unsigned_limbs(values: Field) -> NDArray[np.float64]:
    """float64 (n, 2): the low 31 bits and the high 30."""
    mask = np.uint64((1 << _SECRET_LIMB_BITS) - 1)
    return np.stack([values & mask, values >> np.uint64(_SECRET_LIMB_BITS)], axis=1).astype(np.float64)


def limb_bits(length: int) -> int:
    """How wide the limbs of `length` coefficients may be for sums of their products with values to stay exact.

    Signed limbs of b bits are at most 2^(b - 1), so sums stay within length * 2^29 * 2^(b - 1) <= 2^53.
    """
    return _EXACT_BITS + 1 - (MAX_VALUE.bit_length() - 1) - (length - 1).bit_length()


def signed_limbs(values: Field, bits: int) -> NDArray[np.float64]:
    """float64 (n, limbs), of magnitude up to 2^(bits - 1), that make up `values` with places of 2^bits."""
    count = -(-PRIME_BITS // bits)
    half, base = np.int64(1 << (bits - 1)), np.int64(1 << bits)
    rest = values.astype(np.int64)
    limbs = np.empty((len(values), count))
    for place in range(count - 1):
        digit = (rest + half) % base - half
        limbs[:, place] = digit
        rest = (rest - digit) >> bits
    limbs[:, -1] = rest
    return limbs


def _evaluate(sums: NDArray[np.float64], bits: int) -> Field:
    """The sum of integers times 2^(bits * place), mod p: float64 (n, places), magnitudes <= 2^53 -> uint64 (n,).

    Times 2^k is a rotation of 61 bits: of s = high 2^(61 - k) + low it makes low 2^k + high.
    """
    places = bits * np.arange(sums.shape[1])
    integers = sums.astype(np.int64)
    high = integers >> (PRIME_BITS - places)
    low = (integers - (high << (PRIME_BITS - places))) << places
    # Eight values below 2^61 fit 64 bits, and there are no more places than that.
    total = low.view(np.uint64).sum(axis=1) % np.uint64(PRIME)
    result: NDArray[np.int64] = (total.view(np.int64) + high.sum(axis=1)) % PRIME
    return result.view(np.uint64)

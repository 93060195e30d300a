"""Integers mod 2^(8 k) as k balanced base-256 digits, each a signed byte in [-128, 127], least significant first.

With a bias of 0x80 in each digit, the digits of v are the bytes of (v + bias) ^ bias: adding the bias carries where a
digit would exceed 127, and the xor takes it off every byte again. Needs no tensor library.
"""

import numpy as np
from numpy.typing import NDArray

_EACH = 0x0101010101010101 * 0x80


def digits(values: NDArray[np.int64], count: int) -> NDArray[np.int8]:
    """int64 (...) mod 2^(8 count) -> int8 (..., count); count at most 8."""
    bias = np.uint64(_EACH & (1 << (8 * count)) - 1)
    words = (values.view(np.uint64) + bias) ^ bias
    return words.view(np.int8).reshape(*values.shape, 8)[..., :count]


def value(digit_planes: NDArray[np.int8]) -> NDArray[np.int64]:
    """int8 (..., count) -> the int64 value, in about [-2^(8 count - 1), 2^(8 count - 1))."""
    total = digit_planes[..., -1].astype(np.int64)
    for place in range(digit_planes.shape[-1] - 2, -1, -1):
        total *= 256
        total += digit_planes[..., place]
    return total

"""Integers mod 2^(32 words) as 32-bit words, and as balanced base-256 digits for int8 products.

A word holds four balanced digits, each a signed byte in [-128, 127], least significant first. With
BIAS = 0x80808080 the word of the value v is (v + BIAS) ^ BIAS: adding the bias carries where a digit would exceed
127, and the xor takes the bias off every byte again.
"""

import torch
from torch import Tensor

BIAS = 0x80808080
_SIGNED_BIAS = BIAS - (1 << 32)
_LOW_BIAS = 0x00808080


def carry_to_digit_words(limbs: list[Tensor]) -> list[Tensor]:
    """int64 limbs, value = sum of limb_j 2^(32 j), each |limb| < 2^62 -> int32 words of balanced digits.

    The limbs are overwritten. The value is taken mod 2^(32 len(limbs)).
    """
    words = []
    carry: Tensor | None = None
    for limb in limbs:
        limb += BIAS
        if carry is not None:
            limb += carry
        words.append(limb.to(torch.int32).bitwise_xor_(_SIGNED_BIAS))
        carry = limb.bitwise_right_shift_(32)
    return words


def carry_to_words(limbs: list[Tensor], words: Tensor) -> None:
    """int64 limbs as in `carry_to_digit_words` -> int32 words of the plain value (two's complement).

    They are written into `words`, (len(limbs), ...), which saves a pass over memory.
    """
    carry: Tensor | None = None
    for limb, word in zip(limbs, words, strict=True):
        if carry is not None:
            limb += carry
        word.copy_(limb)
        carry = limb.bitwise_right_shift_(32)


def digit_word_values(words: Tensor) -> Tensor:
    """int32 words of balanced digits -> their float64 values, in [-BIAS, 0x7f7f7f7f].

    The top digit is already signed, so only the lower three bytes carry a bias: 0x00808080.
    """
    return (words ^ _LOW_BIAS).to(torch.float64).sub_(_LOW_BIAS)


def words_to_planes(words: Tensor, planes: Tensor) -> None:
    """int32 digit words (rows, words, n) -> int8 digit planes (4 * words, rows, n), written into `planes`."""
    rows, count, length = words.shape
    digits = words.view(torch.int8).view(rows, count, length, 4)
    for word in range(count):
        for digit in range(4):
            planes[4 * word + digit].copy_(digits[:, word, :, digit])


def value_digits(values: Tensor) -> Tensor:
    """int32 values (...) -> int8 (..., 4): the balanced digits of each value mod 2^32."""
    words = (values + _SIGNED_BIAS).bitwise_xor_(_SIGNED_BIAS)
    return words.view(torch.int8).view(*values.shape, 4)

"""The online phase: one-time pads at the client, one int8 product at the server, all arithmetic in 32-bit words.

With t = 2^30 and 32-bit answers every step wraps around by itself: the server answers 4 W d - share, the client adds
4 W r + share + noise / 256, which leaves 4 W x plus less than half a step.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from confide.rlwe.digits import value_digits
from confide.rlwe.gemm import int8_matmul
from confide.rlwe.parameters import ANSWER_BITS, Parameters


def mask(activations: NDArray[np.int32], masks: NDArray[np.int32], parameters: Parameters) -> NDArray[np.int32]:
    """d = x - r mod t: int32 (tokens, columns) in [0, t), uniform whatever x is."""
    masked = activations - masks
    masked &= (1 << parameters.plaintext_bits) - 1
    return masked


def answer(weights: Tensor, masked: Tensor, share: Tensor | None, parameters: Parameters) -> Tensor:
    """The server's answer: (q'/t) W d - share mod 2^32.

    weights: int8 (rows, columns). masked, share, result: int32 (tokens, columns), (tokens, rows), (tokens, rows).
    With open weights there is no share.
    """
    result = matrix_product(weights, masked)
    result <<= ANSWER_BITS - parameters.plaintext_bits
    return result if share is None else result.sub_(share)


def matrix_product(weights: Tensor, values: Tensor) -> Tensor:
    """int8 (rows, columns) times int32 (tokens, columns) -> int32 (tokens, rows), exact mod 2^32."""
    tokens, columns = values.shape
    digits = value_digits(values)
    if tokens == 1:
        planes = int8_matmul(weights, digits[0]).t()[:, None]
    else:
        stacked = digits.permute(2, 0, 1).reshape(4 * tokens, columns)
        planes = int8_matmul(stacked, weights.t()).view(4, tokens, -1)
    result = planes[0].contiguous()
    for place in range(1, 4):
        result.add_(planes[place], alpha=1 << (8 * place))
    return result


def unmask(answers: NDArray[np.int32], values: NDArray[np.int32], parameters: Parameters) -> NDArray[np.int32]:
    """W x from the server's answers and the pack's values: int32 (tokens, rows), centred by the arithmetic shift."""
    shift = ANSWER_BITS - parameters.plaintext_bits
    total = answers + values
    total += 1 << (shift - 1)
    total >>= shift
    return total

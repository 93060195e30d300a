"""The server's half of the online phase: one int8 product a request, all arithmetic in 32-bit words.

The server answers 4 W d - share; what the client makes of it stands in `masks`.
"""

import functools

import torch
from torch import Tensor

from confide.rlwe.digits import value_digits
from confide.rlwe.gemm import int8_matmul
from confide.rlwe.packed import MOST_TOKENS, PackedMatrix
from confide.rlwe.parameters import ANSWER_BITS, Parameters


def answer(weights: Tensor | PackedMatrix, masked: Tensor, share: Tensor | None, parameters: Parameters) -> Tensor:
    """The server's answer: (q'/t) W d - share mod 2^32.

    weights: int8 (rows, columns), packed or not. masked, share, result: int32 (tokens, columns), (tokens, rows),
    (tokens, rows).
    With open weights there is no share.
    """
    result = matrix_product(weights, masked)
    result <<= ANSWER_BITS - parameters.plaintext_bits
    return result if share is None else result.sub_(share)


def matrix_product(weights: Tensor | PackedMatrix, values: Tensor) -> Tensor:
    """int8 (rows, columns) times int32 (tokens, columns) -> int32 (tokens, rows), exact mod 2^32."""
    tokens, columns = values.shape
    if isinstance(weights, PackedMatrix):
        if tokens <= MOST_TOKENS:
            return weights.product(values)
        weights = weights.weights
    if tokens == 1:
        return _one_token(weights, values)
    digits = value_digits(values)
    stacked = digits.permute(2, 0, 1).reshape(4 * tokens, columns)
    planes = int8_matmul(stacked, weights.t()).view(4, tokens, -1)
    result = planes[0]
    for place in range(1, 4):
        result.add_(planes[place], alpha=1 << (8 * place))
    return result


def _one_token(weights: Tensor, values: Tensor) -> Tensor:
    """`matrix_product` for one token, as in decoding: few operations, and the weights as the left operand.

    The weights have just swept the processor's cache, so every operation costs several times what it does alone.
    """
    digits = value_digits(values)[0]
    return (int8_matmul(weights, digits) * _places(weights.device)).sum(-1, dtype=torch.int32)[None]


@functools.cache
def _places(device: torch.device) -> Tensor:
    """What the four digits of a value count."""
    return torch.tensor([1 << (8 * place) for place in range(4)], dtype=torch.int32, device=device)

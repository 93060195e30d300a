"""The server's half: one int8 product a request, and all arithmetic in 32-bit words.

The server draws nothing and keeps nothing: the answer is the top 32 bits of [W | U] [d ; p0]. What p0 contributes is
the same for all of a token's groups but for U, and can be made ahead.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from confide.rlwe.digits import digits
from confide.rlwe.gemm import int8_matmul
from confide.rlwe.packed import MOST_TOKENS, PackedMatrix
from confide.rlwe.pads import Int8Array
from confide.rlwe.parameters import ANSWER_BITS, MODULUS_BITS, PLANES, RING_DEGREE

_DROPPED_BITS = MODULUS_BITS - ANSWER_BITS
_ROUNDING = 1 << (_DROPPED_BITS - 1)


@dataclass(frozen=True)
class Ahead:
    """U p0 of some tokens with the answer's rounding added, mod 2^48: high int32 and low uint16, both (tokens, rows)."""

    high: NDArray[np.int32]
    low: NDArray[np.uint16]

    def __getitem__(self, tokens: slice) -> "Ahead":
        return Ahead(self.high[tokens], self.low[tokens])

    @classmethod
    def join(cls, parts: list[Self]) -> "Ahead":
        """Those of several requests, one after the other."""
        return Ahead(np.concatenate([part.high for part in parts]), np.concatenate([part.low for part in parts]))

    @property
    def nbytes(self) -> int:
        """6 for each token and output."""
        return self.high.nbytes + self.low.nbytes


class GroupMatrix:
    """What a server holds of one layer group.

    weights: int8 (rows, columns), within [-127, 127]. u: int8 (rows, N), or None with open weights.
    """

    def __init__(self, weights: Tensor, u: Tensor | None) -> None:
        self._weights = PackedMatrix.where_faster(weights)
        self._u = u

    def ahead(self, p0: Int8Array) -> Ahead:
        """What keys contribute to answers: int8 (tokens, 6, N) -> `Ahead`. ValueError with open weights."""
        if self._u is None:
            raise ValueError("With open weights no key contributes to answers; send none.")
        tokens = len(p0)
        planes = torch.from_numpy(np.array(p0)).view(tokens * PLANES, RING_DEGREE)
        products = int8_matmul(self._u, planes.t()).view(-1, tokens, PLANES)
        total = torch.full(products.shape[:2], _ROUNDING, dtype=torch.int64)
        for place in range(PLANES):
            total += products[:, :, place].long() << (8 * place)
        exact = np.ascontiguousarray(total.t().numpy())
        return Ahead((exact >> _DROPPED_BITS).astype(np.int32), (exact & 0xFFFF).astype(np.uint16))

    def answer(self, planes: Int8Array, ahead: Ahead | None) -> NDArray[np.int32]:
        """Answers to d as digit planes, int8 (planes, tokens, columns) -> int32 (tokens, rows).

        With private weights the top 32 of 48 bits, rounded, which need `ahead` of the same tokens; with open weights
        W d mod 2^32. ValueError where there is one of `u` and `ahead` without the other: W d alone, of a d that is no
        encryption, is what must never leave.
        """
        if (ahead is None) != (self._u is None):
            raise ValueError("Private weights are multiplied with what their tokens' keys contribute, and open ones alone.")
        sums = plane_products(self._weights, planes)
        if ahead is None:
            return _evaluated(sums)
        low = ahead.low.astype(np.int32)
        carry = sums[0]
        carry += low & 0xFF
        carry >>= 8
        carry += sums[1]
        carry += low >> 8
        carry >>= 8
        result = _evaluated(sums[2:])
        result += carry
        result += ahead.high
        return result


def matrix_product(weights: Tensor | PackedMatrix, values: Tensor) -> Tensor:
    """int8 (rows, columns) times int32 (tokens, columns) -> int32 (tokens, rows), exact mod 2^32."""
    planes = np.ascontiguousarray(np.moveaxis(digits(values.numpy().astype(np.int64), 4), -1, 0))
    return torch.from_numpy(_evaluated(plane_products(weights, planes)))


def plane_products(weights: Tensor | PackedMatrix, planes: Int8Array) -> NDArray[np.int32]:
    """Each digit plane times the weights: int8 (planes, tokens, columns) -> int32 (planes, tokens, rows), exact."""
    count, tokens, columns = planes.shape
    stacked = planes.reshape(count * tokens, columns)
    if isinstance(weights, PackedMatrix):
        if tokens <= MOST_TOKENS:
            return weights.plane_products(stacked).reshape(count, tokens, -1)
        weights = weights.weights
    product = int8_matmul(torch.from_numpy(stacked), weights.t())
    return product.numpy().reshape(count, tokens, -1)


def _evaluated(sums: NDArray[np.int32]) -> NDArray[np.int32]:
    """The sum of planes times 2^(8 place), mod 2^32: int32 (planes, ...) -> int32 (...). The last one is overwritten."""
    result: NDArray[np.int32] = sums[-1]
    for place in range(len(sums) - 2, -1, -1):
        result <<= 8
        result += sums[place]
    return result

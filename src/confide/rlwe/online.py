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
from confide.rlwe.packed import MOST_TOKENS, PackedMatrix, plain_product
from confide.rlwe.pads import Int8Array
from confide.rlwe.parameters import ANSWER_BITS, MODULUS_BITS

_DROPPED_BITS = MODULUS_BITS - ANSWER_BITS
_ROUNDING = 1 << (_DROPPED_BITS - 1)


@dataclass(frozen=True)
class Ahead:
    """U p0 of some tokens and the answers' rounding, mod 2^48: high int32 and low uint16, both (tokens, rows)."""

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
        self._u = None if u is None else PackedMatrix.where_faster(u)

    def ahead(self, p0: Int8Array) -> Ahead:
        """What keys contribute to answers: int8 (tokens, 6, N) -> `Ahead`. ValueError with open weights."""
        if self._u is None:
            raise ValueError("With open weights no key contributes to answers; send none.")
        total = _product(self._u, np.ascontiguousarray(np.moveaxis(p0, 1, 0)))
        total += _ROUNDING
        return Ahead((total >> _DROPPED_BITS).astype(np.int32), total.astype(np.uint16))

    def answer(self, planes: Int8Array, ahead: Ahead | None) -> NDArray[np.int32]:
        """Answers to d as digit planes, int8 (planes, tokens, columns) -> int32 (tokens, rows).

        With private weights the top 32 of 48 bits, rounded, which need `ahead` of the same tokens; with open weights
        W d mod 2^32. ValueError where there is one of `u` and `ahead` without the other: the answer would be billed and
        wrong.
        """
        if (ahead is None) != (self._u is None):
            raise ValueError("Private weights need what their tokens' keys contribute, and open ones go without.")
        total = _product(self._weights, planes)
        if ahead is None:
            return total.astype(np.int32)
        total += ahead.low
        total >>= _DROPPED_BITS
        answers = total.astype(np.int32)
        answers += ahead.high
        return answers


def matrix_product(weights: Tensor | PackedMatrix, values: Tensor) -> Tensor:
    """int8 (rows, columns) times int32 (tokens, columns) -> int32 (tokens, rows), exact mod 2^32."""
    planes = np.ascontiguousarray(np.moveaxis(digits(values.numpy().astype(np.int64), 4), -1, 0))
    return torch.from_numpy(_product(weights, planes).astype(np.int32))


def _product(weights: Tensor | PackedMatrix, planes: Int8Array) -> NDArray[np.int64]:
    """W times what digit planes stand for: int8 (planes, tokens, columns) -> int64 (tokens, rows), mod 2^(8 planes)."""
    tokens = planes.shape[1]
    if tokens > MOST_TOKENS:
        starts = range(0, tokens, MOST_TOKENS)
        return np.concatenate([_product(weights, planes[:, start : start + MOST_TOKENS]) for start in starts])
    if isinstance(weights, PackedMatrix):
        return weights.product(planes)
    return plain_product(weights, planes)

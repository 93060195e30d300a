"""Products of one int8 matrix with few vectors, again and again, as in decoding: the matrix is laid out once.

`torch._int_mm` lays its operands out anew at every call, which for a few columns takes longer than the product.
oneDNN's product of bytes and packed int8 weights, which torch has for quantized models, takes a third of the time.
It adds in int32 and hands the sums out as float32; so columns are cut where a sum might exceed 2^24, up to which every
integer is a float32.
"""

import functools
import os
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


MOST_TOKENS = 32
"""Products with more vectors than this gain nothing, and from a hundred on they lose."""
_LEAST_WEIGHTS = 1 << 18
"""Below this the call itself takes longer than the product."""
_MAX_SUM = 1 << 24
_ZERO_POINT = 128


class PackedMatrix:
    """An int8 matrix (rows, columns), and beside it a copy in the layout of the processor's int8 kernel."""

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights
        self._parts = [(columns, _pack(weights[:, columns])) for columns in _exact_parts(weights)]

    @classmethod
    def where_faster(cls, weights: Tensor) -> Self | Tensor:
        """The matrix packed; itself where it is small, and on devices and processors that have no kernel for it."""
        suited = weights.device.type == "cpu" and weights.numel() >= _LEAST_WEIGHTS
        return cls(weights) if suited and _has_kernel(os.environ.get("CONFIDE_GEMM", "")) else weights

    def plane_products(self, planes: NDArray[np.int8]) -> NDArray[np.int32]:
        """Signed bytes (n, columns) -> their products with the rows, int32 (n, rows)."""
        # With 128 added, which flips the top bit, they are unsigned; the kernel takes that for the zero point.
        digits = planes.view(np.uint8) ^ np.uint8(_ZERO_POINT)
        parts = [_kernel(packed, torch.from_numpy(digits[:, columns])).numpy() for columns, packed in self._parts]
        total: NDArray[np.int32] = parts[0].astype(np.int32)
        for part in parts[1:]:
            total += part.astype(np.int32)
        return total


def _exact_parts(weights: Tensor) -> list[slice]:
    """Ranges of columns over which no row's magnitudes times 128 add up to more than 2^24."""
    columns = weights.shape[1]
    for count in range(1, columns + 1):
        width = -(-columns // count)
        parts = [slice(start, start + width) for start in range(0, columns, width)]
        largest = max(int(weights[:, part].abs().sum(1, dtype=torch.int64).max()) for part in parts)
        if largest * _ZERO_POINT <= _MAX_SUM:
            break
    return parts


def _pack(weights: Tensor) -> Tensor:
    packed: Tensor = torch.ops.onednn.qlinear_prepack(weights.contiguous(), None)
    return packed


def _kernel(packed: Tensor, digits: Tensor) -> Tensor:
    """Packed (rows, columns) times uint8 (n, columns) less 128 -> float32 (n, rows)."""
    scale, zero_point = _unscaled()
    product: Tensor = torch.ops.onednn.qlinear_pointwise.default(
        digits, 1.0, _ZERO_POINT, packed, scale, zero_point, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return product


@functools.cache
def _unscaled() -> tuple[Tensor, Tensor]:
    return torch.ones(1), torch.zeros(1, dtype=torch.int32)


@functools.cache
def _has_kernel(choice: str) -> bool:
    # Without VNNI (which comes with AMX) oneDNN falls back to a loop that takes a thousand times as long.
    return choice != "fp32" and torch.cpu.get_capabilities().get("avx512_vnni", False) and _self_test()


def _self_test() -> bool:
    """Does the kernel agree with int64 arithmetic where saturation or rounding would show?"""
    for rows, columns, count in [(64, 1024, 4), (17, 72, 8), (5, 1, 1)]:
        for weight in (127, -127):
            weights = torch.full((rows, columns), weight, dtype=torch.int8)
            packed = _pack(weights)
            for digit in (0, 128, 255):
                digits = torch.full((count, columns), digit, dtype=torch.uint8)
                expected = (digits.long() - _ZERO_POINT) @ weights.long().t()
                if not torch.equal(_kernel(packed, digits).long(), expected):
                    return False
    return True

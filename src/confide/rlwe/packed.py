"""Products of one int8 matrix with vectors of digits, again and again: the matrix is laid out once for the processor.

Two kernels that torch has for quantized models hold weights as packed bytes, a quarter of float32's memory traffic.
oneDNN's takes any bytes, and needs VNNI. FBGEMM's needs AVX2 only, and adds pairs of products of unsigned and signed
bytes in 16 bits: exact where no pair exceeds 2^15 - 1, so that digits of seven bits go with weights of eight, and
digits of eight with weights of up to 64. Both add in int32 and hand the sums out as float32, so columns are cut where a
sum might exceed 2^24. A kernel is used where it passes a test with extreme values and beats the plain product.
"""

import functools
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from confide.rlwe.digits import value
from confide.rlwe.gemm import int8_matmul, shortest_run, takes_int8
from confide.rlwe.parameters import PLANES

MOST_TOKENS = 64
"""Of one product; more are taken in turns, whose operands stay in cache."""
_LEAST_WEIGHTS = 1 << 18
"""Below this the call itself takes longer than the product."""
_MAX_SUM = 1 << 24
_ZERO_POINT = 128
_MATRICES = 8
_PROMPT = 32
_TYPICAL = 80
"""A weight that some row of nearly every matrix exceeds, and whose sums need no cut columns."""
_NARROW = 64
"""255 * 64 twice stays below 2^15: weights up to this may meet digits of eight bits in 16-bit sums."""


@dataclass(frozen=True)
class Kernel:
    """One way to multiply bytes.

    pack: int8 (rows, columns) -> its layout. multiply: the layout and uint8 (n, columns) and the value that stands
    for zero -> float32 (n, rows). saturates: whether pairs are added in 16 bits. name: for people.
    """

    pack: Callable[[Tensor], Any]
    multiply: Callable[[Any, Tensor, int], Tensor]
    saturates: bool
    name: str = ""


class PackedMatrix:
    """An int8 matrix (rows, columns) within [-127, 127], in the layout of the processor's kernel for bytes."""

    def __init__(self, weights: Tensor, kernel: Kernel) -> None:
        self.shape = weights.shape
        self.kernel = kernel
        self._digit_bits = 7 if kernel.saturates and int(weights.abs().max()) > _NARROW else 8
        self._parts = [(columns, kernel.pack(weights[:, columns])) for columns in exact_parts(weights)]

    @classmethod
    def where_faster(cls, weights: Tensor) -> Self | Tensor:
        """The matrix packed; itself where it is small, and on devices and processors that have no kernel for it."""
        if weights.device.type != "cpu" or weights.numel() < _LEAST_WEIGHTS:
            return weights
        kernel = fastest(os.environ.get("CONFIDE_GEMM", ""))
        return weights if kernel is None else cls(weights, kernel)

    @classmethod
    def of(cls, weights: Tensor) -> Self:
        """The matrix packed; as float32 on processors that have no kernel for bytes, which takes four times as much."""
        return cls(weights, fastest(os.environ.get("CONFIDE_GEMM", "")) or FLOAT)

    def product(self, planes: NDArray[np.int8]) -> NDArray[np.int64]:
        """Balanced base-256 digits (planes, n, columns) -> W times their values, int64 (n, rows), mod 2^(8 planes)."""
        if self._digit_bits == 8:
            # With 128 added, which flips the top bit, digits are unsigned; the kernel takes that for zero.
            return self._weighted(planes.view(np.uint8) ^ np.uint8(_ZERO_POINT), _ZERO_POINT)
        rest = value(np.moveaxis(planes, 0, -1))
        rest &= (1 << (8 * len(planes))) - 1
        digits = np.empty((-(-8 * len(planes) // 7), *rest.shape), np.uint8)
        for digit in digits:
            np.bitwise_and(rest, 0x7F, out=digit, casting="unsafe")
            rest >>= 7
        return self._weighted(digits, 0)

    def _weighted(self, digits: NDArray[np.uint8], zero: int) -> NDArray[np.int64]:
        return weighted_sum(self.sums(torch.from_numpy(digits), zero).numpy(), 8 if zero else 7)

    def sums(self, digits: Tensor, zero: int = 0) -> Tensor:
        """W times each of uint8 (planes, n, columns) less zero -> exact float32 or float64 (planes, n, rows).

        With zero 0 digits have seven bits.
        """
        stacked = digits.reshape(-1, digits.shape[2])
        first, *rest = (self.kernel.multiply(packed, stacked[:, part], zero) for part, packed in self._parts)
        if rest:
            first = first.double()
            for more in rest:
                first += more
        return first.reshape(*digits.shape[:2], -1)


def plain_product(weights: Tensor, planes: NDArray[np.int8]) -> NDArray[np.int64]:
    """`PackedMatrix.product` of a matrix as it is, int8 (rows, columns)."""
    # Planes that came in a message cannot be written to, and torch wants what can.
    stacked = torch.from_numpy(np.require(planes.reshape(-1, planes.shape[2]), requirements="W"))
    return weighted_sum(int8_matmul(stacked, weights.t()).numpy().reshape(*planes.shape[:2], -1), 8)


def weighted_sum(sums: NDArray[Any], bits: int) -> NDArray[np.int64]:
    """The sum of 2^(bits i) sums[i] mod 2^64, for integer planes (planes, ...) of magnitude up to 2^29: int64 (...)."""
    # So many planes at a time that float64 holds their sum, below 2^(29 + bits (size - 1) + 1) <= 2^53: one small
    # product and one rounding take less time than a shift for each plane.
    size = 23 // bits + 1
    places = np.ldexp(1.0, bits * np.arange(size))
    exact = sums.reshape(len(sums), -1).astype(np.float64)
    parts = [exact[start : start + size] for start in range(0, len(exact), size)]
    last, *lower = ((places[: len(part)] @ part).astype(np.int64) for part in reversed(parts))
    total: NDArray[np.int64] = last
    for part in lower:
        total <<= bits * size
        total += part
    return total.reshape(sums.shape[1:])


def exact_parts(weights: Tensor) -> list[slice]:
    """Ranges of columns over which no row's magnitudes times 128 add up to more than 2^24."""
    columns = weights.shape[1]
    for count in range(1, columns + 1):
        width = -(-columns // count)
        parts = [slice(start, start + width) for start in range(0, columns, width)]
        largest = max(int(weights[:, part].abs().sum(1, dtype=torch.int64).max()) for part in parts)
        if largest * _ZERO_POINT <= _MAX_SUM:
            break
    return parts


def _pack_onednn(weights: Tensor) -> Any:
    return torch.ops.onednn.qlinear_prepack(weights.contiguous(), None)


def _multiply_onednn(packed: Any, digits: Tensor, zero: int) -> Tensor:
    scale, zero_point = _unscaled()
    product: Tensor = torch.ops.onednn.qlinear_pointwise.default(
        digits.contiguous(), 1.0, zero, packed, scale, zero_point, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return product


@functools.cache
def _unscaled() -> tuple[Tensor, Tensor]:
    return torch.ones(1), torch.zeros(1, dtype=torch.int32)


def _pack_fbgemm(weights: Tensor) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that torch means to drop such tensors one day
        quantized = torch._make_per_tensor_quantized_tensor(weights.contiguous(), 1.0, 0)
    return torch.ops.quantized.linear_prepack(quantized, None)


def _multiply_fbgemm(packed: Any, digits: Tensor, zero: int) -> Tensor:
    product: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
        digits.float() - zero, 1.0, zero, packed
    )
    return product


def _multiply_float(packed: Tensor, digits: Tensor, zero: int) -> Tensor:
    return (digits.float() - zero) @ packed.t()


FLOAT = Kernel(Tensor.float, _multiply_float, saturates=False, name="float32")
"""Exact on every processor, of four bytes a weight."""
_ONEDNN = Kernel(_pack_onednn, _multiply_onednn, saturates=False, name="oneDNN")
_FBGEMM = Kernel(_pack_fbgemm, _multiply_fbgemm, saturates=True, name="FBGEMM")


@functools.cache
def fastest(choice: str) -> Kernel | None:
    """The kernel that is exact and fastest, None where that is the plain product.

    choice: what CONFIDE_GEMM says. Measured once a process, for a few lone tokens and a part of a prompt: with whole
    products, for one kernel needs more digits than another, and with matrices in turn, for a model's leave the cache.
    """
    if choice == "fp32":
        return None
    matrices = torch.full((_MATRICES, 2048, 1536), _TYPICAL, dtype=torch.int8)
    token, prompt = (np.ones((PLANES, tokens, 1536), np.int8) for tokens in (1, _PROMPT))

    def seconds(products: Sequence[Callable[[NDArray[np.int8]], NDArray[np.int64]]]) -> float:
        decoding = shortest_run(lambda: [product(token) for product in products][-1])
        return decoding + shortest_run(lambda: products[0](prompt))

    best, kernel = seconds([functools.partial(plain_product, weights) for weights in matrices]), None
    for candidate in candidates():
        if is_exact(candidate):
            taken = seconds([PackedMatrix(weights, candidate).product for weights in matrices])
            if taken < best:
                best, kernel = taken, candidate
    return kernel


def chosen_kernel() -> str:
    """What multiplies bytes on this processor, by the measurement at the start: its name, for people."""
    kernel = fastest(os.environ.get("CONFIDE_GEMM", ""))
    if kernel is not None:
        return kernel.name
    return "torch's int8 product" if takes_int8(torch.device("cpu")) else "float32"


def candidates() -> list[Kernel]:
    """The kernels for bytes that this processor might be fast at."""
    # Without VNNI (which comes with AMX) oneDNN falls back to a loop that takes a thousand times as long.
    return [_ONEDNN, _FBGEMM] if torch.cpu.get_capabilities().get("avx512_vnni", False) else [_FBGEMM]


def is_exact(kernel: Kernel) -> bool:
    """Does the kernel agree with int64 arithmetic where saturation or rounding would show?"""
    digits_of = {127: (0, 127), _NARROW: (0, 128, 255)} if kernel.saturates else {127: (0, 128, 255)}
    try:
        for largest, digits in digits_of.items():
            zero = 0 if max(digits) == 127 else _ZERO_POINT
            for rows, columns, count in [(64, 1024, 7), (17, 72, 8), (5, 1, 1)]:
                for weight, digit in [(sign * largest, digit) for sign in (1, -1) for digit in digits]:
                    weights = torch.full((rows, columns), weight, dtype=torch.int8)
                    operand = torch.full((count, columns), digit, dtype=torch.uint8)
                    expected = (operand.long() - zero) @ weights.long().t()
                    if not torch.equal(kernel.multiply(kernel.pack(weights), operand, zero).long(), expected):
                        return False
    except (AttributeError, RuntimeError):  # a build of torch without this kernel
        return False
    return True

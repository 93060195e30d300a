"""The exact integer matrix product everything rests on: int8 x int8 -> int32, on any device.

`torch._int_mm` is exact and fast on processors with VNNI, AMX or tensor cores; elsewhere int8 kernels may saturate, or
be loops that take a hundred times as long as float32. So the kernel is tested with extreme values and timed the first
time a device is used, and where it fails or loses, or where the environment says CONFIDE_GEMM=fp32, the product is
taken in chunks of float32, which are exact.
"""

import functools
import os
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FP32_CHUNK = 1024
"""127 * 128 * 1024 < 2^24: a float32 sum of this many products is exact in any order."""


def int8_matmul(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """left (m, k) int8 times right (k, n) int8 -> (m, n) int32, exact for k < 2^17.

    `out`, an int32 tensor of the result's shape, is filled and returned where it is given.
    """
    if takes_int8(left.device):
        return int8_kernel(left, right, out)
    return fp32_kernel(left, right, out)


def takes_int8(device: torch.device) -> bool:
    """Whether products on this device go through its int8 kernel."""
    return prefers_int8(device, os.environ.get("CONFIDE_GEMM", ""))


@functools.cache
def prefers_int8(device: torch.device, choice: str) -> bool:
    """Whether the int8 kernel is exact, and faster than float32 unless it was asked for; measured once a process.

    choice: what CONFIDE_GEMM says, "" where it is not set. ValueError for any word but int8 and fp32.
    """
    if choice not in ("", "int8", "fp32"):
        raise ValueError(f"CONFIDE_GEMM is {choice!r}; set it to int8 or fp32, or leave it unset.")
    return choice != "fp32" and int8_is_exact(device) and (choice == "int8" or _is_faster(device))


def _is_faster(device: torch.device) -> bool:
    left = torch.ones(256, 1024, dtype=torch.int8, device=device)
    right = torch.ones(1024, 64, dtype=torch.int8, device=device)
    return shortest_run(lambda: int8_kernel(left, right, None)) < shortest_run(lambda: fp32_kernel(left, right, None))


def shortest_run(product: Callable[[], Tensor | NDArray[np.int64]]) -> float:
    """Seconds of the shortest of five runs after one to warm up, of a product (rows, columns) on any device."""
    times = []
    for _ in range(6):
        started = time.perf_counter()
        int(product()[0, 0])  # reading a value waits for a device that works ahead
        times.append(time.perf_counter() - started)
    return min(times[1:])


def int8_is_exact(device: torch.device) -> bool:
    """Does the int8 kernel agree with int64 arithmetic where saturation would show?"""
    shapes = [(64, 256, 64), (32, 1024, 4), (17, 72, 8)]
    signs = torch.tensor([[127, 127], [-127, -127], [127, -127]], dtype=torch.int8)
    for rows, inner, columns in shapes:
        for pair in signs:
            left = pair.repeat(rows, inner // 2)
            for digit in (-128, 127):
                right = torch.full((inner, columns), digit, dtype=torch.int8)
                expected = (left.long() @ right.long()).int()
                if not torch.equal(int8_kernel(left.to(device), right.to(device), None).cpu(), expected):
                    return False
    return True


def int8_kernel(left: Tensor, right: Tensor, out: Tensor | None) -> Tensor:
    """`int8_matmul` by the device's own kernel, exact where `int8_is_exact` says so."""
    if left.device.type != "cuda":
        if 1 in right.shape or 1 in left.shape:
            # Strides along a dimension of one are arbitrary, and the kernel takes them for leading dimensions.
            left, right = (x.clone(memory_format=torch.contiguous_format) for x in (left, right))
        return torch._int_mm(left, right) if out is None else torch._int_mm(left, right, out=out)
    rows, inner, columns = left.shape[0], left.shape[1], right.shape[1]
    # cuBLASLt takes more than 16 rows and multiples of 8 otherwise; zeros change no product.
    padded_left = torch.nn.functional.pad(left, (0, -inner % 8, 0, max(0, 24 - rows)))
    padded_right = torch.nn.functional.pad(right, (0, -columns % 8, 0, -inner % 8))
    product = torch._int_mm(padded_left, padded_right)[:rows, :columns]
    return product.contiguous() if out is None else out.copy_(product)


def fp32_kernel(left: Tensor, right: Tensor, out: Tensor | None) -> Tensor:
    """`int8_matmul` in chunks of float32, exact everywhere."""
    if out is None:
        out = torch.empty(left.shape[0], right.shape[1], dtype=torch.int32, device=left.device)
    out.zero_()
    for start in range(0, left.shape[1], FP32_CHUNK):
        chunk = slice(start, start + FP32_CHUNK)
        out += (left[:, chunk].float() @ right[chunk].float()).int()
    return out

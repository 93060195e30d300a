"""The quantized model in the clear: the same shell, its integer products taken here on the server's own matrices.

It protects nothing. It is the reference that a private run must equal, integer for integer.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from confide.packages.manifest import PackageKind
from confide.packages.server_package import ServerPackage
from confide.packages.shell import load_shell
from confide.packages.signing import open_package
from confide.rlwe.gemm import int8_matmul


class ClearProduct:
    """The IntegerProduct on matrices that lie on this machine: int8 (rows, columns), one for each layer group."""

    def __init__(self, matrices: Iterable[Tensor], device: torch.device | str = "cpu") -> None:
        self._weights = [matrix.to(device) for matrix in matrices]

    def __call__(self, group: int, x: Tensor) -> Tensor:
        """x int32 (T, columns), |x| < 2^14 -> W x int32 (T, rows), exact."""
        weights = self._weights[group]
        digits = _balanced_digits(x)
        if len(x) == 1:
            low, high = int8_matmul(weights, digits[0]).t()[:, None]
        else:
            tokens, columns = x.shape
            stacked = digits.permute(2, 0, 1).reshape(2 * tokens, columns)
            low, high = int8_matmul(stacked, weights.t()).view(2, tokens, -1)
        return torch.add(low, high, alpha=256)


def _balanced_digits(x: Tensor) -> Tensor:
    """x int32 (T, n), |x| < 2^14 -> int8 (T, n, 2) with x = low + 256 high.

    Adding 128 carries where the low byte is negative as a signed one; the xor takes the 128 off it again.
    """
    return x.to(torch.int16).add_(128).bitwise_xor_(128).view(torch.int8).view(*x.shape, 2)


def load_clear(shell: Path | str, server: Path | str, device: torch.device | str = "cpu") -> PreTrainedModel:
    """The quantized model of the two folders of one split. InvalidPackage where they do not belong together."""
    return load_shell(shell, ClearProduct(open_counterpart(shell, server).matrices(), device), device)


def open_counterpart(shell: Path | str, server: Path | str) -> ServerPackage:
    """The package of a server folder. InvalidPackage where the shell is not its other half."""
    package = ServerPackage.open(server)
    package.manifest.require_counterpart(open_package(shell, PackageKind.SHELL).manifest)
    return package

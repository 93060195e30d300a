"""The quantized model in the clear: the reference that every private run must equal, integer for integer."""

import torch
from torch import Tensor

from confide.models.server_package import ServerPackage
from confide.rlwe.online import matrix_product


class ClearProduct:
    """The integer products of a server package, computed here, without encryption."""

    def __init__(self, package: ServerPackage, device: torch.device | str = "cpu") -> None:
        package.verify()
        self._weights = [package.weights(index).to(device) for index in range(len(package.manifest.groups))]

    def __call__(self, group: int, x: Tensor) -> Tensor:
        """x int32 (tokens, columns) -> W x int32 (tokens, rows)."""
        return matrix_product(self._weights[group], x)

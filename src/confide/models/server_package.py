"""The server's half of a split model: int8 matrices and the layer table, and nothing else."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from confide.errors import InvalidPackage
from confide.models.package import SERVER_KIND, Manifest, read_manifest

WEIGHTS = "weights.safetensors"


def weights_digest(matrices: Iterable[tuple[str, Tensor]]) -> str:
    """Hexadecimal SHA-256 over the names, shapes and bytes of int8 matrices, in order."""
    digest = hashlib.sha256(b"confide model 1")
    for name, matrix in matrices:
        header = f"{name}\0{matrix.shape[0]}\0{matrix.shape[1]}\0".encode()
        digest.update(len(header).to_bytes(4, "big") + header)
        digest.update(matrix.contiguous().numpy().data)
    return digest.hexdigest()


class ServerPackage:
    """A server folder, opened; matrices are read when they are asked for."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, folder: Path | str) -> "ServerPackage":
        """Open a server folder; InvalidPackage where it is not one."""
        return cls(Path(folder), read_manifest(Path(folder), SERVER_KIND))

    def weights(self, group: int) -> Tensor:
        """A group's stacked matrix, int8 (rows, columns); InvalidPackage where the file does not hold it."""
        entry = self.manifest.groups[group]
        return torch.cat([self._matrix(layer.name, layer.rows, entry.columns) for layer in entry.layers])

    def _matrix(self, name: str, rows: int, columns: int) -> Tensor:
        try:
            with safe_open(self.folder / WEIGHTS, framework="pt") as file:
                matrix: Tensor = file.get_tensor(f"{name}.weight")
        except (OSError, SafetensorError) as error:
            raise InvalidPackage(f"{self.folder} lacks the matrix of {name}; split the model again.") from error
        if matrix.dtype != torch.int8 or matrix.shape != (rows, columns):
            raise InvalidPackage(f"The matrix of {name} in {self.folder} has a wrong shape; split the model again.")
        return matrix

    def verify(self) -> None:
        """InvalidPackage unless the matrices have the digest that the manifest states."""
        matrices = (
            (layer.name, self._matrix(layer.name, layer.rows, group.columns))
            for group in self.manifest.groups
            for layer in group.layers
        )
        if weights_digest(matrices) != self.manifest.model_digest:
            raise InvalidPackage(f"The weights in {self.folder} are not those of its manifest; split the model again.")

"""A server's package: the int8 matrices of the protected layers, one safetensors file for each layer group.

Holds no scale, no bias and nothing else of the model; what the matrices mean, it can't know. Only files that its
layer table names are read, each once, and digested as it is read; what else lies in the folder does not matter.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from confide.errors import InvalidPackage
from confide.packages.manifest import Group, Manifest, ModelDigest, PackageKind, read_bounded
from confide.packages.signing import SignedManifest, open_package

_MAX_HEADER: Final = 1 << 17
"""Room for the names and shapes before the matrices in a file."""


def group_file(folder: Path, index: int) -> Path:
    """Where the matrices of the group of this index lie."""
    return folder / f"group-{index:05d}.safetensors"


def row_norms(weights: Tensor) -> tuple[int, float]:
    """The largest L1 and the largest L2 norm of a row of an int8 matrix."""
    # One row of at most 2^16 columns sums to less than 2^31 squared magnitudes, so int32 sums are exact.
    magnitudes = weights.abs().to(torch.int32)
    l1 = magnitudes.sum(dim=1).max()
    l2 = magnitudes.square_().sum(dim=1).max()
    return int(l1), float(l2.double().sqrt())


@dataclass(frozen=True)
class ServerPackage:
    """An opened package; matrices are read when they are asked for."""

    folder: Path
    signed: SignedManifest

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """Read the layer table. InvalidPackage where it is malformed, not what was signed, or that of a shell.

        Whoever signed it will do: a server need not trust what it serves.
        """
        return cls(Path(folder), open_package(folder, PackageKind.SERVER))

    @property
    def manifest(self) -> Manifest:
        """The layer table."""
        return self.signed.manifest

    def weights(self, index: int) -> Tensor:
        """The stacked matrix of a layer group: int8 (rows, columns), contiguous, on the CPU.

        Raises InvalidPackage where the file is not the one that was signed, or not what the layer table says.
        """
        group = self.manifest.groups[index]
        path = group_file(self.folder, index)
        content = read_bounded(path, group.rows * group.columns + _MAX_HEADER)
        _require(path, hashlib.sha256(content).hexdigest() == self.manifest.files.get(path.name))
        try:
            matrices = load(content)
        except SafetensorError as error:
            raise InvalidPackage(f"{path} is damaged; run `confide split` again.") from error
        _require(path, matrices.keys() == {layer.name for layer in group.layers})
        for layer in group.layers:
            matrix = matrices[layer.name]
            _require(path, matrix.shape == (layer.rows, group.columns) and matrix.dtype == torch.int8)
        return torch.cat([matrices[layer.name] for layer in group.layers])

    def load(self) -> list[Tensor]:
        """Every group's matrix; InvalidPackage unless they are those that the layer table was made for."""
        digest = ModelDigest()
        matrices = []
        for index, group in enumerate(self.manifest.groups):
            weights = self.weights(index)
            _require(group_file(self.folder, index), row_norms(weights) == (group.row_l1, group.row_l2))
            _add_to_digest(digest, group, weights)
            matrices.append(weights)
        _require(self.folder, digest.hexdigest() == self.manifest.model_digest)
        return matrices


def _add_to_digest(digest: ModelDigest, group: Group, stacked: Tensor) -> None:
    for layer, matrix in zip(group.layers, stacked.split([layer.rows for layer in group.layers]), strict=True):
        digest.add(layer.name, layer.rows, group.columns, matrix.numpy().data)


def _require(path: Path, condition: bool) -> None:
    if not condition:
        raise InvalidPackage(f"{path} does not hold the matrices of its layer table; run `confide split` again.")

"""A server's package: the int8 matrices of the protected layers, one safetensors file for each layer group.

With private weights the hint's U lies beside them. Holds no scale, no bias and nothing else of the model; what the
matrices mean, it can't know. Only files that its
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
from confide.packages.manifest import (
    MASK_TENSOR,
    Group,
    Manifest,
    ModelDigest,
    PackageKind,
    group_name,
    read_package_file,
)
from confide.packages.signing import SignedManifest, open_package
from confide.rlwe.parameters import RING_DEGREE, Norms, Profile

_MAX_HEADER: Final = 1 << 17
"""Room for the names and shapes before the matrices in a file."""


def group_file(folder: Path, index: int) -> Path:
    """Where the matrices of the group of this index lie."""
    return folder / group_name(index)


def row_norms(weights: Tensor) -> Norms:
    """The largest L1 and the largest L2 norm of a row of an int8 matrix."""
    # One row of at most 2^16 columns sums to less than 2^31 squared magnitudes, so int32 sums are exact.
    magnitudes = weights.abs().to(torch.int32)
    l1 = magnitudes.sum(dim=1).max()
    l2 = magnitudes.square_().sum(dim=1).max()
    return Norms(int(l1), float(l2.double().sqrt()))


@dataclass(frozen=True)
class StoredGroup:
    """What a server multiplies by for one layer group. weights: int8 (rows, columns). u: int8 (rows, N), or None.

    Both are contiguous and on the CPU. With open weights there is no u.
    """

    weights: Tensor
    u: Tensor | None


def read_group(folder: Path, manifest: Manifest, index: int) -> StoredGroup:
    """The matrices of a layer group in a server's package, or in a shell of open weights, which has them too.

    Raises InvalidPackage where the file is not the one that was signed, or not what the layer table says.
    """
    group = manifest.groups[index]
    masked = manifest.profile is Profile.PRIVATE_WEIGHTS
    path = group_file(folder, index)
    size = group.rows * (group.columns + (RING_DEGREE if masked else 0))
    content = read_package_file(path, size + _MAX_HEADER)
    _require(path, hashlib.sha256(content).hexdigest() == manifest.files.get(path.name))
    try:
        matrices = load(content)
    except SafetensorError as error:
        raise InvalidPackage(f"{path} is damaged; run `confide split` again.") from error
    shapes = {layer.name: (layer.rows, group.columns) for layer in group.layers}
    if masked:
        shapes[MASK_TENSOR] = (group.rows, RING_DEGREE)
    _require(path, {name: tuple(matrix.shape) for name, matrix in matrices.items()} == shapes)
    _require(path, all(matrix.dtype == torch.int8 for matrix in matrices.values()))
    u = matrices.pop(MASK_TENSOR) if masked else None
    return StoredGroup(torch.cat([matrices[layer.name] for layer in group.layers]), u)


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

    def group(self, index: int) -> StoredGroup:
        """The matrices of a layer group; see `read_group`."""
        return read_group(self.folder, self.manifest, index)

    def load(self) -> list[StoredGroup]:
        """Every group's matrices; InvalidPackage unless they are those that the layer table was made for."""
        digest = ModelDigest()
        groups = []
        for index, group in enumerate(self.manifest.groups):
            groups.append(self.group(index))
            _add_to_digest(digest, group, groups[-1].weights)
        _require(self.folder, digest.hexdigest() == self.manifest.model_digest)
        return groups

    def matrices(self) -> list[Tensor]:
        """The same without u: int8 (rows, columns) of every group."""
        return [group.weights for group in self.load()]


def _add_to_digest(digest: ModelDigest, group: Group, stacked: Tensor) -> None:
    for layer, matrix in zip(group.layers, stacked.split([layer.rows for layer in group.layers]), strict=True):
        digest.add(layer.name, layer.rows, group.columns, matrix.numpy().data, group.first_column)


def _require(path: Path, condition: bool) -> None:
    if not condition:
        raise InvalidPackage(f"{path} does not hold the matrices of its layer table; run `confide split` again.")

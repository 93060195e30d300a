"""A server's package: the int8 matrices of the protected layers, one safetensors file for each layer group.

Holds no scale, no bias and nothing else of the model; what the matrices mean, it can't know.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from confide.errors import InvalidPackage
from confide.models.package import Group, Manifest, ModelDigest, PackageKind, read_manifest


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
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """Read the layer table. InvalidPackage where it is malformed or the folder is a shell."""
        manifest = read_manifest(folder)
        if manifest.kind is not PackageKind.SERVER:
            raise InvalidPackage(f"{folder} is a client's shell; give the server folder of the same split.")
        return cls(Path(folder), manifest)

    def weights(self, index: int) -> Tensor:
        """The stacked matrix of a layer group: int8 (rows, columns), contiguous, on the CPU.

        Raises InvalidPackage where the file is damaged or does not hold what the layer table says.
        """
        group = self.manifest.groups[index]
        path = group_file(self.folder, index)
        stacked = torch.empty(group.rows, group.columns, dtype=torch.int8)
        start = 0
        try:
            with safe_open(path, framework="pt") as file:
                _require(path, set(file.keys()) == {layer.name for layer in group.layers})
                for layer in group.layers:
                    stored = file.get_slice(layer.name)
                    _require(path, stored.get_shape() == [layer.rows, group.columns] and stored.get_dtype() == "I8")
                    stacked[start : start + layer.rows] = file.get_tensor(layer.name)
                    start += layer.rows
        except (OSError, SafetensorError) as error:
            raise InvalidPackage(f"{path} is missing or damaged; run `confide split` again.") from error
        return stacked

    def verify(self) -> None:
        """Read every matrix; InvalidPackage unless they are those that the layer table was made for."""
        digest = ModelDigest()
        for index, group in enumerate(self.manifest.groups):
            weights = self.weights(index)
            _require(group_file(self.folder, index), row_norms(weights) == (group.row_l1, group.row_l2))
            _add_to_digest(digest, group, weights)
        _require(self.folder, digest.hexdigest() == self.manifest.model_digest)


def _add_to_digest(digest: ModelDigest, group: Group, stacked: Tensor) -> None:
    for layer, matrix in zip(group.layers, stacked.split([layer.rows for layer in group.layers]), strict=True):
        digest.add(layer.name, layer.rows, group.columns, matrix.numpy().data)


def _require(path: Path, condition: bool) -> None:
    if not condition:
        raise InvalidPackage(f"{path} does not hold the matrices of its layer table; run `confide split` again.")

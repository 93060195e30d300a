"""How fast a sealed model opens: decrypted and checked into tensors, against reading the plain file into the same ones.

Both sides allocate their tensors and take the file from the page cache, turn by turn.
"""

import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.measure import Figure, in_turn, write
from confide.packages.owner import OwnerKey
from confide.packages.sealed.contents import Contents
from confide.packages.sealed.key import ModelKey
from confide.packages.sealed.manifest import WeightsFormat
from confide.packages.sealed.package import SealedPackage
from confide.packages.sealed.tensors import allocate, file_layout, read_tensors
from confide.packages.sealed.write import seal_model

LAYERS = 48
WIDTH = 2048
ROUNDS = 7


def main() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        figures = [_throughput(Path(folder))]
    write("sealed", figures)
    return figures


def _throughput(folder: Path) -> Figure:
    plain = folder / "model.safetensors"
    save_file({f"layer.{index}": torch.randn(4 * WIDTH, WIDTH).half() for index in range(LAYERS)}, plain)
    key, owner = ModelKey.generate(), OwnerKey.generate()
    contents = Contents("benchmark", "none", WeightsFormat.SAFETENSORS, "f16", {plain.name: plain})
    seal_model(contents, folder / "package", key=key, owner=owner)

    def ours() -> None:
        read_tensors(SealedPackage.open(folder / "package", {owner.public}).unlock(key))

    opening, reading, ratio = in_turn(ours, lambda: read_plain(plain), ROUNDS)
    size = plain.stat().st_size / 1e9
    return Figure(
        "sealed model into tensors / plain read, throughput",
        1 / ratio,
        "ratio",
        0.8,
        1.0,
        f"{size:.2f} GB: {size / opening:.2f} GB/s against {size / reading:.2f} GB/s",
        higher_is_better=True,
    )


def read_plain(path: Path) -> dict[str, torch.Tensor]:
    """A safetensors file into tensors of its own, one read for each."""
    layout = file_layout(path)
    tensors, views = allocate(layout)
    with path.open("rb", buffering=0) as file:
        file.seek(path.stat().st_size - sum(map(len, views)))
        for view in views:
            assert file.readinto(view) == len(view)
    return tensors

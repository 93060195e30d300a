import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from confide.errors import InvalidPackage
from confide.models.split import SplitSummary
from confide.packages import server_package
from confide.packages.manifest import read_package_file
from confide.packages.server_package import ServerPackage, group_file, row_norms
from confide.rlwe.parameters import Norms
from owners import sign_again


@pytest.fixture
def server(llama_halves: SplitSummary, tmp_path: Path) -> Path:
    """A copy of a server's package that a test may damage."""
    return Path(shutil.copytree(llama_halves.server, tmp_path / "server"))


def test_layers_are_stacked_in_order(llama_halves: SplitSummary) -> None:
    package = ServerPackage.open(llama_halves.server)
    groups = package.load()
    stored = load_file(group_file(llama_halves.server, 0))
    stacked = torch.cat([stored[f"model.layers.0.self_attn.{name}_proj"] for name in "qkv"])
    for group in (groups[0], package.group(0)):
        assert torch.equal(group.weights, stacked)
        assert group.weights.dtype == torch.int8
        assert group.weights.is_contiguous()
        assert group.u is not None
        assert torch.equal(group.u, stored["u"])
        assert group.u.shape == (len(stacked), 2048)
        assert group.u.dtype == torch.int8
    assert torch.equal(package.matrices()[0], stacked)


def test_a_shell_is_refused(llama_halves: SplitSummary) -> None:
    with pytest.raises(InvalidPackage, match="server folder"):
        ServerPackage.open(llama_halves.client)


def test_one_changed_weight_is_noticed(server: Path) -> None:
    matrices = load_file(group_file(server, 3))
    matrix = next(matrix for name, matrix in matrices.items() if name != "u")
    matrix[1, 2] *= -1  # keeps the norms
    assert matrix[1, 2] != 0
    save_file(matrices, group_file(server, 3))
    package = ServerPackage.open(server)
    package.group(2)
    with pytest.raises(InvalidPackage, match="layer table"):
        package.group(3)
    sign_again(server)
    package = ServerPackage.open(server)
    package.group(3)
    with pytest.raises(InvalidPackage, match="layer table"):
        package.load()


@pytest.mark.parametrize(
    "damage", ["remove", "truncate", "missing", "superfluous", "shape", "type", "no u", "short u", "u of floats"]
)
def test_damage_is_refused(server: Path, damage: str) -> None:
    path = group_file(server, 0)
    matrices = load_file(path)
    name = next(name for name in matrices if name != "u")
    if damage == "remove":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        if damage == "no u":
            del matrices["u"]
        elif damage == "short u":
            matrices["u"] = matrices["u"][:, 1:].contiguous()
        elif damage == "u of floats":
            matrices["u"] = matrices["u"].float()
        elif damage == "missing":
            del matrices[name]
        elif damage == "superfluous":
            matrices["more"] = matrices[name].clone()
        elif damage == "shape":
            matrices[name] = matrices[name].t().contiguous()
        else:
            matrices[name] = matrices[name].float()
        if damage == "shape":
            matrices[name] = matrices[name][:-1].clone()
        save_file(matrices, path)
    sign_again(server)
    with pytest.raises(InvalidPackage):
        ServerPackage.open(server).group(0)


@pytest.mark.parametrize("sealed", [False, True])
def test_a_file_of_any_size_is_not_read(server: Path, sealed: bool) -> None:
    path = group_file(server, 0)
    path.write_bytes(path.read_bytes() + bytes(1 << 18))
    if sealed:
        sign_again(server)
    with pytest.raises(InvalidPackage, match="larger than"):
        ServerPackage.open(server).group(0)


def test_each_file_is_read_once_and_no_other(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (server / "group-99999.safetensors").write_bytes(b"nobody looks here")
    read: list[str] = []

    def watched(path: Path, limit: int) -> bytes:
        read.append(path.name)
        return read_package_file(path, limit)

    monkeypatch.setattr(server_package, "read_package_file", watched)
    package = ServerPackage.open(server)
    package.load()
    assert read == [group_file(server, index).name for index in range(len(package.manifest.groups))]


def test_row_norms_are_exact_at_the_extremes() -> None:
    weights = torch.full((2, 1 << 16), 127, dtype=torch.int8)
    weights[0] = -127
    assert row_norms(weights) == Norms(127 << 16, 127.0 * 256)
    assert row_norms(torch.tensor([[3, -4], [1, 1]], dtype=torch.int8)) == Norms(7, 5.0)

"""Sealed safetensors against what the library itself makes of the plain ones."""

import struct
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from confide.errors import InvalidPackage, SubstitutedContent, TruncatedFile
from confide.packages.sealed.contents import Contents
from confide.packages.sealed.manifest import WeightsFormat
from confide.packages.sealed.package import SealedPackage, UnlockedPackage
from confide.packages.sealed.stream import CHUNK_BYTES
from confide.packages.sealed.tensors import DTYPES, allocate, file_layout, parse_layout, read_tensors
from confide.packages.sealed.write import seal_model
from owners import OWNER

from .conftest import KEY


def seal(folder: Path, *files: Path) -> UnlockedPackage:
    contents = Contents("test", "none", WeightsFormat.SAFETENSORS, "f16", {path.name: path for path in files})
    seal_model(contents, folder / "package", key=KEY, owner=OWNER)
    return SealedPackage.open(folder / "package").unlock(KEY)


def require_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert ours[name].shape == tensor.shape
        # Byte by byte: what is not a number equals nothing.
        assert torch.equal(ours[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), name


def test_tensors_of_every_type_shape_and_place(tmp_path: Path) -> None:
    """Some inside one chunk, one over several, one that ends where a chunk does, some without elements."""
    generator = torch.Generator().manual_seed(1)

    def tensor(dtype: torch.dtype, *shape: int) -> Tensor:
        count = int(torch.tensor(shape).prod()) * dtype.itemsize if shape else dtype.itemsize
        high = 2 if dtype is torch.bool else 256
        return torch.randint(high, (count,), dtype=torch.uint8, generator=generator).view(dtype).view(shape)

    tensors = {name: tensor(dtype, 3, 5) for name, dtype in DTYPES.items()}
    tensors |= {
        "large": tensor(torch.float32, 1000, 700),
        "one": tensor(torch.float16),
        "empty": torch.empty(0, 4),
        "bytes": tensor(torch.uint8, CHUNK_BYTES),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    require_same(read_tensors(seal(tmp_path, tmp_path / "model.safetensors")), tensors)


def test_the_demo_model_is_read_as_the_library_reads_it(demo_package: Path) -> None:
    from confide.models.source import DEMO_FOLDER

    done: list[int] = []
    package = SealedPackage.open(demo_package).unlock(KEY)
    require_same(read_tensors(package, done.append), load_file(DEMO_FOLDER / "model.safetensors"))
    assert sum(done) == (DEMO_FOLDER / "model.safetensors").stat().st_size


def test_shards_are_read_together_and_may_not_overlap(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "1.safetensors")
    save_file({"b": torch.zeros(3)}, tmp_path / "2.safetensors")
    save_file({"a": torch.zeros(3)}, tmp_path / "3.safetensors")
    (tmp_path / "good").mkdir()
    tensors = read_tensors(seal(tmp_path / "good", tmp_path / "1.safetensors", tmp_path / "2.safetensors"))
    require_same(tensors, {"a": torch.ones(3), "b": torch.zeros(3)})
    with pytest.raises(InvalidPackage, match="a is in two files"):
        read_tensors(seal(tmp_path, tmp_path / "1.safetensors", tmp_path / "3.safetensors"))


def written(header: object, data: bytes) -> bytes:
    raw = header if isinstance(header, bytes) else msgspec.json.encode(header)
    return struct.pack("<Q", len(raw)) + raw + data


def entry(start: int, end: int, shape: list[int], dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        struct.pack("<Q", 1 << 40),
        struct.pack("<Q", 100) + b"{}",
        written(b"nonsense", b""),
        written({"a": entry(0, 4, [4])}, b"123"),
        written({"a": entry(0, 4, [4])}, b"12345"),
        written({"a": entry(0, 4, [5])}, b"1234"),
        written({"a": entry(1, 4, [3])}, b"1234"),
        written({"a": entry(0, 3, [3]), "b": entry(2, 4, [2])}, b"1234"),
        written({"a": entry(4, 0, [4]), "b": entry(0, 4, [4])}, b"1234"),
        written({"a": entry(0, 4, [4], "F4")}, b"1234"),
        written({"a": entry(0, 4, [-4])}, b"1234"),
        written({"a": entry(0, 4, [4]) | {"more": 1}}, b"1234"),
    ],
)
def test_a_file_that_is_not_sound_is_refused_though_signed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InvalidPackage, match=r"model\.safetensors is not a sound safetensors file"):
        read_tensors(seal(tmp_path, tmp_path / "model.safetensors"))
    with pytest.raises((ValueError, struct.error)):
        file_layout(tmp_path / "model.safetensors")


def test_nothing_comes_out_of_content_that_the_owner_did_not_sign(tmp_path: Path) -> None:
    """The right key, another model of the same length: even a header that fits leads nowhere."""
    for name, value in (("model", 1.0), ("other", 2.0)):
        (tmp_path / name).mkdir()
        save_file({"a": torch.full((1000,), value)}, tmp_path / name / "model.safetensors")
    genuine = seal(tmp_path, tmp_path / "model" / "model.safetensors")
    file, cipher_key = (
        genuine.manifest.files[0],
        KEY.file_key(bytes.fromhex(genuine.manifest.salt), 0, "model.safetensors"),
    )
    from confide.packages.sealed.stream import ChunkCipher

    forged = ChunkCipher(cipher_key, file.size).seal(0, (tmp_path / "other" / "model.safetensors").read_bytes())
    genuine.package.path(file).write_bytes(forged)
    with pytest.raises(SubstitutedContent):
        read_tensors(genuine)
    genuine.package.path(file).unlink()
    with pytest.raises(TruncatedFile):
        read_tensors(genuine)


def test_allocated_tensors_lie_where_their_views_say() -> None:
    layout = parse_layout(msgspec.json.encode({"a": entry(0, 4, [1], "F32"), "b": entry(4, 6, [2])}), 6)
    tensors, views = allocate(layout)
    views[0][:] = struct.pack("<f", 1.5)
    views[1][:] = b"\1\2"
    assert tensors["a"].tolist() == [1.5]
    assert tensors["b"].tolist() == [1, 2]

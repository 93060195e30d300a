"""A sealed GGUF model as a file in memory."""

import fcntl
import os
from pathlib import Path

import pytest
from gguf import GGUFReader

from confide.errors import DamagedFile, InvalidPackage
from confide.packages.sealed.memory import open_gguf
from confide.packages.sealed.package import SealedPackage

from .conftest import KEY


def test_the_file_in_memory_is_the_model(gguf_package: Path, gguf_file: Path) -> None:
    with open_gguf(SealedPackage.open(gguf_package).unlock(KEY)) as file:
        assert Path(file.path).read_bytes() == gguf_file.read_bytes()
        reader = GGUFReader(file.path)
        assert reader.fields["general.name"].contents() == "tiny"
        assert reader.tensors[0].data.shape == (64, 32)
        assert "memfd:" in os.readlink(file.path)
        descriptor = file.path
    assert not os.path.exists(descriptor)


def test_the_file_in_memory_cannot_be_changed(gguf_package: Path) -> None:
    with open_gguf(SealedPackage.open(gguf_package).unlock(KEY)) as file:
        with open(file.path, "r+b", buffering=0) as again:
            assert fcntl.fcntl(again, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
            with pytest.raises(PermissionError):
                again.write(b"x")
            with pytest.raises(PermissionError):
                again.truncate(1)


def test_a_refused_model_leaves_nothing_open(folder: Path) -> None:
    with (folder / "one.gguf.sealed").open("r+b") as file:
        file.write(b"x")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(DamagedFile):
        open_gguf(SealedPackage.open(folder).unlock(KEY))
    assert os.listdir("/proc/self/fd") == before


def test_a_safetensors_model_is_no_gguf(demo_package: Path) -> None:
    with pytest.raises(InvalidPackage, match="does not hold a GGUF model"):
        open_gguf(SealedPackage.open(demo_package).unlock(KEY))

"""Sealed packages of small models: made once, read by many tests, written by none."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter, LlamaFileType

from confide.packages.sealed.contents import Contents, contents_of
from confide.packages.sealed.key import ModelKey
from confide.packages.sealed.manifest import WeightsFormat
from confide.packages.sealed.stream import CHUNK_BYTES
from confide.packages.sealed.write import seal_model
from owners import OWNER

KEY = ModelKey(b"k" * 32)


@pytest.fixture(scope="session")
def demo_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, sealed by OWNER with KEY."""
    out = tmp_path_factory.mktemp("sealed") / "demo"
    seal_model(contents_of("demo"), out, key=KEY, owner=OWNER)
    return out


@pytest.fixture(scope="session")
def plain_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Made-up files: two of the same length with several chunks, a short one, and an empty one."""
    folder = tmp_path_factory.mktemp("plain")
    contents = {
        "one.gguf": bytes(range(256)) * (3 * CHUNK_BYTES // 256) + b"one",
        "two.json": bytes(reversed(range(256))) * (3 * CHUNK_BYTES // 256) + b"two",
        "short.json": b"{}",
        "empty.json": b"",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in contents}


@pytest.fixture(scope="session")
def made_up(plain_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The made-up files, sealed by OWNER with KEY."""
    out = tmp_path_factory.mktemp("sealed") / "made-up"
    contents = Contents("made-up", "none", WeightsFormat.GGUF, "f16", plain_files)
    seal_model(contents, out, key=KEY, owner=OWNER)
    return out


@pytest.fixture
def folder(made_up: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made_up, tmp_path / "package"))


@pytest.fixture(scope="session")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file with the metadata of a model, and one matrix."""
    path = tmp_path_factory.mktemp("gguf") / "tiny model.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    writer.add_tensor("token_embd.weight", np.arange(64 * 32, dtype=np.float32).reshape(64, 32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session")
def gguf_package(gguf_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, sealed by OWNER with KEY."""
    out = tmp_path_factory.mktemp("sealed") / "gguf"
    seal_model(contents_of(str(gguf_file)), out, key=KEY, owner=OWNER)
    return out

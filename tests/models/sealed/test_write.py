"""What is sealed, and what is left when that is interrupted."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import save_file
from transformers import T5Config

from confide.errors import (
    ConfideError,
    DamagedFile,
    InvalidPackage,
    ModelNotSupported,
    SubstitutedContent,
    WrongModelKey,
)
from confide.models.source import Source
from confide.models.split import SplitSummary
from confide.packages.manifest import PackageKind, read_kind, read_manifest
from confide.packages.sealed.contents import Contents, contents_of
from confide.packages.sealed.key import ModelKey
from confide.packages.sealed.known_answers import KnownAnswer, KnownAnswers
from confide.packages.sealed.manifest import WeightsFormat
from confide.packages.sealed.package import SealedPackage
from confide.packages.sealed.stream import ChunkCipher, chunk_count
from confide.packages.sealed.write import reseal_model, seal_model
from owners import OWNER

from .conftest import KEY


def test_a_package_says_what_it_is(demo_package: Path, llama_halves: SplitSummary) -> None:
    assert read_kind(demo_package) is PackageKind.SEALED
    assert read_kind(llama_halves.client) is PackageKind.SHELL
    assert read_kind(llama_halves.server) is PackageKind.SERVER
    manifest = SealedPackage.open(demo_package).manifest
    assert (manifest.name, manifest.architecture, manifest.quantization) == ("demo", "gpt2", "f16")
    assert manifest.weights is WeightsFormat.SAFETENSORS
    assert manifest.key == KEY.id


def test_what_is_no_package_has_no_kind(tmp_path: Path) -> None:
    for content in (None, b"", b"{}", b'{"kind": "other"}', b"\xff"):
        if content is not None:
            (tmp_path / "manifest.json").write_bytes(content)
        with pytest.raises(InvalidPackage, match=r"manifest\.json"):
            read_kind(tmp_path)


def test_one_kind_is_not_read_as_another(demo_package: Path, llama_halves: SplitSummary) -> None:
    with pytest.raises(InvalidPackage):
        read_manifest(demo_package)
    with pytest.raises(InvalidPackage):
        SealedPackage.open(llama_halves.client)


@pytest.mark.parametrize("kind", ["sealed-model", "sealed-data", "sealed-corpus"])
def test_a_layer_table_does_not_pose_as_what_is_sealed(llama_halves: SplitSummary, tmp_path: Path, kind: str) -> None:
    values = json.loads((llama_halves.client / "manifest.json").read_text()) | {"kind": kind}
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(InvalidPackage, match="what is sealed has none"):
        read_manifest(tmp_path)


def test_a_gguf_file_says_its_architecture_and_quantization(gguf_package: Path) -> None:
    manifest = SealedPackage.open(gguf_package).manifest
    assert (manifest.name, manifest.architecture, manifest.quantization) == ("tiny-model", "llama", "q8_0")
    assert manifest.weight_files() == ["model.gguf"]


def test_the_digest_is_the_models_and_not_the_packages(demo_package: Path, tmp_path: Path) -> None:
    contents = contents_of("demo")
    again = seal_model(contents, tmp_path / "again", key=ModelKey.generate(), owner=OWNER)
    first = SealedPackage.open(demo_package).manifest
    assert again.model_digest == first.model_digest
    assert again.salt != first.salt
    assert again.files[0].digest != first.files[0].digest
    fewer = {name: path for name, path in contents.files.items() if name != "generation_config.json"}
    smaller = Contents(contents.name, contents.architecture, contents.weights, contents.quantization, fewer)
    assert seal_model(smaller, tmp_path / "smaller", key=KEY, owner=OWNER).model_digest != first.model_digest


def test_a_model_that_gets_another_key_is_the_same_model(
    folder: Path, plain_files: dict[str, Path], tmp_path: Path
) -> None:
    other, done = ModelKey.generate(), []
    unlocked = SealedPackage.open(folder).unlock(KEY)
    manifest = reseal_model(unlocked, tmp_path / "again", key=other, owner=OWNER, on_chunk=done.append)
    assert (manifest.model_digest, manifest.key) == (unlocked.manifest.model_digest, other.id)
    assert sum(done) == unlocked.manifest.size
    again = SealedPackage.open(tmp_path / "again")
    assert not {file.digest for file in again.manifest.files} & {file.digest for file in unlocked.manifest.files}
    for name, path in plain_files.items():
        assert bytes(again.unlock(other).file(name).read()) == path.read_bytes()
    with pytest.raises(WrongModelKey):
        again.unlock(KEY)
    with pytest.raises(ConfideError, match="this key already"):
        reseal_model(unlocked, tmp_path / "same", key=KEY, owner=OWNER)


def test_its_known_answers_get_the_key_too(demo_package: Path, tmp_path: Path) -> None:
    other, given = (
        ModelKey.generate(),
        KnownAnswers(1, "made up", "1", "00" * 32, (KnownAnswer("Once", " upon a time", 4, 0.5),)),
    )
    examined = tmp_path / "examined"
    seal_model(contents_of("demo"), examined, key=KEY, owner=OWNER, examine=lambda unlocked: given)
    unlocked = SealedPackage.open(examined).unlock(KEY)
    reseal_model(unlocked, tmp_path / "again", key=other, owner=OWNER)
    again = SealedPackage.open(tmp_path / "again").unlock(other)
    again.verify()
    assert again.known_answers() == given


@pytest.mark.parametrize("damage", ["changed", "substituted"])
def test_nothing_is_sealed_anew_that_the_owner_did_not_seal(
    folder: Path, plain_files: dict[str, Path], tmp_path: Path, damage: str
) -> None:
    package = SealedPackage.open(folder)
    path = package.path(package.manifest.files[0])
    if damage == "changed":
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
    else:  # by somebody who has the key
        plain = bytearray(plain_files["one.gguf"].read_bytes())
        plain[0] ^= 1
        cipher = ChunkCipher(KEY.file_key(bytes.fromhex(package.manifest.salt), 0, "one.gguf"), len(plain))
        spans = [cipher.span(index) for index in range(chunk_count(len(plain)))]
        sealed = [cipher.seal(index, bytes(plain[span.start : span.end])) for index, span in enumerate(spans)]
        content = bytearray(b"".join(sealed))
    path.write_bytes(content)
    with pytest.raises(DamagedFile if damage == "changed" else SubstitutedContent):
        reseal_model(package.unlock(KEY), tmp_path / "again", key=ModelKey.generate(), owner=OWNER)
    assert [path.name for path in tmp_path.iterdir()] == ["package"]


def test_an_interrupted_run_leaves_nothing(plain_files: dict[str, Path], tmp_path: Path) -> None:
    contents = Contents("test", "none", WeightsFormat.GGUF, "f16", plain_files)
    done: list[int] = []

    def interrupt(count: int) -> None:
        done.append(count)
        if len(done) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        seal_model(contents, tmp_path / "package", key=KEY, owner=OWNER, on_chunk=interrupt)
    assert list(tmp_path.iterdir()) == []
    seal_model(contents, tmp_path / "package", key=KEY, owner=OWNER)
    assert [path.name for path in tmp_path.iterdir()] == ["package"]


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    with pytest.raises(ConfideError, match="exists already"):
        seal_model(contents_of("demo"), tmp_path / "package", key=KEY, owner=OWNER)
    assert list((tmp_path / "package").iterdir()) == []


@pytest.mark.parametrize("change", [lambda path: path.write_bytes(b""), lambda path: path.open("ab").write(b"x" * 9)])
def test_a_file_that_changes_meanwhile_is_noticed(plain_files: dict[str, Path], tmp_path: Path, change: object) -> None:
    path = Path(shutil.copy(plain_files["one.gguf"], tmp_path / "one.gguf"))
    contents = Contents("test", "none", WeightsFormat.GGUF, "f16", {"one.gguf": path})
    with pytest.raises(ConfideError, match="changed while it was sealed"):
        seal_model(contents, tmp_path / "p", key=KEY, owner=OWNER, on_chunk=lambda _: change(path))  # type: ignore[operator]


def test_what_is_no_model_is_refused(tmp_path: Path, tiny_gpt2: Source) -> None:
    (tmp_path / "notes.txt").touch()
    for nothing in ("no-such-model", str(tmp_path / "notes.txt"), str(tmp_path)):
        with pytest.raises(ConfideError, match="There is no model"):
            contents_of(nothing)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF nonsense")
    with pytest.raises(ModelNotSupported, match="not a GGUF model"):
        contents_of(str(tmp_path / "broken.gguf"))
    folder = Path(shutil.copytree(tiny_gpt2.location, tmp_path / "model"))
    (folder / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ModelNotSupported, match="not a safetensors file"):
        contents_of(str(folder))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelNotSupported, match="save the model as safetensors"):
        contents_of(str(folder))


@pytest.mark.parametrize("name", ["../secret.safetensors", "missing.safetensors", 7])
def test_an_index_leads_nowhere_else(tiny_gpt2: Source, tmp_path: Path, name: object) -> None:
    folder = Path(shutil.copytree(tiny_gpt2.location, tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    save_file({}, tmp_path / "secret.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ModelNotSupported):
        contents_of(str(folder))


def test_a_model_without_a_language_head_is_refused(tmp_path: Path) -> None:
    T5Config(vocab_size=8, d_model=8).save_pretrained(tmp_path)
    with pytest.raises(ModelNotSupported, match="no causal language model"):
        contents_of(str(tmp_path))

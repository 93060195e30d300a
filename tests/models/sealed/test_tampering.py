"""Whatever is done to a sealed package is refused, by the error for it."""

import hashlib
import os
import shutil
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from confide.errors import (
    ConfideError,
    DamagedFile,
    InvalidPackage,
    SubstitutedContent,
    SurplusFile,
    TruncatedFile,
    UntrustedOwner,
    WrongModelKey,
)
from confide.packages.sealed.contents import Contents
from confide.packages.sealed.key import ModelKey
from confide.packages.sealed.manifest import SealedManifest, WeightsFormat, model_digest, write_signed
from confide.packages.sealed.package import SealedPackage
from confide.packages.sealed.stream import CHUNK_BYTES, TAG_BYTES, ChunkCipher, chunk_count
from confide.packages.sealed.write import seal_model
from owners import OWNER, STRANGER

from .conftest import KEY

FILES = ["one.gguf", "two.json", "short.json", "empty.json"]
SEALED_CHUNK = CHUNK_BYTES + TAG_BYTES
damaging = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)


def verify(folder: Path, key: ModelKey = KEY) -> None:
    SealedPackage.open(folder, {OWNER.public}).unlock(key).verify()


def verify_ciphertext(folder: Path) -> None:
    SealedPackage.open(folder, {OWNER.public}).verify_ciphertext()


def sealed(folder: Path, name: str) -> Path:
    return folder / f"{name}.sealed"


def restore(folder: Path, made_up: Path) -> None:
    shutil.copytree(made_up, folder, dirs_exist_ok=True)


def manifest_of(folder: Path) -> SealedManifest:
    return SealedPackage.open(folder).manifest


def test_what_was_sealed_verifies(folder: Path) -> None:
    verify(folder)
    verify_ciphertext(folder)


@damaging
@given(name=st.sampled_from(FILES), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_is_damage(folder: Path, made_up: Path, name: str, place: float, bit: int) -> None:
    restore(folder, made_up)
    with sealed(folder, name).open("r+b") as file:
        at = int(place * os.fstat(file.fileno()).st_size)
        file.seek(at)
        changed = bytes([file.read(1)[0] ^ 1 << bit])
        file.seek(at)
        file.write(changed)
    with pytest.raises(DamagedFile, match=f"{name}.*chunk {at // SEALED_CHUNK} was changed"):
        verify(folder)
    with pytest.raises(DamagedFile, match=name):
        verify_ciphertext(folder)


@damaging
@given(name=st.sampled_from(FILES), share=st.floats(0, 1, exclude_max=True))
def test_a_shortened_file_is_truncated(folder: Path, made_up: Path, name: str, share: float) -> None:
    restore(folder, made_up)
    os.truncate(sealed(folder, name), int(share * sealed(folder, name).stat().st_size))
    with pytest.raises(TruncatedFile, match=name):
        SealedPackage.open(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_lengthened_or_missing_file_is_refused(folder: Path, name: str) -> None:
    with sealed(folder, name).open("ab") as file:
        file.write(bytes(SEALED_CHUNK))
    with pytest.raises(TruncatedFile, match=name):
        SealedPackage.open(folder)
    sealed(folder, name).unlink()
    with pytest.raises(TruncatedFile, match=name):
        SealedPackage.open(folder)


def test_a_file_that_is_shortened_after_the_package_was_opened_is_truncated(folder: Path) -> None:
    package = SealedPackage.open(folder).unlock(KEY)
    reader = package.file("one.gguf")
    os.truncate(sealed(folder, "one.gguf"), SEALED_CHUNK)
    with pytest.raises(TruncatedFile, match=r"one\.gguf"):
        reader.verify()


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0), (0, 2, 1), (0, 0, 2), (1, 2, 0)])
def test_chunks_in_another_order_are_damage(folder: Path, order: tuple[int, int, int]) -> None:
    path = sealed(folder, "one.gguf")
    content = path.read_bytes()
    chunks = [content[start : start + SEALED_CHUNK] for start in range(0, 3 * SEALED_CHUNK, SEALED_CHUNK)]
    path.write_bytes(b"".join(chunks[index] for index in order) + content[3 * SEALED_CHUNK :])
    with pytest.raises(DamagedFile, match="chunk"):
        verify(folder)
    with pytest.raises(DamagedFile):
        verify_ciphertext(folder)


@pytest.mark.parametrize("chunk", range(4))
def test_a_chunk_of_another_file_is_damage(folder: Path, chunk: int) -> None:
    start = chunk * SEALED_CHUNK
    with sealed(folder, "one.gguf").open("r+b") as one, sealed(folder, "two.json").open("rb") as two:
        one.seek(start)
        two.seek(start)
        one.write(two.read(SEALED_CHUNK))
    with pytest.raises(DamagedFile, match=f"chunk {chunk} was"):
        verify(folder)


def test_swapped_files_are_damage(folder: Path) -> None:
    one, two = sealed(folder, "one.gguf"), sealed(folder, "two.json")
    one.rename(folder / "three")
    two.rename(one)
    (folder / "three").rename(two)
    with pytest.raises(DamagedFile):
        verify(folder)
    with pytest.raises(DamagedFile):
        verify_ciphertext(folder)


def test_a_file_of_the_same_model_sealed_again_is_damage(
    folder: Path, plain_files: dict[str, Path], tmp_path: Path
) -> None:
    again = tmp_path / "again"
    seal_model(Contents("made-up", "none", WeightsFormat.GGUF, "f16", plain_files), again, key=KEY, owner=OWNER)
    assert manifest_of(again).model_digest == manifest_of(folder).model_digest
    shutil.copy(sealed(again, "short.json"), sealed(folder, "short.json"))
    with pytest.raises(DamagedFile, match=r"short\.json"):
        verify(folder)


@given(key=st.binary(min_size=32, max_size=32).filter(lambda raw: raw != KEY.raw))
def test_another_key_is_refused_by_its_id(made_up: Path, key: bytes) -> None:
    with pytest.raises(WrongModelKey, match=ModelKey(key).id) as caught:
        SealedPackage.open(made_up).unlock(ModelKey(key))
    assert key.hex() not in str(caught.value)


def test_another_owner_is_refused(folder: Path) -> None:
    write_signed(folder, manifest_of(folder), STRANGER)
    with pytest.raises(UntrustedOwner, match=STRANGER.public.fingerprint):
        verify(folder)
    assert SealedPackage.open(folder, {STRANGER.public}).owner == STRANGER.public


def test_the_name_of_a_trusted_owner_is_not_enough(folder: Path) -> None:
    write_signed(folder, manifest_of(folder), STRANGER)
    signature = msgspec.json.decode((folder / "signature.json").read_bytes()) | {"owner": str(OWNER.public)}
    (folder / "signature.json").write_bytes(msgspec.json.encode(signature))
    with pytest.raises(InvalidPackage, match="changed after"):
        verify(folder)


@damaging
@given(name=st.sampled_from(["manifest.json", "signature.json"]), data=st.data())
def test_a_changed_manifest_or_signature_is_refused(
    folder: Path, made_up: Path, name: str, data: st.DataObject
) -> None:
    genuine = (made_up / name).read_bytes()
    place = data.draw(st.integers(0, len(genuine) - 1))
    changed = genuine[:place] + data.draw(st.binary(max_size=3)) + genuine[place + 1 :]
    restore(folder, made_up)
    (folder / name).write_bytes(changed)
    if (name == "signature.json" and _same_json(changed, genuine)) or changed == genuine:
        verify(folder)
        return
    with pytest.raises((InvalidPackage, UntrustedOwner)):
        verify(folder)


def _same_json(first: bytes, second: bytes) -> bool:
    try:
        return bool(msgspec.json.decode(first) == msgspec.json.decode(second))
    except (msgspec.DecodeError, ValueError):
        return False


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"kind": "hybrid-shell"},
        {"files": ()},
        {"model_digest": "00" * 32},
        {"name": "a name with spaces"},
        {"salt": "00"},
        {"key": "00" * 15},
        {"weights": "pickle"},
        {"more": 1},
    ],
)
def test_a_manifest_that_says_nonsense_is_refused_though_signed(folder: Path, change: dict[str, object]) -> None:
    values = msgspec.to_builtins(manifest_of(folder)) | change
    write_signed(folder, values, OWNER)  # type: ignore[arg-type]
    with pytest.raises(InvalidPackage, match=r"manifest\.json"):
        SealedPackage.open(folder)


@pytest.mark.parametrize("change", [{"name": "two.json"}, {"chunks": 3}, {"name": "one.json"}])
def test_a_manifest_that_contradicts_itself_is_refused_though_signed(folder: Path, change: dict[str, object]) -> None:
    manifest = manifest_of(folder)
    files = (msgspec.structs.replace(manifest.files[0], **change), *manifest.files[1:])
    write_signed(folder, msgspec.structs.replace(manifest, files=files, model_digest=model_digest(files)), OWNER)
    with pytest.raises(InvalidPackage, match="contradicts itself"):
        SealedPackage.open(folder)


@pytest.mark.parametrize("name", ["more.json", "more.json.sealed", "one.gguf", "folder/more", "code.py"])
def test_surplus_files_are_refused(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).touch()
    with pytest.raises(SurplusFile, match=f"{name} is not part"):
        SealedPackage.open(folder)


def test_a_pipe_is_not_waited_for(folder: Path) -> None:
    sealed(folder, "short.json").unlink()
    os.mkfifo(sealed(folder, "short.json"))
    with pytest.raises(TruncatedFile):
        SealedPackage.open(folder)


@pytest.mark.parametrize("name", ["one.gguf", "short.json"])
def test_a_holder_of_the_key_cannot_put_other_content_in_place(folder: Path, name: str) -> None:
    """What AES-GCM alone would let pass: the right key, salt, name, index and length, and other bytes."""
    manifest = manifest_of(folder)
    index, file = next((index, file) for index, file in enumerate(manifest.files) if file.name == name)
    cipher = ChunkCipher(KEY.file_key(bytes.fromhex(manifest.salt), index, name), file.size)
    forged = [cipher.seal(chunk, bytes(cipher.span(chunk).length)) for chunk in range(chunk_count(file.size))]
    sealed(folder, name).write_bytes(b"".join(forged))
    with pytest.raises(SubstitutedContent, match="not what its owner signed"):
        verify(folder)
    with pytest.raises(SubstitutedContent):
        SealedPackage.open(folder).unlock(KEY).file(name).read()
    with pytest.raises(DamagedFile):
        verify_ciphertext(folder)


def test_every_refusal_has_a_code_of_its_own() -> None:
    kinds: list[type[ConfideError]] = [
        DamagedFile,
        SubstitutedContent,
        SurplusFile,
        TruncatedFile,
        UntrustedOwner,
        WrongModelKey,
        InvalidPackage,
    ]
    assert len({kind.code for kind in kinds}) == len(kinds)


def test_the_ciphertext_shows_nothing_of_the_content(made_up: Path) -> None:
    content = b"".join(path.read_bytes() for path in made_up.iterdir())
    for marker in (bytes(range(64)), bytes(reversed(range(64)))):
        assert marker not in content
    assert hashlib.sha256(sealed(made_up, "one.gguf").read_bytes()).hexdigest() == manifest_of(made_up).files[0].digest

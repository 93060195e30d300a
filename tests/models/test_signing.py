import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from confide.errors import InvalidPackage, ModelMismatch, UntrustedOwner
from confide.models.split import SplitSummary
from confide.packages.manifest import Manifest, PackageKind, read_manifest
from confide.packages.signing import (
    MAX_SIGNATURE_BYTES,
    Signature,
    SignedManifest,
    open_package,
    require_files,
    sign_manifest,
    sign_package,
)
from confide.rlwe.parameters import Profile
from owners import OWNER, STRANGER, sign_again

FILES = ["config.json", "model.safetensors", "tokenizer.json", "templates/one.jinja"]


@pytest.fixture(scope="module")
def sealed(llama_halves: SplitSummary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shell's layer table over made-up files."""
    folder = tmp_path_factory.mktemp("sealed") / "client"
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"the content of {name}")
    sign_package(folder, read_manifest(llama_halves.client), OWNER)
    return folder


@pytest.fixture
def folder(sealed: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(sealed, tmp_path / "client"))


def verify(folder: Path) -> Manifest:
    manifest = open_package(folder, PackageKind.SHELL, {OWNER.public}).manifest
    require_files(folder, manifest)
    return manifest


def signature_of(folder: Path) -> dict[str, str]:
    content: dict[str, str] = msgspec.json.decode((folder / "signature.json").read_bytes())
    return content


def write_signature(folder: Path, **changes: object) -> None:
    (folder / "signature.json").write_bytes(msgspec.json.encode(signature_of(folder) | changes))


def test_a_sealed_package_opens(folder: Path) -> None:
    assert set(verify(folder).files) == set(FILES)
    assert open_package(folder, PackageKind.SHELL).release.owner == OWNER.public


def test_both_halves_share_one_release(llama_halves: SplitSummary) -> None:
    shell = open_package(llama_halves.client, PackageKind.SHELL)
    server = open_package(llama_halves.server, PackageKind.SERVER)
    assert shell.release == server.release
    assert shell.signature.release == server.signature.release
    assert shell.signature.package != server.signature.package
    require_files(llama_halves.server, server.manifest)


@pytest.mark.parametrize("name", [*FILES, "manifest.json", "signature.json"])
def test_every_flipped_bit_is_noticed(folder: Path, name: str) -> None:
    path = folder / name
    content = path.read_bytes()
    for place in range(0, len(content), max(1, len(content) // 40)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises((InvalidPackage, UntrustedOwner)):
            verify(folder)
    path.write_bytes(content)
    verify(folder)


@pytest.mark.parametrize("name", [*FILES, "manifest.json", "signature.json"])
def test_every_missing_or_shortened_file_is_noticed(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InvalidPackage):
        verify(folder)
    path.unlink()
    with pytest.raises(InvalidPackage):
        verify(folder)


@pytest.mark.parametrize("name", ["added_tokens.json", "tokenizer.model", "code.py", "templates/two.jinja", "new/x"])
def test_a_file_that_nobody_signed_is_refused(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).touch()
    with pytest.raises(InvalidPackage, match="remove it"):
        verify(folder)


def test_links_to_elsewhere_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (folder / "templates" / "more").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidPackage, match="remove it"):
        verify(folder)


def test_a_linked_folder_is_refused_and_not_searched(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "private").touch()
    (folder / "linked").symlink_to(tmp_path / "disk")
    with pytest.raises(InvalidPackage, match="linked is not part"):
        verify(folder)


@pytest.mark.parametrize("name", ["config.json", "manifest.json", "signature.json"])
@pytest.mark.parametrize("endless", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_what_never_ends_is_not_read(folder: Path, name: str, endless: Callable[[Path], None]) -> None:
    (folder / name).unlink()
    endless(folder / name)
    with pytest.raises(InvalidPackage):
        verify(folder)


def test_each_users_own_files_do_not_matter(folder: Path) -> None:
    for name in ("hint/group-00000.bin", "state/ledger", "checks.msgpack", "README.md", ".DS_Store", ".cache/x.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("anything")
    verify(folder)
    sign_again(folder)
    assert set(verify(folder).files) == set(FILES)


def test_another_owners_shell_is_refused_with_its_fingerprint(folder: Path) -> None:
    sign_again(folder, STRANGER)
    with pytest.raises(UntrustedOwner, match=STRANGER.public.fingerprint) as caught:
        verify(folder)
    assert f"confide owner trust {STRANGER.public}" in str(caught.value)
    for trusted in (None, {STRANGER.public: "friend"}, {OWNER.public, STRANGER.public}):
        open_package(folder, PackageKind.SHELL, trusted)
    with pytest.raises(UntrustedOwner):
        open_package(folder, PackageKind.SHELL, {})


def test_the_name_of_a_trusted_owner_is_not_enough(folder: Path) -> None:
    sign_again(folder, STRANGER)
    write_signature(folder, owner=str(OWNER.public))
    with pytest.raises(InvalidPackage, match="changed after"):
        verify(folder)


def test_signatures_of_other_packages_do_not_hold(folder: Path, llama_halves: SplitSummary) -> None:
    own, server = signature_of(folder), signature_of(llama_halves.server)
    for wrong in (server["package"], own["release"]):
        write_signature(folder, package=wrong)
        with pytest.raises(InvalidPackage, match="changed after"):
            verify(folder)
    other = msgspec.structs.replace(read_manifest(folder), model_digest="00" * 32)
    foreign = sign_manifest(b"", other, OWNER).release
    for wrong in (foreign, own["package"]):
        write_signature(folder, package=own["package"], release=wrong)
        with pytest.raises(InvalidPackage, match="another release"):
            verify(folder)


@pytest.mark.parametrize("kind", [PackageKind.SHELL, PackageKind.SERVER])
def test_the_kind_must_be_that_asked_for(llama_halves: SplitSummary, kind: PackageKind) -> None:
    wrong = llama_halves.server if kind is PackageKind.SHELL else llama_halves.client
    with pytest.raises(InvalidPackage, match=r"give the \w+ folder of the same split"):
        open_package(wrong, kind)


@pytest.mark.parametrize(
    "changes",
    [
        {"owner": "ab" * 31},
        {"owner": "AB" * 32},
        {"owner": "ab" * 32 + "\n"},
        {"package": "ab" * 63},
        {"release": "ab" * 65},
        {"release": None},
        {"package": 7},
        {"more": "ab"},
    ],
)
def test_a_malformed_signature_is_refused(folder: Path, changes: dict[str, object]) -> None:
    write_signature(folder, **changes)
    with pytest.raises(InvalidPackage, match="not a signature"):
        verify(folder)


def test_a_large_signature_is_not_read(folder: Path) -> None:
    (folder / "signature.json").write_bytes(b" " * (MAX_SIGNATURE_BYTES + 1))
    with pytest.raises(InvalidPackage, match="larger than"):
        verify(folder)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_mutated_signatures_hold_for_nothing_else(folder: Path, sealed: Path, data: st.DataObject) -> None:
    genuine = (sealed / "signature.json").read_bytes()
    content = bytearray(genuine)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(len(content), start + 20)))
        content[start:end] = data.draw(st.binary(max_size=6) | st.sampled_from([b"[" * 50, b"null", b" ", b'"']))
    (folder / "signature.json").write_bytes(content)
    try:
        verify(folder)
    except (InvalidPackage, UntrustedOwner) as error:
        assert str(error).endswith(".")  # noqa: PT017
    else:
        assert msgspec.json.decode(content) == msgspec.json.decode(genuine)


@given(st.binary(max_size=200))
def test_no_other_signature_fits_a_release(signature: bytes) -> None:
    manifest = msgspec.json.decode(EXAMPLE, type=Manifest)
    genuine = sign_manifest(EXAMPLE, manifest, OWNER)
    release = SignedManifest(manifest, genuine).release
    release.require_signed(OWNER.public.raw, bytes.fromhex(genuine.release))
    with pytest.raises(ModelMismatch):
        release.require_signed(OWNER.public.raw, signature)
    with pytest.raises(UntrustedOwner, match=STRANGER.public.fingerprint):
        release.require_signed(STRANGER.public.raw, sign_manifest(EXAMPLE, manifest, STRANGER).release.encode())


EXAMPLE = b"""{"format": 3, "kind": "hybrid-shell", "profile": "private-weights", "model_type": "llama",
"model_digest": "abababababababababababababababababababababababababababababababab", "files": {},
"groups": [{"name": "o", "layers": [{"name": "o", "rows": 4}], "columns": 4, "activation_bits": 15,
"plaintext_bits": 30, "entropy_bits": 20.0}]}"""


@pytest.mark.parametrize(
    "change", [{"model_digest": "00" * 32}, {"epoch": 1}, {"profile": Profile.OPEN_WEIGHTS}, {"groups": {"columns": 5}}]
)
def test_a_release_covers_model_table_and_profile(change: dict[str, Any]) -> None:
    manifest = msgspec.json.decode(EXAMPLE, type=Manifest)
    release = bytes.fromhex(sign_manifest(EXAMPLE, manifest, OWNER).release)
    group = {"plaintext_bits": 32} if "profile" in change else change.get("groups", {})
    groups = (msgspec.structs.replace(manifest.groups[0], **group),)
    other = msgspec.structs.replace(manifest, **change | {"groups": groups})
    signed = SignedManifest(other, Signature(str(OWNER.public), "", ""))
    with pytest.raises(ModelMismatch, match="written together"):
        signed.release.require_signed(OWNER.public.raw, release)

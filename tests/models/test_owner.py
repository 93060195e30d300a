import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import OwnerKeyError
from confide.packages.owner import OwnerKey, OwnerPublicKey, default_key_path
from owners import OWNER, STRANGER


def never_asked() -> str:
    raise AssertionError("asked for a passphrase")


def test_a_key_is_read_back_and_signs_the_same(tmp_path: Path) -> None:
    OWNER.write(tmp_path / "owner.key")
    again = OwnerKey.read(tmp_path / "owner.key", never_asked)
    assert again.public == OWNER.public
    assert again.sign(b"statement") == OWNER.sign(b"statement")


def test_signatures_hold_for_one_key_and_one_statement() -> None:
    signature = OWNER.sign(b"statement")
    assert OWNER.public.signed(b"statement", signature)
    assert not OWNER.public.signed(b"another", signature)
    assert not STRANGER.public.signed(b"statement", signature)
    assert not OWNER.public.signed(b"statement", signature[:-1])
    assert not OWNER.public.signed(b"statement", b"")


@pytest.mark.parametrize("passphrase", [None, "open sesame"])
def test_the_file_is_for_its_owner_only(tmp_path: Path, passphrase: str | None) -> None:
    path = tmp_path / "owner.key"
    before = os.umask(0)
    try:
        OWNER.write(path, passphrase)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["owner.key"]
    path.chmod(0o640)
    with pytest.raises(OwnerKeyError, match="chmod 600"):
        OwnerKey.read(path)


def test_a_file_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "owner.key"
    OWNER.write(path)
    before = path.read_bytes()
    with pytest.raises(OwnerKeyError, match="exists already"):
        STRANGER.write(path)
    assert path.read_bytes() == before
    with pytest.raises(OwnerKeyError, match="another place"):
        OWNER.write(tmp_path / "no" / "such" / "folder")


def test_the_passphrase_opens_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "owner.key"
    OWNER.write(path, "open sesame")
    assert b"ENCRYPTED" in path.read_bytes()
    assert OwnerKey.read(path, lambda: "open sesame").public == OWNER.public
    for wrong in ("open barley", ""):
        with pytest.raises(OwnerKeyError, match="passphrase is wrong") as caught:
            OwnerKey.read(path, lambda wrong=wrong: wrong)  # type: ignore[misc]
        assert wrong == "" or wrong not in str(caught.value)
    with pytest.raises(OwnerKeyError, match="CONFIDE_OWNER_PASSPHRASE"):
        OwnerKey.read(path)
    monkeypatch.setenv("CONFIDE_OWNER_PASSPHRASE", "open sesame")
    assert OwnerKey.read(path).public == OWNER.public


# An Ed25519 key of which one bit was flipped, which makes it an X448 key that is too short.
FLIPPED = b"""-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VvBCIEIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB
-----END PRIVATE KEY-----
"""


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 90, b"x" * (1 << 15), b"-----BEGIN PRIVATE KEY-----\nAAAA\n", FLIPPED, "x25519"]
)
def test_what_is_no_owner_key_is_refused(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "owner.key"
    if isinstance(content, str):
        pem = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        content = X25519PrivateKey.generate().private_bytes(*pem)
    path.touch(0o600)
    path.write_bytes(content)
    with pytest.raises(OwnerKeyError, match="confide owner init"):
        OwnerKey.read(path, never_asked)


def test_a_missing_key_says_how_to_make_one(tmp_path: Path) -> None:
    for path in (tmp_path / "owner.key", tmp_path):
        with pytest.raises(OwnerKeyError, match="confide owner init"):
            OwnerKey.read(path)


def test_nothing_secret_is_shown() -> None:
    seed = bytes([1]) * 32
    for shown in (repr(OWNER), str(OWNER), repr(vars(OWNER))):
        assert seed.hex() not in shown
        assert repr(seed) not in shown


def test_a_public_key_is_shown_as_it_is_read() -> None:
    key = OWNER.public
    assert OwnerPublicKey.parse(str(key)) == OwnerPublicKey.parse(f" {str(key).upper()}\n") == key
    assert OwnerPublicKey.parse(key.raw) == key
    assert str(key) == key.raw.hex()
    assert [len(group) for group in key.fingerprint.split("-")] == [4] * 5
    assert key.fingerprint != STRANGER.public.fingerprint


@given(st.text(max_size=70) | st.text("0123456789abcdefABCDEF ", min_size=62, max_size=67) | st.binary(max_size=40))
def test_any_text_is_a_key_or_refused(text: str | bytes) -> None:
    try:
        key = OwnerPublicKey.parse(text)
    except OwnerKeyError as error:
        assert str(error).endswith(".")  # noqa: PT017
    else:
        assert key.raw == text if isinstance(text, bytes) else str(key) == text.strip().lower()
        assert not key.signed(b"statement", bytes(63))


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"CONFIDE_HOME": "/a"}, "/a/owner.key"),
        ({"CONFIDE_HOME": "/a", "XDG_CONFIG_HOME": "/b"}, "/a/owner.key"),
        ({"XDG_CONFIG_HOME": "/b", "HOME": "/c"}, "/b/confide/owner.key"),
        ({"HOME": "/c", "CONFIDE_HOME": ""}, "/c/.config/confide/owner.key"),
    ],
)
def test_where_the_key_lies(variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONFIDE_HOME", "XDG_CONFIG_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(default_key_path()) == expected


@pytest.mark.parametrize("module", ["owner", "trusted_owners", "signing"])
def test_signing_needs_no_tensor_library(module: str) -> None:
    program = f"import sys, confide.packages.{module}; sys.exit(bool({{'torch', 'transformers'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

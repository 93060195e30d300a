"""Model keys at rest, each in a file with the conditions for its release, encrypted under one passphrase.

`keystore.json` holds the salt. scrypt (RFC 7914) makes the store's key of the passphrase, and AES-256-GCM encrypts
each key with its model and policy, bound to the key's id: files cannot be read, changed or renamed without the
passphrase. Files are written whole or not at all, and read at each use, so what is added or removed counts at once,
also for a process that is serving. An old file put back is not noticed; the log names the policy of each release.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, Literal, Self

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from confide.attest.policy import AnyPolicy, SimulatedPolicy
from confide.attest.policy_toml import any_policy_from_toml, to_toml
from confide.attest.wire import Record
from confide.disk.files import create_file, replace_file, sync_folder
from confide.errors import InvalidPolicy, KeyStoreError, UnknownModelKey
from confide.packages.sealed.key import KEY_BYTES, ModelKey

HEADER_NAME: Final = "keystore.json"
SCRYPT_COST: Final = 1 << 17
"""With r = 8 and p = 1: 128 MiB and a third of a second for each guess (OWASP, Password Storage Cheat Sheet, 2023)."""
_HEADER_PURPOSE: Final = b"confide key store 1\0"
_KEY_PURPOSE: Final = b"confide stored model key 1\0"
_NONCE_BYTES: Final = 12
_SALT_BYTES: Final = 16
_MAX_FILE_BYTES: Final = 1 << 20
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_KEY_ID: Final = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Conditions:
    """What evidence must show before a key is released.

    model_digest: of the package that the key opens, 64 hexadecimal digits, which the workload's statement must name.
    simulated_root: the DER certificate that a simulated policy goes with; None for a production policy.
    InvalidPolicy where these do not belong together.
    """

    model_digest: str
    policy: AnyPolicy
    simulated_root: bytes | None = None

    def __post_init__(self) -> None:
        if not _DIGEST.fullmatch(self.model_digest):
            raise InvalidPolicy("A model's digest is 64 lower-case hexadecimal digits; take it from its package.")
        simulated = isinstance(self.policy, SimulatedPolicy)
        if simulated and self.simulated_root is None:
            raise InvalidPolicy("This policy is for simulated hardware; name its root, too (`--simulated-root`).")
        if not simulated and self.simulated_root is not None:
            raise InvalidPolicy("A policy for production trusts no simulated root; leave that out.")


@dataclass(frozen=True)
class StoredKey:
    """A model key, the conditions for its release, and when it was added."""

    key: ModelKey
    conditions: Conditions
    added: datetime


class _Header(Record, frozen=True):
    """check: an encryption of nothing, by which a wrong passphrase is found."""

    format: Literal[1] = msgspec.field(name="confide-keystore")
    salt: bytes
    check: bytes


class _Content(Record, frozen=True):
    key: Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
    model_digest: str
    policy: str
    added: Annotated[datetime, msgspec.Meta(tz=True)]
    simulated_root: bytes | None = None

    def __repr__(self) -> str:
        return "_Content(<hidden>)"


class KeyStore:
    """The keys in one folder, opened. Safe for several threads and processes."""

    def __init__(self, folder: Path, cipher: AESGCM) -> None:
        self._folder, self._cipher = folder, cipher

    def __repr__(self) -> str:
        return f"KeyStore({str(self._folder)!r})"

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether a store was made there."""
        return (folder / HEADER_NAME).exists()

    @classmethod
    def create(cls, folder: Path, passphrase: str) -> Self:
        """A new store, in a folder that only this user can look into. KeyStoreError where there is one."""
        if not passphrase:
            raise KeyStoreError("Model keys are kept under a passphrase; choose one that nobody guesses.")
        salt = os.urandom(_SALT_BYTES)
        cipher = _derive(passphrase, salt)
        header = _Header(1, salt, _encrypt(cipher, b"", _HEADER_PURPOSE))
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            create_file(folder / HEADER_NAME, _written(header))
        except FileExistsError as error:
            raise KeyStoreError(f"{folder} holds model keys already; open it with its passphrase.") from error
        except OSError as error:
            raise _unwritable(folder, error) from error
        return cls(folder, cipher)

    @classmethod
    def open(cls, folder: Path, passphrase: Callable[[], str]) -> Self:
        """The store that `create` made; `passphrase` is asked only where there is one.

        KeyStoreError where there is none, or for another passphrase.
        """
        content = _read(folder / HEADER_NAME)
        if content is None:
            raise KeyStoreError(f"{folder} holds no model keys; add one with `confide keys add`.")
        try:
            header = msgspec.json.decode(content, type=_Header)
            if _written(header) != content:  # base64 has letters whose last bits say nothing
                raise ValueError("changed")
            cipher = _derive(passphrase(), header.salt)
            _decrypt(cipher, header.check, _HEADER_PURPOSE)
        except (msgspec.MsgspecError, ValueError, InvalidTag, RecursionError):
            raise KeyStoreError(
                f"The passphrase is not the one of the keys in {folder}, or {HEADER_NAME} was changed; try again."
            ) from None
        return cls(folder, cipher)

    def add(self, key: ModelKey, conditions: Conditions, now: datetime) -> StoredKey:
        """Keep a key. KeyStoreError where it is kept already, since its conditions would be lost."""
        stored = StoredKey(key, conditions, now)
        try:
            create_file(self._path(key.id), self._encrypted(stored))
        except FileExistsError as error:
            raise KeyStoreError(
                f"The key {key.id} is kept already; `confide keys change` binds it to another policy, and "
                "`confide keys remove` forgets it."
            ) from error
        except OSError as error:
            raise _unwritable(self._folder, error) from error
        return stored

    def change(self, identity: str, policy: AnyPolicy, simulated_root: bytes | None) -> StoredKey:
        """Bind a key to another policy, in one step: at every moment it has the old one or the new one.

        UnknownModelKey; InvalidPolicy where policy and root do not belong together.
        """
        kept = self.get(identity)
        changed = replace(kept, conditions=Conditions(kept.conditions.model_digest, policy, simulated_root))
        try:
            replace_file(self._path(identity), self._encrypted(changed), mode=0o600)
        except OSError as error:
            raise _unwritable(self._folder, error) from error
        return changed

    def _encrypted(self, stored: StoredKey) -> bytes:
        conditions = stored.conditions
        content = _Content(
            stored.key.raw,
            conditions.model_digest,
            to_toml(conditions.policy),
            stored.added,
            simulated_root=conditions.simulated_root,
        )
        return _encrypt(self._cipher, msgspec.msgpack.encode(content), _KEY_PURPOSE + stored.key.id.encode())

    def get(self, identity: str) -> StoredKey:
        """The key of an id. UnknownModelKey where there is none, KeyStoreError where its file was changed."""
        content = _read(self._path(identity)) if _KEY_ID.fullmatch(identity) else None
        if content is None:
            raise UnknownModelKey(f"No key {identity[:64]!r} is kept here; `confide keys list` shows those that are.")
        try:
            plain = _decrypt(self._cipher, content, _KEY_PURPOSE + identity.encode())
            found = msgspec.msgpack.decode(plain, type=_Content)
            policy = any_policy_from_toml(found.policy)
            return StoredKey(
                ModelKey(found.key), Conditions(found.model_digest, policy, found.simulated_root), found.added
            )
        except (InvalidTag, ValueError, msgspec.MsgspecError, InvalidPolicy, RecursionError):
            raise KeyStoreError(
                f"The file of key {identity} was changed; remove it with `confide keys remove` and add the key again."
            ) from None

    def all(self) -> list[StoredKey]:
        """Every key, by id."""
        names = sorted(path.stem for path in self._folder.glob("*.key"))
        return [self.get(name) for name in names if _KEY_ID.fullmatch(name)]

    def remove(self, identity: str) -> None:
        """Forget a key. UnknownModelKey where there is none. A copy of the file in a backup stays."""
        if not _KEY_ID.fullmatch(identity) or not self._path(identity).exists():
            raise UnknownModelKey(f"No key {identity[:64]!r} is kept here; `confide keys list` shows those that are.")
        try:
            self._path(identity).unlink(missing_ok=True)
            sync_folder(self._folder)
        except OSError as error:
            raise _unwritable(self._folder, error) from error

    def _path(self, identity: str) -> Path:
        return self._folder / f"{identity}.key"


def _written(header: _Header) -> bytes:
    return msgspec.json.encode(header) + b"\n"


def _derive(passphrase: str, salt: bytes) -> AESGCM:
    return AESGCM(Scrypt(salt=salt, length=32, n=SCRYPT_COST, r=8, p=1).derive(passphrase.encode()))


def _encrypt(cipher: AESGCM, plaintext: bytes, purpose: bytes) -> bytes:
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + cipher.encrypt(nonce, plaintext, purpose)


def _decrypt(cipher: AESGCM, encrypted: bytes, purpose: bytes) -> bytes:
    return cipher.decrypt(encrypted[:_NONCE_BYTES], encrypted[_NONCE_BYTES:], purpose)


def _read(path: Path) -> bytes | None:
    """A whole file, or None where it is not there."""
    try:
        with path.open("rb") as file:
            return file.read(_MAX_FILE_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KeyStoreError(f"{path} cannot be read ({error.strerror}); make it readable for this user.") from error


def _unwritable(folder: Path, error: OSError) -> KeyStoreError:
    return KeyStoreError(f"{folder} cannot be written ({error.strerror}); choose another folder, or make room on it.")

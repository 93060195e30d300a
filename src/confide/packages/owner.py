"""The owner of a model: an Ed25519 key that signs packages, and its public half that clients pin.

Needs neither torch nor transformers.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from confide.disk.files import FileOpenToOthers, FileTooLarge, create_file, read_private
from confide.disk.home import home
from confide.disk.secrets import OWNER_PASSPHRASE, find_secret, variable
from confide.errors import OwnerKeyError
from confide.rlwe.streams import derive_key

KEY_NAME: Final = "owner.key"
PUBLIC_BYTES: Final = 32
_MAX_KEY_FILE: Final = 1 << 14
_ENCRYPTED: Final = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"
_FINGERPRINT_DIGITS: Final = 20


def default_key_path() -> Path:
    """Where a person's owner key lies unless they say otherwise."""
    return home() / KEY_NAME


@dataclass(frozen=True)
class OwnerPublicKey:
    """An owner as others know them; `str` is the key in hexadecimal, which is what people publish and pin."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != PUBLIC_BYTES:
            raise OwnerKeyError(
                f"An owner's public key has {PUBLIC_BYTES} bytes; give the key as its owner published it."
            )

    @classmethod
    def parse(cls, key: str | bytes) -> Self:
        """The key of 64 hexadecimal digits, or of 32 bytes. OwnerKeyError for anything else."""
        if isinstance(key, bytes):
            return cls(key)
        digits = key.strip()
        if not re.fullmatch(r"[0-9a-fA-F]{64}", digits):
            raise OwnerKeyError(
                "An owner's public key is 64 hexadecimal digits; give the key as `confide owner show` prints it."
            )
        return cls(bytes.fromhex(digits))

    def __str__(self) -> str:
        return self.raw.hex()

    @property
    def fingerprint(self) -> str:
        """For comparing by eye or over the telephone: 80 bits, in groups of four digits."""
        digits = hashlib.sha256(b"confide owner fingerprint 1\0" + self.raw).hexdigest()[:_FINGERPRINT_DIGITS]
        return "-".join(digits[start : start + 4] for start in range(0, len(digits), 4))

    def signed(self, statement: bytes, signature: bytes) -> bool:
        """Whether this owner made the signature over the statement."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, statement)
        except InvalidSignature:
            return False
        return True


def unattended_passphrase() -> str:
    """The passphrase of programs that run unattended. OwnerKeyError where none is given."""
    passphrase = find_secret(OWNER_PASSPHRASE)
    if passphrase is None:
        raise OwnerKeyError(
            f"The owner key needs its passphrase; give it as the credential {OWNER_PASSPHRASE} or in "
            f"{variable(OWNER_PASSPHRASE)}, or use a terminal."
        )
    return passphrase.text


class OwnerKey:
    """An owner's private key. What it signs is made by `packages.signing`, with a label for each purpose."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = OwnerPublicKey(key.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"OwnerKey({self.public.fingerprint})"

    @classmethod
    def generate(cls) -> Self:
        """A fresh key from the operating system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def read(cls, path: Path, passphrase: Callable[[], str] = unattended_passphrase) -> Self:
        """The key of a file; `passphrase` is asked only where the file is encrypted. OwnerKeyError if it is no key."""
        content = _read_private(path)
        secret = passphrase().encode() if _ENCRYPTED in content else None
        try:
            key = serialization.load_pem_private_key(content, secret)
        except (ValueError, TypeError, UnsupportedAlgorithm, InternalError) as error:
            raise OwnerKeyError(
                f"{path} cannot be opened: the passphrase is wrong or this is no owner key; "
                "try again, or give the file that `confide owner init` made."
            ) from error
        if not isinstance(key, Ed25519PrivateKey):
            raise OwnerKeyError(f"{path} is not an Ed25519 key; give the file that `confide owner init` made.")
        return cls(key)

    def write(self, path: Path, passphrase: str | None = None) -> None:
        """Make the key file, readable by this user only. OwnerKeyError where a file is there: it is never replaced."""
        encryption = serialization.BestAvailableEncryption(passphrase.encode()) if passphrase else None
        content = self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            encryption or serialization.NoEncryption(),
        )
        try:
            create_file(path, content)
        except FileExistsError as error:
            raise OwnerKeyError(
                f"{path} exists already and is left as it is; use it, or choose another file."
            ) from error
        except OSError as error:
            raise OwnerKeyError(f"{path} cannot be written ({error.strerror}); choose another place.") from error

    def sign(self, statement: bytes) -> bytes:
        """64 bytes of Ed25519."""
        return self._key.sign(statement)

    def hint_key(self) -> bytes:
        """32 bytes that only this owner has: what the secrets of hints are drawn from, the same at every making."""
        return derive_key(self._key.private_bytes_raw(), "hint")


def _read_private(path: Path) -> bytes:
    try:
        return read_private(path, _MAX_KEY_FILE)
    except FileOpenToOthers as error:
        raise OwnerKeyError(f"Others on this machine can reach the owner key; run `chmod 600 {path}` first.") from error
    except FileTooLarge as error:
        raise OwnerKeyError(f"{path} is too large for a key; give the file that `confide owner init` made.") from error
    except OSError as error:
        raise OwnerKeyError(
            f"The owner key {path} cannot be read ({error.strerror}); make one with `confide owner init`."
        ) from error

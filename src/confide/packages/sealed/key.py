"""The model key: 32 random bytes in a file, from which every file of a package gets a key of its own.

Needs neither torch nor transformers.
"""

import hashlib
import hmac
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from confide.disk.files import FileOpenToOthers, create_file, read_private
from confide.errors import ModelKeyError, WrongModelKey

KEY_BYTES: Final = 32
_ID_BYTES: Final = 16
_ID_LABEL: Final = b"confide model key id 1\0"
_VOUCH_LABEL: Final = b"confide vouching by model key 1\0"
_FILE_LABEL: Final = b"confide sealed file 1\0"


@dataclass(frozen=True)
class ModelKey:
    """A key that seals and opens models. raw: 32 bytes, uniformly random."""

    raw: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.raw) != KEY_BYTES:
            raise ModelKeyError(f"A model key has {KEY_BYTES} bytes; give the file that `confide seal` made.")

    def __repr__(self) -> str:
        return f"ModelKey({self.id})"

    @classmethod
    def generate(cls) -> Self:
        """A fresh key from the operating system's randomness."""
        return cls(os.urandom(KEY_BYTES))

    @classmethod
    def read(cls, path: Path) -> Self:
        """The key of a file. ModelKeyError where it is missing, not a key, or open to others on this machine."""
        try:
            return cls(read_private(path, KEY_BYTES))
        except FileOpenToOthers as error:
            raise ModelKeyError(
                f"Others on this machine can reach the model key; run `chmod 600 {path}` first."
            ) from error
        except OSError as error:
            raise ModelKeyError(
                f"The model key {path} cannot be read ({error.strerror}); give the file that `confide seal` made."
            ) from error

    def write(self, path: Path) -> None:
        """Make the key file, for this user only. ModelKeyError where a file is there: it is never replaced."""
        try:
            create_file(path, self.raw)
        except FileExistsError as error:
            raise ModelKeyError(
                f"{path} exists already and is left as it is; use it, or choose another file."
            ) from error
        except OSError as error:
            raise ModelKeyError(f"{path} cannot be written ({error.strerror}); choose another place.") from error

    @property
    def id(self) -> str:
        """32 hexadecimal digits of a labelled SHA-256: says which key it is, and nothing else about it."""
        return hashlib.sha256(_ID_LABEL + self.raw).digest()[:_ID_BYTES].hex()

    def require(self, wanted: str, folder: Path) -> None:
        """WrongModelKey unless this is the key with that id, which the package in `folder` was sealed with."""
        if self.id != wanted:
            raise WrongModelKey(
                f"{folder} was sealed with the key {wanted}, and the one given is {self.id}; give the key that its "
                "owner made or released for it."
            )

    def vouch(self, statement: bytes) -> bytes:
        """32 bytes that only holders of the key can make for a statement: HMAC-SHA256 under a key derived for that."""
        key = HKDF(SHA256(), KEY_BYTES, salt=None, info=_VOUCH_LABEL).derive(self.raw)
        return hmac.digest(key, statement, "sha256")

    def file_key(self, salt: bytes, index: int, name: str) -> bytes:
        """The AES-256 key of one file: HKDF-SHA256 (RFC 5869) under the package's salt, 32 bytes.

        The salt is fresh for every package, so no two files share a key, and nonces may count from zero in each.
        """
        info = _FILE_LABEL + index.to_bytes(4, "big") + name.encode()
        return HKDF(SHA256(), KEY_BYTES, salt=salt, info=info).derive(self.raw)

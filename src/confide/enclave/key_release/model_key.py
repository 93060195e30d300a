"""A model key: 32 random bytes in a file, which a model was sealed with."""

import hashlib
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from confide.errors import KeyStoreError

KEY_BYTES: Final = 32
_ID_BYTES: Final = 16


@dataclass(frozen=True)
class ModelKey:
    """A key that seals and opens models. raw: 32 bytes, uniformly random."""

    raw: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.raw) != KEY_BYTES:
            raise KeyStoreError(f"A model key has {KEY_BYTES} bytes; give the file that the model was sealed with.")

    def __repr__(self) -> str:
        return f"ModelKey({self.id})"

    @classmethod
    def read(cls, path: Path) -> Self:
        """The key of a file. KeyStoreError where it is missing, not a key, or open to others on this machine."""
        try:
            with path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                content = file.read(KEY_BYTES + 1)
        except OSError as error:
            raise KeyStoreError(
                f"The model key {path} cannot be read ({error.strerror}); give the file that the model was sealed with."
            ) from error
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise KeyStoreError(f"Others on this machine can reach the model key; run `chmod 600 {path}` first.")
        return cls(content)

    @property
    def id(self) -> str:
        """32 hexadecimal digits of a labelled SHA-256: says which key it is, and nothing else about it."""
        return hashlib.sha256(b"confide model key id 1\0" + self.raw).digest()[:_ID_BYTES].hex()

"""The key that a client signs its own statements with: its receipts in the hybrid mode, and its audit log's head.

One for each Confide folder, made when it is first needed, and readable by its user alone. A signature is over a label,
which says what kind of statement it is, and the statement.
"""

import contextlib
import os
from pathlib import Path
from typing import Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from confide.disk.files import create_file
from confide.disk.home import make_home
from confide.errors import ClientKeyError

FILE_NAME: Final = "client.key"
_HEADER: Final = b"confide client key 1\n"
_RAW_BYTES: Final = 32
_FILE_BYTES: Final = len(_HEADER) + 2 * _RAW_BYTES + 1


class ClientKey:
    """An Ed25519 key. public: its public half, in hexadecimal, which is what others know the client by."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = key.public_key().public_bytes_raw().hex()

    def __repr__(self) -> str:
        return f"ClientKey({self.public})"

    @classmethod
    def open(cls, folder: Path | None = None) -> Self:
        """The key of a folder, the Confide folder by default; made where there is none. ClientKeyError."""
        path = (folder or make_home()) / FILE_NAME
        if not path.exists():
            made = Ed25519PrivateKey.generate().private_bytes_raw().hex()
            try:
                with contextlib.suppress(FileExistsError):  # another process was first
                    create_file(path, _HEADER + made.encode() + b"\n")
            except OSError as error:
                raise ClientKeyError(
                    f"The client's key {path} cannot be made ({error.strerror}); set CONFIDE_HOME to a folder of yours."
                ) from error
        return cls(_read(path))

    def sign(self, label: bytes, statement: bytes) -> str:
        """Ed25519 over label, a zero byte and statement, in hexadecimal."""
        return self._key.sign(label + b"\0" + statement).hex()


def signed_by(public: str, label: bytes, statement: bytes, signature: str) -> bool:
    """Whether the key made the signature over such a statement. public, signature: in hexadecimal."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(
            bytes.fromhex(signature), label + b"\0" + statement
        )
    except (InvalidSignature, ValueError):
        return False
    return True


def _read(path: Path) -> Ed25519PrivateKey:
    try:
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            content = file.read(_FILE_BYTES + 1)
    except OSError as error:
        raise ClientKeyError(
            f"The client's key {path} cannot be read ({error.strerror}); put the file back, or remove it for another."
        ) from error
    if facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
        raise ClientKeyError(f"Others on this machine can reach the client's key; run `chmod 600 {path}` first.")
    try:
        return parse_key(content)
    except ValueError:
        raise ClientKeyError(f"{path} holds no key; put the file back, or remove it for another.") from None


def parse_key(content: bytes) -> Ed25519PrivateKey:
    """The key in a file's content. ValueError."""
    if not content.startswith(_HEADER) or len(content) != _FILE_BYTES:
        raise ValueError("This is no client's key.")
    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(content[len(_HEADER) :].decode("ascii")))

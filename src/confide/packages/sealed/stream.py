"""One sealed file: 1 MiB chunks under AES-256-GCM, each of which can be decrypted by itself.

The nonce counts the chunk and marks the last one (the STREAM construction of Hoang, Reyhanitabar, Rogaway and Vizar,
CRYPTO 2015), so that a chunk fits in one place of one file only. Every file has at least one chunk, maybe empty.
"""

from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from confide.errors import DamagedFile

CHUNK_BYTES: Final = 1 << 20
TAG_BYTES: Final = 16


def chunk_count(size: int) -> int:
    """Chunks of a file of `size` plaintext bytes."""
    return max(1, -(-size // CHUNK_BYTES))


def sealed_size(size: int) -> int:
    """Bytes on disk of a file of `size` plaintext bytes."""
    return size + TAG_BYTES * chunk_count(size)


@dataclass(frozen=True)
class Span:
    """Where a chunk lies: plaintext bytes [start, end), its ciphertext with its tag from `sealed_start` on disk."""

    start: int
    end: int
    sealed_start: int

    @property
    def length(self) -> int:
        """Plaintext bytes."""
        return self.end - self.start

    @property
    def sealed_length(self) -> int:
        """Bytes on disk."""
        return self.length + TAG_BYTES


class ChunkCipher:
    """Encrypts and decrypts the chunks of one file. key: 32 bytes, of this file alone. size: of its plaintext."""

    def __init__(self, key: bytes, size: int) -> None:
        self._cipher = AESGCM(key)
        self._size = size
        self._last = chunk_count(size) - 1

    def span(self, index: int) -> Span:
        """Where the chunk of this index lies."""
        start = index * CHUNK_BYTES
        return Span(start, min(start + CHUNK_BYTES, self._size), index * (CHUNK_BYTES + TAG_BYTES))

    def seal(self, index: int, plaintext: bytes | memoryview) -> bytes:
        """The chunk's ciphertext with its tag."""
        return self._cipher.encrypt(self._nonce(index), plaintext, None)

    def open_into(self, index: int, sealed: memoryview, plaintext: memoryview) -> None:
        """Decrypt a chunk into a buffer of its length. DamagedFile if it is not this one."""
        try:
            self._cipher.decrypt_into(self._nonce(index), sealed, None, plaintext)
        except InvalidTag as error:
            raise DamagedFile(
                f"chunk {index} was changed, moved or taken from elsewhere; get the package from its owner again."
            ) from error

    def _nonce(self, index: int) -> bytes:
        return index.to_bytes(11, "big") + bytes([index == self._last])

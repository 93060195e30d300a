"""Where every random number comes from: AES-256-CTR streams, one key per purpose.

Secret keys come from the operating system's CSPRNG (`fresh_key`); each purpose derives its own stream key with
HKDF-SHA256 under a label. Public polynomials are expanded from public seeds in the same way, with AES-256-CTR as
the extendable-output function (as FrodoKEM-AES and the AES variants of Kyber do).
"""

import os
from typing import Final

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from numpy.typing import NDArray

KEY_BYTES: Final = 32
_BLOCK = 16
_CHUNK = 1 << 18
_ZEROS = bytes(_CHUNK)


def fresh_key() -> bytes:
    """32 bytes from the operating system's CSPRNG."""
    return os.urandom(KEY_BYTES)


def derive_key(key: bytes, label: str, context: bytes = b"") -> bytes:
    """The 32-byte key of one purpose: HKDF-Expand(SHA-256) of `key` under "confide/1 <label>" and the context."""
    if len(key) < KEY_BYTES:
        raise ValueError(f"A key of {len(key)} bytes is too short; use {KEY_BYTES} random bytes.")
    info = b"confide/1 " + label.encode() + b"\0" + context
    return HKDFExpand(algorithm=hashes.SHA256(), length=KEY_BYTES, info=info).derive(key)


class Stream:
    """The AES-256-CTR keystream of a key that serves one purpose, readable from any offset."""

    def __init__(self, key: bytes, *, offset: int = 0) -> None:
        counter, skip = divmod(offset, _BLOCK)
        self._encryptor = Cipher(algorithms.AES(key), modes.CTR(counter.to_bytes(_BLOCK, "big"))).encryptor()
        if skip:
            self._encryptor.update(_ZEROS[:skip])

    def fill(self, array: NDArray[np.generic]) -> None:
        """Overwrite a C-contiguous array with the next keystream bytes."""
        view = array.reshape(-1).view(np.uint8).data
        for start in range(0, len(view), _CHUNK):
            part = view[start : start + _CHUNK]
            self._encryptor.update_into(_ZEROS[: len(part)] if len(part) < _CHUNK else _ZEROS, part)

    def words(self, *shape: int) -> NDArray[np.int32]:
        """int32 words, uniform over 2^32."""
        array = np.empty(shape, np.int32)
        self.fill(array)
        return array

    def bytes(self, count: int) -> NDArray[np.uint8]:
        """Uniform bytes."""
        array = np.empty(count, np.uint8)
        self.fill(array)
        return array

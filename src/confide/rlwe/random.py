"""Every random number of the scheme: AES-256-CTR streams, one key per purpose, and the samplers on top of them.

Secret keys come from the operating system's CSPRNG (`fresh_key`); each purpose derives its own stream key with
HKDF-SHA256 under a label. Public polynomials are expanded from public seeds in the same way, with AES-256-CTR as
the extendable-output function (as FrodoKEM-AES and the AES variants of Kyber do). Samplers use every bit they take
or reject; none of them is biased.
"""

import os
from typing import Final

import numpy as np
import torch
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from numpy.typing import NDArray
from torch import Tensor

from confide.rlwe.parameters import DROWNING_TERMS, ERROR_BITS

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
        view = memoryview(array.reshape(-1).view(np.uint8))
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


_TRITS_PER_BYTE = 5
_TRIT_CODES = 3**_TRITS_PER_BYTE
_TRITS = np.array(
    [[code // 3**place % 3 - 1 for place in range(_TRITS_PER_BYTE)] for code in range(_TRIT_CODES)], np.int8
)


def ternary(stream: Stream, *shape: int) -> Tensor:
    """int8 uniform in {-1, 0, 1}: five base-3 digits of a byte below 243, other bytes rejected."""
    count = int(np.prod(shape))
    needed = -(-count // _TRITS_PER_BYTE)
    accepted = np.empty(0, np.uint8)
    while len(accepted) < needed:
        missing = needed - len(accepted)
        candidates = stream.bytes(missing + missing // 16 + 64)
        accepted = np.concatenate([accepted, candidates[candidates < _TRIT_CODES]])
    trits = np.take(_TRITS, accepted[:needed], axis=0).reshape(-1)[:count]
    return torch.from_numpy(trits.reshape(shape))


def rounded_gaussian(stream: Stream, *shape: int) -> Tensor:
    """int8 RLWE errors: the weight of 42 uniform bits minus 21, a centred binomial of standard deviation 3.24.

    Eight stream bytes a sample, so that sample i of a stream starts at byte 8 i.
    """
    words = np.empty(shape, np.uint64)
    stream.fill(words)
    words &= np.uint64((1 << ERROR_BITS) - 1)
    weights = np.bitwise_count(words).view(np.int8)
    weights -= ERROR_BITS // 2
    return torch.from_numpy(weights)


ERROR_STREAM_BYTES: Final = 8


def drowning(stream: Stream, bits: int, *shape: int) -> Tensor:
    """int64 drowning noise: the sum of four uniforms over [-2^(bits-1), 2^(bits-1))."""
    terms = np.empty((DROWNING_TERMS, *shape), np.int64)
    stream.fill(terms)
    uniforms = torch.from_numpy(terms).bitwise_right_shift_(64 - bits)
    return uniforms[0].add_(uniforms[1]).add_(uniforms[2].add_(uniforms[3]))

"""The key that a channel ends at: made inside the workload, spoken for by its evidence, gone with the process.

HPKE (RFC 9180) in base mode, with X25519 and ML-KEM-768 together as its key encapsulation: whoever records traffic
today and has a quantum computer later learns nothing as long as ML-KEM stands.
"""

import hashlib
from typing import Final

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from confide.errors import ChannelRefused

_SUITE: Final = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_MLKEM_BYTES: Final = 1184
_X25519_BYTES: Final = 32
PUBLIC_BYTES: Final = _MLKEM_BYTES + _X25519_BYTES
KEY_PURPOSE: Final = "hpke"
"""Under this name a statement holds the public key, in hexadecimal."""


class ChannelPublicKey:
    """What others encrypt to."""

    def __init__(self, raw: bytes) -> None:
        """raw: ML-KEM-768's 1,184 bytes, then X25519's 32. ChannelRefused for anything else."""
        try:
            mlkem = MLKEM768PublicKey.from_public_bytes(raw[:_MLKEM_BYTES])
            self._key = MLKEM768X25519PublicKey(mlkem, X25519PublicKey.from_public_bytes(raw[_MLKEM_BYTES:]))
        except (ValueError, UnsupportedAlgorithm) as error:
            raise ChannelRefused("The workload's channel key is none; ask for its attestation again.") from error
        self.raw = raw

    @classmethod
    def parse(cls, digits: str) -> "ChannelPublicKey":
        """From hexadecimal, as a statement holds it."""
        try:
            return cls(bytes.fromhex(digits))
        except ValueError as error:
            raise ChannelRefused("The workload's channel key is none; ask for its attestation again.") from error

    @property
    def id(self) -> bytes:
        """SHA-256 of the key, by which the two sides know that they mean the same one."""
        return hashlib.sha256(self.raw).digest()

    def encrypt(self, plaintext: bytes, info: bytes) -> bytes:
        """Encapsulation and ciphertext. info: what this is for; opening it for something else fails."""
        return bytes(_SUITE.encrypt(plaintext, self._key, info))


class ChannelKey:
    """The private half. It is never written anywhere."""

    def __init__(self) -> None:
        mlkem, x25519 = MLKEM768PrivateKey.generate(), X25519PrivateKey.generate()
        self._key = MLKEM768X25519PrivateKey(mlkem, x25519)
        raw = mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()
        self.public = ChannelPublicKey(raw)

    def __repr__(self) -> str:
        return f"ChannelKey({self.public.id.hex()[:16]})"

    def decrypt(self, encrypted: bytes, info: bytes) -> bytes:
        """What `ChannelPublicKey.encrypt` was given. ChannelRefused where anything about it differs."""
        try:
            return bytes(_SUITE.decrypt(encrypted, self._key, info))
        except (InvalidTag, ValueError) as error:
            raise ChannelRefused("This was encrypted to another key, or changed on its way.") from error

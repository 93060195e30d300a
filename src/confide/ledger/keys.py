"""Licence keys: bearer secrets of 256 random bits, which a ledger knows by their hash alone."""

import hashlib
import os
from base64 import urlsafe_b64encode
from typing import Final

KEY_PREFIX: Final = "confide-"
MAX_KEY: Final = 128
"""Characters of one, at most."""


def fresh_key() -> str:
    """One that nobody has."""
    return KEY_PREFIX + urlsafe_b64encode(os.urandom(32)).rstrip(b"=").decode()


def licence_digest(key: str) -> bytes:
    """What a licence key is known by: SHA-256, 32 bytes. Of 32 random bytes nobody finds the key again."""
    return hashlib.sha256(b"confide licence key 1\0" + key.encode()).digest()

"""A model key as it lies in a file: 32 bytes that sealed packages are encrypted under."""

import hashlib
import os
import stat
from pathlib import Path
from typing import Final

from confide.errors import KeyStoreError

KEY_BYTES: Final = 32
_ID_DIGITS: Final = 32


def key_id(key: bytes) -> str:
    """What a key is called, without telling anything of it: 32 hexadecimal digits."""
    return hashlib.sha256(b"confide model key id 1\0" + key).hexdigest()[:_ID_DIGITS]


def read_key(path: Path) -> bytes:
    """The key in a file. KeyStoreError where it is none, or where others could read it."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(KEY_BYTES + 1)
    except OSError as error:
        raise KeyStoreError(f"{path} cannot be read ({error.strerror}); give the file of a model key.") from error
    if len(content) != KEY_BYTES:
        raise KeyStoreError(f"{path} is no model key of {KEY_BYTES} bytes; give the file that sealed the model.")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise KeyStoreError(f"Others on this machine can reach the model key; run `chmod 600 {path}` first.")
    return content

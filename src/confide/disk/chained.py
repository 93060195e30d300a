"""Lines of JSON chained by hashes: each holds an entry, and SHA-256 over the hash of the line before and that entry.

So a line that is changed, removed or moved breaks the chain from there on. Lines cut off at the end leave a chain that
is whole: that is found only with the hash of a later line, the head, kept somewhere else.
"""

import hashlib
import re
from typing import Final, NamedTuple

import msgspec

GENESIS: Final = bytes(32)
"""In the place of a hash before the first line."""
_HASH: Final = re.compile(r"[0-9a-f]{64}")


class ChainedLine(NamedTuple):
    """entry: its bytes, as they stand in the line. hash: of all up to here, in hexadecimal.

    Those bytes are hashed, and no encoder's idea of them: a log outlives versions of everything.
    """

    entry: bytes
    hash: str

    def write(self) -> bytes:
        """The line, with its end."""
        return b'{"entry":' + self.entry + b',"hash":"' + self.hash.encode() + b'"}\n'


class _Written(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    entry: msgspec.Raw
    hash: str


def next_line(purpose: bytes, head: str, entry: bytes) -> ChainedLine:
    """The line that follows. purpose: tells logs of one kind from all others. head: of the line before."""
    return ChainedLine(entry, hashlib.sha256(purpose + bytes.fromhex(head) + entry).hexdigest())


def read_line(raw: bytes) -> ChainedLine | None:
    """The line, if these are the very bytes that it is written as; whether it follows another is not looked at."""
    try:
        found = msgspec.json.decode(raw, type=_Written)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    line = ChainedLine(bytes(found.entry), found.hash)
    return line if _HASH.fullmatch(found.hash) and line.write() == raw else None

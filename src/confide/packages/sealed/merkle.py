"""Merkle trees over a model's plaintext, hashed as in RFC 6962, section 2.1: leaves and nodes cannot be confused."""

import hashlib
from collections.abc import Sequence


def leaf_hash(content: bytes | bytearray | memoryview) -> bytes:
    """SHA-256(0x00 || content), 32 bytes."""
    digest = hashlib.sha256(b"\0")
    digest.update(content)
    return digest.digest()


def root_hash(leaves: Sequence[bytes]) -> bytes:
    """The tree's root over leaf hashes, 32 bytes: SHA-256(0x01 || left || right) at each node, one leaf is itself."""
    if not leaves:
        raise ValueError("a tree has at least one leaf")
    level = list(leaves)
    while len(level) > 1:
        # Pairing from the left and carrying the odd one up gives RFC 6962's tree, which splits at powers of two.
        pairs = [
            hashlib.sha256(b"\1" + left + right).digest() for left, right in zip(level[::2], level[1::2], strict=False)
        ]
        level = pairs + level[len(pairs) * 2 :]
    return level[0]

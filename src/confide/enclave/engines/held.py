"""Digests of weights where they lie in memory: one for every tensor, on several threads, and one over those."""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

_LABEL: Final = b"confide weights in memory 1\0"
Buffer = bytes | bytearray | memoryview


def digest_of(tensors: Iterable[tuple[str, str, tuple[int, ...], Buffer]], threads: int = 1) -> str:
    """SHA-256, in hexadecimal, over a line `name type shape SHA-256` of each tensor, in order of their names.

    tensors: name, type, shape and contiguous bytes, little-endian.
    """

    def line(tensor: tuple[str, str, tuple[int, ...], Buffer]) -> str:
        name, kind, shape, content = tensor
        return f"{name} {kind} {'x'.join(map(str, shape))} {hashlib.sha256(content).hexdigest()}\n"

    with ThreadPoolExecutor(threads, thread_name_prefix="weights digest") as pool:
        lines = sorted(pool.map(line, tensors))
    return hashlib.sha256(_LABEL + "".join(lines).encode()).hexdigest()

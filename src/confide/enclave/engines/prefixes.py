"""KV caches of prompts' beginnings, kept for whoever sent them: a conversation that goes on is not read from its start.

One is found by a salt, which is a secret of its user's, and by all of its tokens. Without that salt nobody finds it, so
how soon an answer begins tells no user of another's prompts. Beginnings are whole parts of a prompt, and a prompt is
read in such parts whatever is kept: so what is kept is to the last bit what reading it again would give.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Final

import numpy as np
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from confide.enclave.engines.rows import RoomyLayer

SECONDS: Final = 600.0
"""How long a beginning is kept that nobody uses."""
_LABEL: Final = b"confide prefix 1\0"

_Layers = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, (1, heads, tokens, width)."""


@dataclass(frozen=True)
class Names:
    """What the beginnings of one prompt are kept as, the shortest first. size: tokens of a part."""

    parts: tuple[bytes, ...]
    size: int

    @classmethod
    def of(cls, salt: bytes | None, prompt: Sequence[int], size: int) -> "Names":
        """None without a salt. The last token is never in one of them: reading it gives the logits to go on with.

        Each is SHA-256 over the one before, the first over the salt, and its part's tokens, 8 bytes each.
        """
        return cls(() if salt is None else tuple(_chain(salt, prompt, size)), size)


def _chain(salt: bytes, prompt: Sequence[int], size: int) -> Iterator[bytes]:
    name = hashlib.sha256(_LABEL + salt).digest()
    tokens = np.asarray(prompt, np.int64)
    for start in range(0, (len(prompt) - 1) // size * size, size):
        name = hashlib.sha256(name + tokens[start : start + size].tobytes()).digest()
        yield name


@dataclass
class _Kept:
    layers: _Layers
    used: float

    @property
    def size(self) -> int:
        return sum(tensor.nbytes for pair in self.layers for tensor in pair)


class Prefixes:
    """Parts of KV caches under their names, of which those go first that were not used for longest.

    most_bytes: of all together. seconds: for which an unused one is kept. Safe for several threads.
    """

    def __init__(self, most_bytes: int, seconds: float = SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._most_bytes, self._seconds, self._clock = most_bytes, seconds, clock
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"Prefixes({len(self._kept)}, <hidden>)"

    @property
    def size(self) -> int:
        """Bytes that are kept now."""
        return self._bytes

    def take(self, names: Names, cache: DynamicCache) -> None:
        """Put the longest beginning that is kept into an empty cache, to go on with."""
        with self._lock:
            self._expire()
            found = []
            for name in names.parts:
                if name not in self._kept:
                    break
                found.append(self._kept[name].layers)
            self._use(names.parts[: len(found)])
        for layers in found:
            for index, (keys, values) in enumerate(layers):
                cache.update(keys, values, index)

    def put(self, names: Names, index: int, cache: object) -> None:
        """Keep the part of this index, which is the last that a cache has read. Of caches that slide, nothing is."""
        if index >= len(names.parts) or (layers := _layers_of(cache, (index + 1) * names.size)) is None:
            return
        name = names.parts[index]
        with self._lock:
            self._expire()
            if name not in self._kept:
                part = [
                    (keys[..., -names.size :, :].clone(), values[..., -names.size :, :].clone())
                    for keys, values in layers
                ]
                kept = self._kept[name] = _Kept(part, 0.0)
                self._bytes += kept.size
            self._use(names.parts[: index + 1])
            while self._bytes > self._most_bytes:
                self._forget(next(iter(self._kept)))

    def expire(self) -> None:
        """Let go of what nobody used for so long."""
        with self._lock:
            self._expire()

    def clear(self) -> None:
        """Let go of all of it."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0

    def _use(self, names: Sequence[bytes]) -> None:
        """The first of them is the last to go: without it the others are of no use."""
        now = self._clock()
        for name in reversed(names):
            if name in self._kept:
                self._kept[name].used = now
                self._kept.move_to_end(name)

    def _expire(self) -> None:
        until = self._clock() - self._seconds
        while self._kept and next(iter(self._kept.values())).used <= until:
            self._forget(next(iter(self._kept)))

    def _forget(self, name: bytes) -> None:
        self._bytes -= self._kept.pop(name).size


def _layers_of(cache: object, tokens: int) -> _Layers | None:
    """Keys and values in a cache of so many tokens. None where there is anything else in it, such as a window."""
    if not isinstance(cache, DynamicCache):
        return None
    layers: _Layers = []
    for layer in cache.layers:
        if not isinstance(layer, DynamicLayer) or type(layer) not in (DynamicLayer, RoomyLayer):
            return None
        if layer.keys is None or layer.values is None:
            return None
        if layer.get_seq_length() != tokens:
            return None
        layers.append((layer.keys, layer.values))
    return layers

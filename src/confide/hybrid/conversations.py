"""What a shell keeps of conversations, so that a turn reads and sends what is new in it, and nothing before that."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Final

from transformers import Cache, DynamicCache, PreTrainedConfig

CONVERSATIONS: Final = 8
"""Whose KV caches are kept, at most."""


@dataclass
class _Kept:
    tokens: list[int]
    cache: DynamicCache


class KeptConversations:
    """KV caches of conversations, by their tokens; the oldest go first. Safe for several threads.

    config: of the model; none are kept of one whose cache cannot be cut to what two prompts have in common, because it
    slides. most_tokens: of all together.
    """

    def __init__(self, config: PreTrainedConfig, most_tokens: int) -> None:
        self._keeps = not any(DynamicCache(config=config).is_sliding)
        self._most_tokens = most_tokens
        self._lock = Lock()
        self._kept: list[_Kept] = []

    def __repr__(self) -> str:
        return f"KeptConversations({len(self._kept)}, <hidden>)"

    @property
    def tokens(self) -> int:
        """Tokens kept, of all conversations."""
        return sum(len(kept.tokens) for kept in self._kept)

    def take(self, prompt: Sequence[int]) -> DynamicCache | None:
        """A cache of the longest beginning of the prompt that is known, at least its last token left out.

        A conversation that goes on gives its own; one that the prompt branches off from keeps it, and a copy is cut.
        None where none are kept.
        """
        if not self._keeps:
            return None
        with self._lock:
            return self._taken(prompt)

    def _taken(self, prompt: Sequence[int]) -> DynamicCache:
        most = len(prompt) - 1
        best = max(self._kept, key=lambda kept: _common(kept.tokens, prompt), default=None)
        common = min(most, _common(best.tokens, prompt)) if best is not None else 0
        if best is None or not common:
            return DynamicCache()
        if common >= len(best.tokens) - 1:
            self._kept.remove(best)
            cache = best.cache
        else:
            cache = copy.deepcopy(best.cache)
        cache.crop(common - int(cache.get_seq_length()))  # by how much, as a negative number
        return cache

    def put(self, sequence: list[int], cache: Cache | None) -> None:
        """Keep a cache that has read all of a sequence but its last token, or less."""
        if not self._keeps or not isinstance(cache, DynamicCache):
            return
        tokens = sequence[: int(cache.get_seq_length())]
        if len(tokens) > self._most_tokens:
            return
        with self._lock:
            self._kept.append(_Kept(tokens, cache))
            while len(self._kept) > CONVERSATIONS or self.tokens > self._most_tokens:
                self._kept.pop(0)

    def clear(self) -> None:
        """Forget all of them."""
        with self._lock:
            self._kept.clear()


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(left, right, strict=False)
    return next((index for index, (one, other) in enumerate(pairs) if one != other), min(len(left), len(right)))

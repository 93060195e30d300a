"""Hands out masks, each once: the next indexes of the next pack, for one layer group at a time."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from confide.errors import PackExhausted
from confide.hybrid.packs import BLOCK_TOKENS, Block, MaskPack, PackStore

Arrays = tuple[NDArray[np.int32], NDArray[np.int32]]


@dataclass(frozen=True)
class Segment:
    """Masks of consecutive indexes of one pack: masks int32 (tokens, columns), values int32 (tokens, rows)."""

    pack: bytes
    first: int
    masks: NDArray[np.int32]
    values: NDArray[np.int32]

    def __repr__(self) -> str:
        return f"Segment(first={self.first}, tokens={len(self.masks)}, <hidden>)"


@dataclass
class _Taken:
    """A taken block, and the arrays of the groups that are inside it now."""

    block: Block
    arrays: dict[int, Arrays] = field(default_factory=dict)

    def of(self, group: int) -> Arrays:
        found = self.arrays.get(group)
        if found is None:
            found = self.arrays[group] = (self.block.masks(group), self.block.values(group))
        return found


class MaskSupply:
    """The masks of one session, over all packs that are left.

    `refill` is called when no pack has a mask left, and gives the next ones; without it, PackExhausted. `refill_early`
    is told how many masks are left whenever a block of them was taken, and gives packs that have become ready since.
    """

    def __init__(
        self,
        store: PackStore,
        packs: list[MaskPack],
        groups: int,
        refill: Callable[[], list[MaskPack]] | None = None,
        refill_early: Callable[[int], list[MaskPack]] | None = None,
    ) -> None:
        self._store = store
        self._packs = list(packs)
        self._refill = refill
        self._refill_early = refill_early
        self._taken: list[_Taken] = []
        self._dropped = 0
        self._positions = [0] * groups
        self._mutex = threading.Lock()

    @property
    def tokens_left(self) -> int:
        """Masks that can still be taken without a refill."""
        reserve = (self._dropped + len(self._taken)) * BLOCK_TOKENS - max(self._positions, default=0)
        return reserve + sum(pack.tokens_left for pack in self._packs)

    def add(self, packs: list[MaskPack]) -> None:
        """Go on with these packs once the present ones are spent."""
        self._packs.extend(packs)

    def take(self, group: int, tokens: int, most: int) -> list[Segment]:
        """Masks for `tokens` tokens of a group, in segments of at most `most` consecutive indexes.

        Threads may call it at once; each gets masks of its own.
        """
        self._store.require_owner()
        with self._mutex:
            position = self._positions[group]
            end = position + tokens
            blocks_before = len(self._taken)
            self._reserve(end)
            self._positions[group] = end
            if self._refill_early is not None and len(self._taken) > blocks_before:
                self._packs.extend(self._refill_early(self.tokens_left))
            segments = []
            while position < end:
                segments.append(self._segment(group, position, min(end - position, most)))
                position += len(segments[-1].masks)
            self._drop_finished()
        return segments

    def _segment(self, group: int, position: int, most: int) -> Segment:
        """The longest run of consecutive indexes from a position."""
        place, offset = divmod(position - self._dropped * BLOCK_TOKENS, BLOCK_TOKENS)
        first = self._taken[place]
        masks, values = first.of(group)
        if offset + most <= BLOCK_TOKENS:
            part = slice(offset, offset + most)
            return Segment(first.block.pack.id, first.block.first_token + offset, masks[part], values[part])
        pieces = [(masks[offset:], values[offset:])]
        missing = most - (BLOCK_TOKENS - offset)
        while missing > 0 and self._continues(place):
            place += 1
            masks, values = self._taken[place].of(group)
            pieces.append((masks[:missing], values[:missing]))
            missing -= len(pieces[-1][0])
        joined = [np.concatenate(arrays) if len(pieces) > 1 else arrays[0] for arrays in zip(*pieces, strict=True)]
        return Segment(first.block.pack.id, first.block.first_token + offset, *joined)

    def _continues(self, place: int) -> bool:
        """Whether the block after this one is the same pack's next."""
        if place + 1 >= len(self._taken):
            return False
        here, following = self._taken[place].block, self._taken[place + 1].block
        return following.pack is here.pack and following.index == here.index + 1

    def _reserve(self, position: int) -> None:
        while (missing := position - (self._dropped + len(self._taken)) * BLOCK_TOKENS) > 0:
            blocks = self._current_pack().take(-(-missing // BLOCK_TOKENS))
            self._taken.extend(map(_Taken, blocks))

    def _current_pack(self) -> MaskPack:
        while self._packs and not self._packs[0].tokens_left:
            self._packs.pop(0)
        if not self._packs:
            if self._refill is None:
                raise PackExhausted("No unused mask is left; prepare another pack with `confide prepare`.")
            self._packs.extend(self._refill())
        return self._packs[0]

    def _drop_finished(self) -> None:
        """Forget the keys and arrays of blocks that every group has passed."""
        finished = min(self._positions) // BLOCK_TOKENS - self._dropped
        if finished > 0:
            del self._taken[:finished]
            self._dropped += finished

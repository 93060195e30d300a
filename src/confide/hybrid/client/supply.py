"""Hands out masks, each for one value: the next indexes of the next pack, for one layer group at a time.

A run is one generation. While it lasts, the supply remembers which masks it gave for which activations, so that a run
that was interrupted can be begun again: the same activations get the same masks, hence the same bytes go to the server
again, which answers them again free of charge. Anything else gets masks that were never used.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from confide.errors import PackExhausted
from confide.hybrid.client.packs import BLOCK_TOKENS, Block, MaskPack, PackStore

Arrays = tuple[NDArray[np.int32], NDArray[np.int32]]


RUN_BYTES: Final = 256 << 20
"""Activations of a run that are kept; what a longer one sends after these costs its tokens again if it is repeated."""


@dataclass(frozen=True)
class Segment:
    """Masks of consecutive indexes of one pack, and the activations that they are for.

    masks, inputs: int32 (tokens, columns). values: int32 (tokens, rows). repeated: given before, and perhaps sent.
    """

    pack: bytes
    first: int
    masks: NDArray[np.int32]
    values: NDArray[np.int32]
    inputs: NDArray[np.int32]
    repeated: bool

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


@dataclass(frozen=True)
class _Given:
    """Masks from a position on that were given for these activations, in segments of at most `most`."""

    position: int
    most: int
    inputs: NDArray[np.integer]

    @classmethod
    def narrowed(cls, position: int, most: int, inputs: NDArray[np.int32]) -> Self:
        """With a copy of the activations, which are of 12 to 14 bits as a rule."""
        narrow = inputs.astype(np.int16)
        return cls(position, most, narrow if np.array_equal(narrow, inputs) else inputs.copy())

    def has_shape(self, inputs: NDArray[np.int32], most: int) -> bool:
        return self.inputs.shape == inputs.shape and self.most == most


class _Run:
    """What was given to each group since a run began, in order, and how far it is being given again."""

    def __init__(self, groups: int) -> None:
        self._given: list[list[_Given]] = [[] for _ in range(groups)]
        self._again = [0] * groups
        self._bytes = 0

    def rewind(self) -> None:
        self._again = [0] * len(self._again)

    def add(self, group: int, given: _Given) -> None:
        if self._bytes + given.inputs.nbytes <= RUN_BYTES:
            self._bytes += given.inputs.nbytes
            self._given[group].append(given)
            self._again[group] = len(self._given[group])
        else:
            self._bytes = RUN_BYTES  # nothing may be kept of what follows a gap

    def next(self, group: int) -> _Given | None:
        """What the group was given at this place the last time."""
        given, place = self._given[group], self._again[group]
        return given[place] if place < len(given) else None

    def advance(self, group: int) -> None:
        self._again[group] += 1

    def diverge(self) -> None:
        """From here on the run is another one than the last time."""
        for given, place in zip(self._given, self._again, strict=True):
            del given[place:]
        self._bytes = sum(one.inputs.nbytes for given in self._given for one in given)


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
        self._sources: dict[bytes, MaskPack] = {}
        self._answered_to: dict[bytes, int] = {}
        # Blocks before this one are forgotten.
        self._dropped = 0
        # The first position of each group that was never given. These only ever grow.
        self._positions = [0] * groups
        self._run: _Run | None = None
        self._run_start = 0
        self._mutex = threading.Lock()

    @property
    def tokens_left(self) -> int:
        """Masks that can still be taken without a refill."""
        reserve = (self._dropped + len(self._taken)) * BLOCK_TOKENS - max(self._positions, default=0)
        return reserve + sum(pack.tokens_left for pack in self._packs)

    def add(self, packs: list[MaskPack]) -> None:
        """Go on with these packs once the present ones are spent."""
        self._packs.extend(packs)

    # -- runs --------------------------------------------------------------------------------------------------

    def begin_run(self) -> None:
        """Begin a run; or, where the last one did not end, begin it again.

        Until `end_run` the keys of the masks given stay in memory. Whoever sees the requests can tell that a run is
        begun again, and where it takes another course than the last time.
        """
        with self._mutex:
            if self._run is not None:
                self._run.rewind()
                return
            self._level()
            self._run_start = max(self._positions, default=0)
            self._run = _Run(len(self._positions))

    def abandon_run(self) -> None:
        """Give nothing of the run again, although it goes on."""
        with self._mutex:
            self._run = None

    def end_run(self) -> None:
        """Forget what was given in the run: nothing of it can be given again."""
        with self._mutex:
            self._run = None
            self._level()
            self._drop_finished()

    def _level(self) -> None:
        """Let all groups go on from the same position.

        A run that was given up leaves some of them behind, and an output head does not see a prompt's tokens. What
        they skip is billed already, because of the others.
        """
        self._positions = [max(self._positions, default=0)] * len(self._positions)

    # -- masks -------------------------------------------------------------------------------------------------

    def take(self, group: int, inputs: NDArray[np.int32], most: int, *, anything: bool = False) -> list[Segment]:
        """Masks for the activations `inputs`, int32 (tokens, columns), of a group: for them and nothing else.

        They come in segments of at most `most` consecutive indexes, each with the activations that it is for. Where
        `anything` will do, what a run sent the last time is sent again whatever it was: the server must not see from
        a repetition that its answers are not believed any more. Threads may call it at once; each gets masks of its
        own.
        """
        self._store.require_owner()
        with self._mutex:
            unused = self._positions[group]
            position, inputs = self._give(group, inputs, most, anything)
            repeated = position < unused
            segments: list[Segment] = []
            done = 0
            while done < len(inputs):
                segments.append(self._segment(group, position + done, inputs[done : done + most], repeated))
                done += len(segments[-1].masks)
            self._drop_arrays(group, position, position + done)
            self._drop_finished()
        return segments

    def look_ahead(self, group: int, tokens: int) -> None:
        """Make what the group's next masks are read from, of blocks that are taken: while a server works, say."""
        with self._mutex:
            start = self._positions[group] // BLOCK_TOKENS - self._dropped
            end = -(-(self._positions[group] + tokens) // BLOCK_TOKENS) - self._dropped
            for taken in self._taken[start:end]:
                taken.of(group)

    def answered(self, segment: Segment) -> None:
        """Remember that the server has answered for a segment, and cannot honestly have forgotten it."""
        end = segment.first + len(segment.masks)
        with self._mutex:
            if end > self._answered_to.get(segment.pack, 0):
                self._answered_to[segment.pack] = end
                self._sources[segment.pack].note_answered(end)

    def _give(self, group: int, inputs: NDArray[np.int32], most: int, anything: bool) -> tuple[int, NDArray[np.int32]]:
        """A position and what its masks are for: the last time's where it is the same, unused ones where not."""
        run = self._run
        if run is None:
            return self._fresh(group, len(inputs)), inputs
        before = run.next(group)
        if before is not None:
            if before.has_shape(inputs, most) and (anything or np.array_equal(before.inputs, inputs)):
                run.advance(group)
                return before.position, before.inputs.astype(np.int32)
            run.diverge()
            self._level()
        position = self._fresh(group, len(inputs))
        run.add(group, _Given.narrowed(position, most, inputs))
        return position, inputs

    def _fresh(self, group: int, tokens: int) -> int:
        position = self._positions[group]
        blocks_before = len(self._taken)
        self._reserve(position + tokens)
        # Before anybody sees a mask, so that an interrupt at any moment can waste masks and not repeat them.
        self._positions[group] = position + tokens
        if self._refill_early is not None and len(self._taken) > blocks_before:
            self._packs.extend(self._refill_early(self.tokens_left))
        return position

    def _segment(self, group: int, position: int, inputs: NDArray[np.int32], repeated: bool) -> Segment:
        """The longest run of consecutive indexes from a position, for the first of these activations."""
        most = len(inputs)
        place, offset = divmod(position - self._dropped * BLOCK_TOKENS, BLOCK_TOKENS)
        first = self._taken[place]
        masks, values = first.of(group)
        pieces = [(masks[offset : offset + most], values[offset : offset + most])]
        missing = most - len(pieces[0][0])
        while missing > 0 and self._continues(place):
            place += 1
            masks, values = self._taken[place].of(group)
            pieces.append((masks[:missing], values[:missing]))
            missing -= len(pieces[-1][0])
        if len(pieces) == 1:
            masks, values = pieces[0]
        else:
            masks, values = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
        index = first.block.first_token + offset
        return Segment(first.block.pack.id, index, masks, values, inputs[: len(masks)], repeated)

    def _continues(self, place: int) -> bool:
        """Whether the block after this one is the same pack's next."""
        if place + 1 >= len(self._taken):
            return False
        here, following = self._taken[place].block, self._taken[place + 1].block
        return following.pack is here.pack and following.index == here.index + 1

    def _reserve(self, position: int) -> None:
        while (missing := position - (self._dropped + len(self._taken)) * BLOCK_TOKENS) > 0:
            pack = self._current_pack()
            self._sources[pack.id] = pack
            blocks = pack.take(-(-missing // BLOCK_TOKENS))
            self._taken.extend(map(_Taken, blocks))

    def _current_pack(self) -> MaskPack:
        while self._packs and not self._packs[0].tokens_left:
            self._packs.pop(0)
        if not self._packs:
            if self._refill is None:
                raise PackExhausted("No unused mask is left; prepare another pack with `confide prepare`.")
            self._packs.extend(self._refill())
        return self._packs[0]

    def _drop_arrays(self, group: int, start: int, end: int) -> None:
        """Forget a group's arrays of the blocks that it has left behind, whatever the other groups are doing."""
        for block in range(start // BLOCK_TOKENS, end // BLOCK_TOKENS):
            self._taken[block - self._dropped].arrays.pop(group, None)

    def _drop_finished(self) -> None:
        """Forget the keys of the blocks that every group has passed, unless a run may want them again."""
        kept = min(self._positions) if self._run is None else self._run_start
        finished = kept // BLOCK_TOKENS - self._dropped
        if finished > 0:
            del self._taken[:finished]
            self._dropped += finished

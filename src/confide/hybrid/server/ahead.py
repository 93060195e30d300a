"""Work done before it is asked for: what the public halves of a client's tokens contribute to each group's answers.

A client sends p0 of a block of tokens, 12 kB each; the products U p0, of many times the size, are made between
requests, at low priority, a part of a block at a time, and kept for its connection until they were asked for. They are
a cache: whatever is not there is made from p0 when it is needed, and a block that is forgotten comes again with its
request. So all that has to be right is how much is kept, and for whom.
"""

import asyncio
import itertools
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from confide.rlwe.online import Ahead, GroupMatrix

PART_TOKENS: Final = 32
"""Of a block, worked for and forgotten together."""
_LOOK_AGAIN_SECONDS: Final = 0.001
MOST_PATIENCE: Final = 0.02
"""After which a step is made although requests wait: without work ahead they would cost more."""

_log = logging.getLogger(__name__)

Keys = Ahead | NDArray[np.int8]
"""What keys of consecutive tokens contribute to one group's answers, or p0 to make it from, int8 (tokens, 6, N)."""


class Room:
    """Bytes that may be kept of what is there ahead: of one connection or, as its `parent`, of all of a server's."""

    def __init__(self, most: int, parent: Self | None = None) -> None:
        self._most = most
        self._parent = parent
        self.used = 0

    def take(self, size: int) -> bool:
        """Take so many bytes, if there are so many left."""
        if self.used + size > self._most or not (self._parent is None or self._parent.take(size)):
            return False
        self.used += size
        return True

    def give_back(self, size: int) -> None:
        """They are free again."""
        self.used -= size
        if self._parent is not None:
            self._parent.give_back(size)


@dataclass(eq=False)
class _Part:
    """Consecutive tokens of a block.

    p0: int8 (tokens, 6, N). granted: whether its work may be done ahead, once that was asked. made: of the groups that
    were worked for and not asked for up to its end. spent: the groups that were.
    """

    p0: NDArray[np.int8] = field(repr=False)
    granted: bool | None = None
    made: dict[int, Ahead] = field(default_factory=dict, repr=False)
    spent: set[int] = field(default_factory=set)


class Block:
    """Some tokens of a client. p0: int8 (tokens, 6, N). groups: the model's that are at this server."""

    def __init__(self, p0: NDArray[np.int8], groups: Collection[int]) -> None:
        self.p0 = p0
        self._groups = groups
        self._parts = [_Part(p0[start : start + PART_TOKENS]) for start in range(0, len(p0), PART_TOKENS)]
        self.steps = deque(itertools.product(self._parts, groups))
        """What has not been worked for."""

    @property
    def tokens(self) -> int:
        """How many tokens it is for."""
        return len(self.p0)

    @property
    def spent(self) -> bool:
        """Whether every group was asked for all of it."""
        return all(len(part.spent) == len(self._groups) for part in self._parts)

    def keys(self, group: int, first: int, count: int) -> list[Keys]:
        """Those of the tokens from `first`, in order, made or to be made."""
        found: list[Keys] = []
        for start, part in zip(range(0, self.tokens, PART_TOKENS), self._parts, strict=True):
            tokens = slice(max(first - start, 0), min(first + count - start, len(part.p0)))
            if tokens.start < tokens.stop:
                made = part.made.get(group)
                found.append(part.p0[tokens] if made is None else made[tokens])
        return found

    def spend(self, group: int, end: int) -> int:
        """A group was asked for the tokens before `end`, and will not be again. The bytes that were kept for that."""
        freed = 0
        for stop, part in zip(itertools.count(PART_TOKENS, PART_TOKENS), self._parts, strict=False):
            if min(stop, self.tokens) > end:
                break
            part.spent.add(group)
            made = part.made.pop(group, None)
            freed += 0 if made is None else made.nbytes
        return freed

    def forget(self) -> int:
        """Nothing of it is kept any more. The bytes that were."""
        self.steps.clear()
        return sum(self.spend(group, self.tokens) for group in self._groups)


class Blocks:
    """The blocks of one connection, oldest first; older ones make room for new ones.

    most_tokens: that it keeps p0 of. all_room: of all connections. work_room: of the connection's work. grant: whether
    so many tokens more may be worked for.
    """

    def __init__(
        self,
        most_tokens: int,
        all_room: Room,
        work_room: Room,
        grant: Callable[[int], bool],
        maker: "AheadMaker",
    ) -> None:
        self._most = most_tokens
        self._all_room = all_room
        self._work_room = work_room
        self._grant = grant
        self._maker = maker
        self._blocks: OrderedDict[int, Block] = OrderedDict()

    def get(self, number: int) -> Block | None:
        """The block that the client calls by this number."""
        return self._blocks.get(number)

    def add(self, number: int, block: Block, *, work: bool) -> None:
        """Keep a block, in place of what had its number and of the oldest, where there is room. work: ahead, too."""
        self.drop(number)
        if block.tokens > self._most:
            return
        while sum(kept.tokens for kept in self._blocks.values()) + block.tokens > self._most:
            self.drop(next(iter(self._blocks)))
        if self._all_room.take(block.p0.nbytes):
            self._blocks[number] = block
            if work:
                self._maker.add(block, self._work_room, self._grant)

    def spend(self, number: int, group: int, end: int) -> None:
        """A group was asked for a block's tokens before `end`."""
        block = self._blocks.get(number)
        if block is not None:
            self._work_room.give_back(block.spend(group, end))
            if block.spent:
                self.drop(number)
            self._maker.go_on()

    def drop(self, number: int) -> None:
        """Forget a block, if there is one."""
        block = self._blocks.pop(number, None)
        if block is not None:
            self._work_room.give_back(block.forget())
            self._all_room.give_back(block.p0.nbytes)
            self._maker.go_on()

    def clear(self) -> None:
        """The connection has ended."""
        for number in list(self._blocks):
            self.drop(number)


@dataclass(frozen=True)
class _Waiting:
    block: Block
    room: Room
    grant: Callable[[int], bool]


class AheadMaker:
    """Makes one model's blocks ready, one group of one part at a time, in `worker`, as far as there is room.

    groups, bytes_a_token: the matrix and the work of each group that is at this server. busy: whether requests wait for
    their answers; they go first, for a while. on_made: called with a part's tokens once all of it is made. All methods
    are for the event loop's thread.
    """

    def __init__(
        self,
        groups: Mapping[int, GroupMatrix],
        bytes_a_token: Mapping[int, int],
        worker: Executor,
        busy: Callable[[], bool],
        on_made: Callable[[int], None],
    ) -> None:
        self._groups = groups
        self._bytes_a_token = bytes_a_token
        self._worker = worker
        self._busy = busy
        self._on_made = on_made
        self._waiting: deque[_Waiting] = deque()
        self._task: asyncio.Task[None] | None = None

    def add(self, block: Block, room: Room, grant: Callable[[int], bool]) -> None:
        """Make a block ready, in turn, once there is room."""
        self._waiting.append(_Waiting(block, room, grant))
        self.go_on()

    def go_on(self) -> None:
        """There may be room again."""
        if self._task is None and self._waiting:
            self._task = asyncio.get_running_loop().create_task(self._work())

    def close(self) -> None:
        """Make nothing more."""
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()

    async def _work(self) -> None:
        try:
            await self._let_others_go_first()
            while (step := self._next()) is not None:
                await self._make(*step)
                await self._let_others_go_first()
        finally:
            self._task = None

    def _next(self) -> tuple[_Waiting, _Part, int] | None:
        """The oldest step that there is room for, which is taken; None where there is none."""
        self._waiting = deque(waiting for waiting in self._waiting if waiting.block.steps)
        for waiting in self._waiting:
            steps = waiting.block.steps
            while steps:
                part, group = steps[0]
                if part.granted is None:
                    part.granted = waiting.grant(len(part.p0))
                if not part.granted or group in part.spent:
                    steps.popleft()
                    continue
                if not waiting.room.take(self._size(part, group)):
                    break  # another connection's may fit
                steps.popleft()
                return waiting, part, group
        return None

    def _size(self, part: _Part, group: int) -> int:
        return len(part.p0) * self._bytes_a_token[group]

    async def _make(self, waiting: _Waiting, part: _Part, group: int) -> None:
        loop = asyncio.get_running_loop()
        made = None
        try:
            made = await loop.run_in_executor(self._worker, self._groups[group].ahead, part.p0)
        except Exception:  # noqa: BLE001 - requests bring their own p0 or use the block's
            _log.exception("Work ahead failed inside the server")
            waiting.block.steps.clear()
        finally:
            if made is None or group in part.spent:  # as every group of a block is that was forgotten meanwhile
                waiting.room.give_back(self._size(part, group))
            else:
                part.made[group] = made
                if len(part.made) + len(part.spent) == len(self._groups):
                    self._on_made(len(part.p0))

    async def _let_others_go_first(self) -> None:
        deadline = time.monotonic() + MOST_PATIENCE
        while self._busy() and time.monotonic() < deadline:
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)

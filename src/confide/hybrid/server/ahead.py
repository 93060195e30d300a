"""Work done before it is asked for: what the public halves of a client's tokens contribute to each group's answers.

A client sends p0 of a block of tokens, 12 kB each; the products U p0 are made between requests, at low priority, and
kept for its connection. They are a cache: whatever is not there is made from p0 when it is needed, and a block that is
forgotten comes again with its request. So all that has to be right is how much is kept, and for whom.
"""

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from confide.rlwe.online import Ahead, GroupMatrix

_LOOK_AGAIN_SECONDS: Final = 0.001
MOST_PATIENCE: Final = 0.02
"""After which a step is made although requests wait: without work ahead they would cost more."""

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Block:
    """Some tokens of a client. p0: int8 (tokens, 6, N). made: of the groups that have been worked for."""

    p0: NDArray[np.int8] = field(repr=False)
    made: dict[int, Ahead] = field(default_factory=dict, repr=False)
    forgotten: bool = False

    @property
    def tokens(self) -> int:
        """How many tokens it is for."""
        return len(self.p0)


class Blocks:
    """The blocks of one connection, oldest first; older ones make room for new ones."""

    def __init__(self, most_tokens: int, forget: Callable[[Block], None]) -> None:
        self._most = most_tokens
        self._forget = forget
        self._blocks: OrderedDict[int, Block] = OrderedDict()

    def get(self, number: int) -> Block | None:
        """The block that the client calls by this number."""
        return self._blocks.get(number)

    def add(self, number: int, block: Block) -> None:
        """Keep a block, in place of what had its number and of the oldest."""
        self.drop(number)
        self._blocks[number] = block
        while sum(kept.tokens for kept in self._blocks.values()) > self._most and len(self._blocks) > 1:
            self.drop(next(iter(self._blocks)))

    def drop(self, number: int) -> None:
        """Forget a block, if there is one."""
        block = self._blocks.pop(number, None)
        if block is not None:
            self._forget(block)

    def clear(self) -> None:
        """The connection has ended."""
        for number in list(self._blocks):
            self.drop(number)


@dataclass
class Room:
    """Bytes that work done ahead may take, of all of a server's models together."""

    most: int
    used: int = 0


class AheadMaker:
    """Makes one model's blocks ready, one group of one block at a time, in `worker`, as far as there is room.

    busy: whether requests wait for their answers; they go first, for a while. on_made: called with a block's tokens
    once all of it is made. All methods are for the event loop's thread.
    """

    def __init__(
        self,
        groups: Sequence[GroupMatrix],
        bytes_a_token: int,
        room: Room,
        worker: Executor,
        busy: Callable[[], bool],
        on_made: Callable[[int], None],
    ) -> None:
        self._groups = groups
        self._bytes_a_token = bytes_a_token
        self._room = room
        self._worker = worker
        self._busy = busy
        self._on_made = on_made
        self._waiting: deque[Block] = deque()
        self._task: asyncio.Task[None] | None = None
        self.bytes = 0

    def has_room(self, tokens: int) -> bool:
        """Whether there is room for a block of so many tokens."""
        return self._room.used + tokens * self._bytes_a_token <= self._room.most

    def add(self, block: Block) -> None:
        """Make a block ready, in turn. Its room is taken until it is forgotten."""
        self._take(block.tokens)
        self._waiting.append(block)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())

    def forget(self, block: Block) -> None:
        """A block is not kept any more."""
        block.forgotten = True
        block.made.clear()
        self._take(-block.tokens)

    def _take(self, tokens: int) -> None:
        self.bytes += tokens * self._bytes_a_token
        self._room.used += tokens * self._bytes_a_token

    def close(self) -> None:
        """Make nothing more."""
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()

    async def _work(self) -> None:
        try:
            while self._waiting:
                await self._make(self._waiting.popleft())
        finally:
            self._task = None

    async def _make(self, block: Block) -> None:
        loop = asyncio.get_running_loop()
        for index, group in enumerate(self._groups):
            await self._let_others_go_first()
            if block.forgotten:
                return
            try:
                made = await loop.run_in_executor(self._worker, group.ahead, block.p0)
            except Exception:  # noqa: BLE001 - requests bring their own p0 or use the block's
                _log.exception("Work ahead failed inside the server")
                return
            if block.forgotten:
                return
            block.made[index] = made
        self._on_made(block.tokens)

    async def _let_others_go_first(self) -> None:
        deadline = time.monotonic() + MOST_PATIENCE
        while self._busy() and time.monotonic() < deadline:
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)

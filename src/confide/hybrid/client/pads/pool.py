"""The pool: blocks of pads made ahead, in memory, by one thread of low priority. Each pad serves once.

Nothing of it is ever written to disk. All of it is dropped as soon as anything may have happened to it: after a fork,
after the machine slept, whenever a connection breaks, and when the model is closed.
"""

import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from confide.errors import ModelClosed
from confide.hybrid.client.pads.clocks import TOLERANCE_SECONDS, slept_seconds
from confide.hybrid.client.pads.source import Pads, PadSource
from confide.hybrid.closing import Closing
from confide.hybrid.priority import lower_priority
from confide.rlwe.parameters import Parameters

FIRST_TOKENS: Final = 16
BLOCK_TOKENS: Final = 128
"""Tokens that are made at once: at first few, for a token that waits, then twice as many each time up to this. Reading
the hint takes as long for many as for one."""
MEMORY_SHARE: Final = 8
"""The pool takes at most one part in so many of the memory that is free when it is made."""
_LEAST_MEMORY: Final = 256 << 20
_NICE: Final = 10
_BLOCKS: Final = 1 << 32


@dataclass(frozen=True)
class Taken:
    """Pads of consecutive tokens of a block, for one layer group, taken for good.

    announced: the shards whose servers should have p0 of these tokens; others need p0, int8 (count, 6, N), with them.
    """

    block: int
    first: int
    count: int
    announced: frozenset[int]
    pads: Pads = field(repr=False)
    p0: NDArray[np.int8] | None = field(repr=False)


class Block:
    """Pads for `tokens` tokens in every layer group. Hands each of them out once.

    announced: the model's shards, by number, that have been sent p0.
    """

    def __init__(self, number: int, p0: NDArray[np.int8] | None, pads: list[Pads]) -> None:
        self.number = number
        self.p0 = p0
        self.tokens = len(pads[0].pads)
        self.nbytes = sum(pad.nbytes for pad in pads) + (0 if p0 is None else p0.nbytes)
        self._pads = pads
        self._used = [0] * len(pads)
        self.announced: set[int] = set()

    def __repr__(self) -> str:
        return f"Block({self.number}, tokens={self.tokens}, <hidden>)"

    def left(self, group: int) -> int:
        """Tokens that the group has not used."""
        return self.tokens - self._used[group]

    def used(self) -> int:
        """Tokens that some group has used."""
        return max(self._used)

    def skip_to(self, token: int) -> None:
        """Use no token before this one in any group."""
        self._used = [max(used, token) for used in self._used]

    def take(self, group: int, most: int) -> Taken:
        """The next tokens' pads for a group, at least one and at most so many; never the same ones again."""
        first = self._used[group]
        count = min(most, self.tokens - first)
        if count < 1:
            raise RuntimeError("a block was asked for more than it has")  # a bug of ours, and better than a reuse
        self._used[group] = first + count
        part = slice(first, first + count)
        pads = self._pads[group]
        p0 = None if self.p0 is None else self.p0[part]
        return Taken(self.number, first, count, frozenset(self.announced), Pads(pads.pads[part], pads.values[part]), p0)


class PadPool(Closing):
    """Blocks of pads, and the thread that makes them. One thread at a time takes.

    source: draws secrets. parameters: of each layer group. The first block is begun at once. memory: bytes that the
    blocks may take, a share of what is free without. block_tokens: of the largest blocks. on_block: called by the
    thread whenever a block is ready.
    """

    def __init__(self, source: PadSource, parameters: list[Parameters], memory: int | None = None) -> None:
        self._source = source
        self._groups = len(parameters)
        token = sum(8 * group.columns + 4 * group.rows for group in parameters)
        memory = max(_LEAST_MEMORY, _free_memory() // MEMORY_SHARE) if memory is None else memory
        # A thread makes one more than there are.
        self._most_tokens = max(1, memory // token)
        self.block_tokens = min(BLOCK_TOKENS, max(1, self._most_tokens // 2))
        self._next_tokens = min(FIRST_TOKENS, self.block_tokens)
        self._wanted = self.block_tokens
        self._blocks: list[Block] = []
        self._numbers = itertools.count()
        self._course = 0
        self._slept = slept_seconds()
        self._pid = os.getpid()
        self._problem: BaseException | None = None
        self._closed = False
        self.on_block: Callable[[], object] = lambda: None
        self._changed = threading.Condition()
        self.seconds = 0.0
        self.tokens_made = 0
        _pools.add(self)
        self._thread = threading.Thread(target=self._work, name="confide-pads", daemon=True)
        self._thread.start()

    # -- for the thread that takes ---------------------------------------------------------------------------

    def take(self, group: int, most: int) -> Taken:
        """Pads for at least one token and at most `most`, of one group. Waits where none are ready.

        Raises ModelClosed once the pool is closed and in the child of a fork, and what making them raised.
        """
        self._require_own()
        with self._changed:
            self._drop_after_sleep()
            while (block := next((block for block in self._blocks if block.left(group)), None)) is None:
                self._require_open()
                if self._problem is not None:
                    problem, self._problem = self._problem, None
                    raise problem
                self._changed.notify_all()
                self._changed.wait(1)
            self._require_open()
            self._drop_spent()
            return block.take(group, most)

    def next_pass(self) -> None:
        """The next pads that are taken are those of later tokens than all before, in every group.

        Layers see different numbers of a prompt's tokens; without this their pads would drift apart.
        """
        with self._changed:
            for later, block in zip(self._blocks[1:], self._blocks, strict=False):
                if later.used():
                    block.skip_to(block.tokens)
            if self._blocks:
                last = next((block for block in reversed(self._blocks) if block.used()), self._blocks[0])
                last.skip_to(last.used())
            self._drop_spent()
            self._changed.notify_all()  # the thread makes more long before the last block is spent

    def want(self, tokens: int) -> None:
        """Keep so many tokens ahead from now on, as far as memory allows."""
        with self._changed:
            self._wanted = max(self._wanted, min(tokens, self._most_tokens))
            self._changed.notify_all()

    def announcements(self, shard: int, most: int) -> list[Block]:
        """Blocks whose p0 a shard's server should get now, each handed out once to each. It keeps `most` tokens.

        None as long as it has enough for half a block: what is sent before it is needed may never be.
        """
        with self._changed:
            known = [block for block in self._blocks if shard in block.announced]
            room = most - sum(block.tokens for block in known)
            unused = sum(block.tokens - block.used() for block in known)
            fresh = []
            for block in self._blocks:
                if shard in block.announced or block.p0 is None:
                    continue
                if unused > self.block_tokens // 2 or block.tokens > room:
                    break  # a later one would only be needed after this
                block.announced.add(shard)
                fresh.append(block)
                room -= block.tokens
                unused += block.tokens
            return fresh

    def wait_for_block(self) -> None:
        """Wait until there is a block that nothing has used; what making it raised is raised. For measuring."""
        with self._changed:
            while not any(not block.used() for block in self._blocks):
                self._require_open()
                if self._problem is not None:
                    problem, self._problem = self._problem, None
                    raise problem
                self._changed.wait(1)

    @property
    def tokens_ready(self) -> int:
        """Tokens whose pads are ready: none in the child of a fork."""
        # Without the lock, which nobody may be left to release in such a child.
        return sum(block.tokens - block.used() for block in list(self._blocks))

    # -- what empties it -------------------------------------------------------------------------------------

    def drop(self) -> None:
        """Use nothing of what was made so far, or is being made."""
        with self._changed:
            self._drop()

    def _drop(self) -> None:
        self._course += 1
        self._blocks.clear()
        self._next_tokens = min(FIRST_TOKENS, self.block_tokens)
        self._changed.notify_all()

    def _drop_after_sleep(self) -> None:
        slept = slept_seconds()
        if abs(slept - self._slept) > TOLERANCE_SECONDS:
            self._slept = slept
            self._drop()

    def _drop_spent(self) -> None:
        while self._blocks and not any(self._blocks[0].left(group) for group in range(self._groups)):
            self._blocks.pop(0)
            self._changed.notify_all()

    def _require_own(self) -> None:
        if self._pid != os.getpid():
            raise ModelClosed(
                "This model was opened by the process that this one was forked from, and one secret must not serve "
                "two; open it again with from_shell in each process."
            )

    def _require_open(self) -> None:
        if self._closed:
            raise ModelClosed("This model is closed, and nothing is sent any more; open it again with from_shell.")

    def _forget_in_child(self) -> None:
        """Without the lock: whoever held it is not in this process."""
        self._blocks = []

    def close(self) -> None:
        """Forget everything, and stop making more."""
        if self._pid != os.getpid():
            return
        with self._changed:
            self._closed = True
            self._drop()
        self._thread.join()

    # -- the thread that makes them --------------------------------------------------------------------------

    def _work(self) -> None:
        lower_priority(_NICE)
        while True:
            with self._changed:
                while not self._closed and (self._problem is not None or self._enough()):
                    self._changed.wait()
                if self._closed:
                    return
                course, tokens = self._course, self._next_tokens
            try:
                block = self._make(course, tokens)
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is raised where pads are taken
                with self._changed:
                    self._problem = error
                    self._changed.notify_all()
                continue
            if block is not None:
                with self._changed:
                    if course == self._course:
                        self._blocks.append(block)
                        self._next_tokens = min(2 * tokens, self.block_tokens)
                        self._changed.notify_all()
                self.on_block()

    def _enough(self) -> bool:
        return sum(block.tokens - block.used() for block in self._blocks) >= self._wanted

    def _make(self, course: int, tokens: int) -> Block | None:
        """A block, or None where it was given up meanwhile."""
        started = time.perf_counter()
        secrets = self._source(tokens)
        pads = []
        for index in range(self._groups):
            if course != self._course:
                return None
            pads.append(secrets.group(index))
        block = Block(next(self._numbers) % _BLOCKS, secrets.p0, pads)  # from here on nothing holds the secrets
        self.seconds += time.perf_counter() - started
        self.tokens_made += block.tokens
        return block


_pools: "weakref.WeakSet[PadPool]" = weakref.WeakSet()


def _forget_in_child() -> None:
    for pool in list(_pools):
        pool._forget_in_child()


os.register_at_fork(after_in_child=_forget_in_child)


def _free_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (OSError, ValueError):
        return 0

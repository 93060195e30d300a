"""Waiting for one's turn: first come, first served, nobody takes every place, and batches get what is left."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from confide.errors import ServerBusy
from confide.net.fairness import Shares

_WEIGHT: Final = 0.05
"""Of the latest turn, in the estimate of how long one takes."""
_RUNNING_TIMES: Final = 3
"""Times as many turns as are left may be one client's: three of four, where nobody else asks."""


@dataclass(frozen=True)
class _Waiter:
    who: str
    batch: bool


class Line:
    """So many turns at once; whoever comes later waits in line.

    A turn that ends goes to the client with the fewest turns, and among those to the one that came first. Who was let
    in gets a turn, however long that takes. A batch gets one that nobody else can have, and while another runs not the
    last one, so that whoever waits for an answer need not wait for batches; these have places of their own.
    """

    def __init__(self, at_once: int, waiting: int, longest: float = math.inf, guess: float = 1.0) -> None:
        """waiting: places in line. longest: seconds of waiting, by the estimate, for which nobody is let in.

        guess: seconds that a turn takes, as long as nothing is known of it.
        """
        self._turns = Shares(at_once, _RUNNING_TIMES)
        self._places = {batch: Shares(waiting) for batch in (False, True)}
        self._at_once = at_once
        self._longest = longest
        self._seconds = guess
        self._waiting: dict[asyncio.Future[None], _Waiter] = {}
        self._batches = 0

    @property
    def waiting(self) -> int:
        """How many are in line."""
        return len(self._waiting)

    def estimate(self, *, batch: bool = False) -> float:
        """Seconds until somebody who came now would have a turn, if turns take as long as those before."""
        before = sum(batch or not waiter.batch for waiter in self._waiting.values())
        return self._seconds * (before + 1) / self._at_once

    @asynccontextmanager
    async def turn(self, who: str, *, batch: bool = False) -> AsyncIterator[None]:
        """A turn, which lasts until the block ends. ServerBusy, at once, where there is no place in line."""
        waiter = _Waiter(who, batch)
        if not self._take(waiter):
            await self._wait(waiter)
        started = time.monotonic()
        try:
            yield
        finally:
            self._seconds += _WEIGHT * (time.monotonic() - started - self._seconds)
            self._give_back(waiter)
            self._call_next()

    def _take(self, waiter: _Waiter) -> bool:
        """Whether they get a turn."""
        if waiter.batch and self._batches and self._batches >= _RUNNING_TIMES * (self._turns.free - 1):
            return False
        if not self._turns.take(waiter.who):
            return False
        self._batches += waiter.batch
        return True

    def _give_back(self, waiter: _Waiter) -> None:
        self._turns.give_back(waiter.who)
        self._batches -= waiter.batch

    async def _wait(self, waiter: _Waiter) -> None:
        estimate, places = self.estimate(batch=waiter.batch), self._places[waiter.batch]
        if estimate > self._longest or not places.take(waiter.who):
            raise ServerBusy(
                f"The line is full: about {math.ceil(estimate)} seconds of work wait already; try again then.", estimate
            )
        called = asyncio.get_running_loop().create_future()
        self._waiting[called] = waiter
        self._call_next()  # others in line may be barred from what is free
        try:
            await called
        except BaseException:
            if called.done() and not called.cancelled():  # called and gone in the same moment
                self._give_back(waiter)
                self._call_next()
            raise
        finally:
            places.give_back(waiter.who)
            self._waiting.pop(called, None)

    def _call_next(self) -> None:
        """Give what is free to those whose turn it is."""
        in_order = sorted(self._waiting.items(), key=lambda one: (one[1].batch, self._turns.held(one[1].who)))
        for called, waiter in in_order:
            if self._turns.free and not called.done() and self._take(waiter):
                del self._waiting[called]
                called.set_result(None)

"""Waiting for one's turn: first come, first served, and nobody takes every place."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from confide.errors import ServerBusy
from confide.net.fairness import Shares

_WEIGHT: Final = 0.05
"""Of the latest turn, in the estimate of how long one takes."""
_RUNNING_TIMES: Final = 3
"""Times as many turns as are left may be one client's: three of four, where nobody else asks."""


class Line:
    """So many turns at once; whoever comes later waits in line.

    A turn that ends goes to the client with the fewest turns, and among those to the one that came first. Who was let
    in gets a turn, however long that takes.
    """

    def __init__(self, at_once: int, waiting: int, longest: float = math.inf, guess: float = 1.0) -> None:
        """waiting: places in line. longest: seconds of waiting, by the estimate, for which nobody is let in.

        guess: seconds that a turn takes, as long as nothing is known of it.
        """
        self._turns = Shares(at_once, _RUNNING_TIMES)
        self._places = Shares(waiting)
        self._at_once = at_once
        self._longest = longest
        self._seconds = guess
        self._waiting: dict[asyncio.Future[None], str] = {}

    @property
    def waiting(self) -> int:
        """How many are in line."""
        return len(self._waiting)

    def estimate(self) -> float:
        """Seconds until somebody who came now would have a turn, if turns take as long as those before."""
        return self._seconds * (self.waiting + 1) / self._at_once

    @asynccontextmanager
    async def turn(self, who: str) -> AsyncIterator[None]:
        """A turn, which lasts until the block ends. ServerBusy, at once, where there is no place in line."""
        if not self._turns.take(who):
            await self._wait(who)
        started = time.monotonic()
        try:
            yield
        finally:
            self._seconds += _WEIGHT * (time.monotonic() - started - self._seconds)
            self._turns.give_back(who)
            self._call_next()

    async def _wait(self, who: str) -> None:
        if self.estimate() > self._longest or not self._places.take(who):
            raise ServerBusy(
                f"The line is full: about {math.ceil(self.estimate())} seconds of work wait already; try again then.",
                self.estimate(),
            )
        called = asyncio.get_running_loop().create_future()
        self._waiting[called] = who
        self._call_next()  # others in line may be barred from what is free
        try:
            await called
        except BaseException:
            if called.done() and not called.cancelled():  # called and gone in the same moment
                self._turns.give_back(who)
                self._call_next()
            raise
        finally:
            self._places.give_back(who)
            self._waiting.pop(called, None)

    def _call_next(self) -> None:
        """Give what is free to those whose turn it is."""
        for called, who in sorted(self._waiting.items(), key=lambda one: self._turns.held(one[1])):
            if self._turns.free and not called.done() and self._turns.take(who):
                del self._waiting[called]
                called.set_result(None)

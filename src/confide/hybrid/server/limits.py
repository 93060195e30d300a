"""What one layer server grants its clients, all of them and each."""

import time
from dataclasses import dataclass
from typing import Final, Self


@dataclass(frozen=True)
class Limits:
    """Connections at a time, in all and of one licence; bytes a second of one connection; patience in seconds.

    bytes_in_flight, work_in_flight: payload bytes, and weights times tokens, of one connection's requests that have no
    answer yet; a licence has `licence_credit` times as much for all of its connections. A single request may be
    larger. p0_bytes, ahead_bytes: what is kept of one connection's p0, and of work done ahead for it; all_ahead_bytes:
    of both, for all. greeting_seconds, idle_seconds: how long a client may be silent before its greeting, and after.
    write_seconds: how long it may leave an answer unread.
    """

    connections: int = 256
    connections_per_licence: int = 32
    bytes_per_second: int = 1 << 30
    bytes_in_flight: int = 16 << 20
    work_in_flight: int = 1 << 32
    licence_credit: int = 4
    p0_bytes: int = 4 << 20
    ahead_bytes: int = 24 << 20
    all_ahead_bytes: int = 2 << 30
    greeting_seconds: float = 10.0
    idle_seconds: float = 1800.0
    write_seconds: float = 30.0


class ByteMeter:
    """How long a connection must pause so that it stays below its bytes a second, one second's worth at once."""

    def __init__(self, bytes_per_second: int) -> None:
        self._rate = bytes_per_second
        self._debt = 0.0
        self._at = time.monotonic()

    def pause(self, received: int) -> float:
        """Seconds to wait before reading on, after this many bytes more; 0 most of the time."""
        now = time.monotonic()
        self._debt = max(0.0, self._debt - (now - self._at) * self._rate) + received
        self._at = now
        return max(0.0, self._debt / self._rate - 1.0)


@dataclass(frozen=True)
class Cost:
    """What a request takes while it has no answer: bytes of both, and weights times tokens."""

    bytes: int
    work: int


class Credit:
    """How much may be in flight, of one connection or, as its `parent`, of all of a licence's."""

    def __init__(self, bytes: int, work: int, parent: Self | None = None) -> None:
        self._most = Cost(bytes, work)
        self._bytes = self._work = 0
        self._parent = parent

    @property
    def idle(self) -> bool:
        """Whether nothing is in flight."""
        return self._bytes == self._work == 0

    def has(self, cost: Cost) -> bool:
        """Whether there is enough left, or nothing in flight: the largest request must be possible."""
        fits = self._bytes + cost.bytes <= self._most.bytes and self._work + cost.work <= self._most.work
        return (self.idle or fits) and (self._parent is None or self._parent.has(cost))

    def take(self, cost: Cost) -> None:
        """A request is in flight."""
        self._bytes += cost.bytes
        self._work += cost.work
        if self._parent is not None:
            self._parent.take(cost)

    def give_back(self, cost: Cost) -> None:
        """Its answer has left, or nobody waits for it any more."""
        self._bytes -= cost.bytes
        self._work -= cost.work
        if self._parent is not None:
            self._parent.give_back(cost)


AHEAD_REFILL_SECONDS: Final = 60.0
"""In which a licence may again have as many tokens worked for ahead as one connection keeps, without using any."""


class AheadAllowance:
    """How many tokens a licence may have worked for ahead: as many as it uses, and some that it throws away."""

    def __init__(self, most: int) -> None:
        self._most = 2 * most
        self._left = float(self._most)
        self._rate = most / AHEAD_REFILL_SECONDS
        self._at = time.monotonic()

    def take(self, tokens: int) -> bool:
        """Whether so many tokens more may be worked for."""
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._at) * self._rate)
        self._at = now
        if tokens > self._left:
            return False
        self._left -= tokens
        return True

    def used(self, tokens: int) -> None:
        """Tokens were billed."""
        self._left += tokens

"""Requests are answered once: what was recorded on its way cannot be asked again."""

import heapq
import time
from collections.abc import Callable
from typing import Final

from confide.errors import ChannelRefused

WINDOW_SECONDS: Final = 120.0
_CAPACITY: Final = 1 << 17
"""Requests remembered at most, about 20 MB of them."""


class ReplayGuard:
    """Remembers the requests of a window of time; what was issued outside it is refused.

    The clock is the host's, who may turn it. So the window's beginning only ever rises: a clock that is set back
    opens no time again whose requests have been forgotten.
    """

    def __init__(
        self,
        window: float = WINDOW_SECONDS,
        *,
        capacity: int = _CAPACITY,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """window: seconds that a request may be old, or ahead of the clock here. clock: seconds since 1970."""
        self._window = window
        self._capacity = capacity
        self._clock = clock
        self._floor = clock() - window
        self._by_time: list[tuple[float, bytes]] = []
        self._seen: set[bytes] = set()

    def admit(self, request_id: bytes, issued: float) -> None:
        """ChannelRefused unless this is new and of now. issued: seconds since 1970."""
        now = self._clock()
        self._forget_until(now - self._window)
        if not self._floor < issued <= now + self._window:
            raise ChannelRefused(
                f"The request was made more than {self._window:.0f} seconds from now, by the clock here; "
                "set your clock, and send it anew."
            )
        if request_id in self._seen:
            raise ChannelRefused("This request came before; make a new one for the same question.")
        self._remember(request_id, issued)

    def _remember(self, request_id: bytes, issued: float) -> None:
        self._seen.add(request_id)
        heapq.heappush(self._by_time, (issued, request_id))
        if len(self._by_time) > self._capacity:
            # A burst makes the window shorter, and not the memory larger.
            self._forget_until(self._by_time[0][0])

    def _forget_until(self, time: float) -> None:
        self._floor = max(self._floor, time)
        while self._by_time and self._by_time[0][0] <= self._floor:
            self._seen.discard(heapq.heappop(self._by_time)[1])

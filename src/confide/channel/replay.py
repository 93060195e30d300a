"""Requests are answered once: what was recorded on its way cannot be asked again."""

import hashlib
import os
import struct
import time
from collections.abc import Callable, Iterator
from typing import Final

from confide.errors import ChannelRefused

WINDOW_SECONDS: Final = 120.0
BITS: Final = 1 << 26
"""Of each of two Bloom filters, a multiple of 8."""
_PROBES: Final = struct.Struct("<16I")


class _Seen:
    """Which requests were seen, as a Bloom filter: always right about those that were.

    8 MiB. With two million requests, one in a million new ones is taken for an old one. Nobody who sends requests can
    choose which, for the bits depend on a secret.
    """

    def __init__(self, since: float) -> None:
        self.since = since
        self._bits = bytearray(BITS >> 3)
        self._key = os.urandom(32)

    def __contains__(self, request_id: bytes) -> bool:
        return all(self._bits[place >> 3] & (1 << (place & 7)) for place in self._places(request_id))

    def add(self, request_id: bytes) -> None:
        """Remember it."""
        for place in self._places(request_id):
            self._bits[place >> 3] |= 1 << (place & 7)

    def _places(self, request_id: bytes) -> Iterator[int]:
        digest = hashlib.blake2b(request_id, key=self._key, digest_size=_PROBES.size).digest()
        return (probe % BITS for probe in _PROBES.unpack(digest))


class ReplayGuard:
    """Remembers the requests of a window of time; what was issued outside it is refused.

    Its memory is the same for any number of requests: a flood fills it with nothing but false alarms, of which the
    first million of them bring hardly any. A server that opens them on one processor takes far longer for as many.

    The clock is the host's, who may turn it. So the window's beginning only ever rises: a clock that is set back
    opens no time again whose requests have been forgotten.
    """

    def __init__(self, window: float = WINDOW_SECONDS, *, clock: Callable[[], float] = time.time) -> None:
        """window: seconds that a request may be old, or ahead of the clock here. clock: seconds since 1970."""
        self._window = window
        self._clock = clock
        now = clock()
        self._floor = now - window
        self._before, self._seen = _Seen(now), _Seen(now)

    def admit(self, request_id: bytes, issued: float) -> None:
        """ChannelRefused unless this is new and of now. issued: seconds since 1970."""
        now = self._clock()
        self._floor = max(self._floor, now - self._window)
        if now >= self._seen.since + 2 * self._window:
            # Whatever is forgotten here came before `self._seen.since`, two windows ago, and was issued one window
            # later at most: the floor is above it.
            self._before, self._seen = self._seen, _Seen(now)
        if not self._floor < issued <= now + self._window:
            raise ChannelRefused(
                f"The request was made more than {self._window:.0f} seconds from now, by the clock here; "
                "set your clock, and send it anew."
            )
        if request_id in self._seen or request_id in self._before:
            raise ChannelRefused("This request came before; make a new one for the same question.")
        self._seen.add(request_id)

"""Nonces that evidence is made for: each good once, and not for long.

They are in memory only. After a restart nobody's nonce is known any more, and workloads ask for another one.
"""

import os
from collections.abc import Callable
from datetime import datetime, timedelta
from threading import Lock
from typing import Final

from confide.errors import NonceRefused, ServerBusy
from confide.net.fairness import Shares

NONCE_BYTES: Final = 32
LIFETIME: Final = timedelta(seconds=120)
"""Long enough for hardware that is slow to quote, and short for whoever would like to use evidence later."""
LIMIT: Final = 600
"""Given out within one lifetime, used or not. It bounds memory, the rate of requests, and how fast the log can grow.
One address gets half of them at most, see `Shares`."""


class Nonces:
    """The nonces given out within the last lifetime. Safe for several threads."""

    def __init__(self, limit: int = LIMIT, random: Callable[[int], bytes] = os.urandom) -> None:
        self._shares, self._random = Shares(limit), random
        self._until: dict[str, tuple[datetime, str]] = {}
        self._used: set[str] = set()
        self._lock = Lock()

    def issue(self, now: datetime, who: str = "") -> str:
        """A new one, 64 hexadecimal digits. who: it is given to. ServerBusy where too many were given out lately."""
        with self._lock:
            self._forget(now)
            if not self._shares.take(who):
                raise ServerBusy("Too many workloads asked for a nonce just now; try again in a minute.", 60)
            nonce = self._random(NONCE_BYTES).hex()
            self._until[nonce] = now + LIFETIME, who
            return nonce

    def take(self, nonce: str, now: datetime) -> None:
        """Use one up. NonceRefused unless it was issued, in time, and never used."""
        with self._lock:
            self._forget(now)
            if nonce not in self._until or nonce in self._used:
                raise NonceRefused(
                    "The evidence is for a nonce that was never given out, has expired or was used; "
                    "ask for another nonce and make evidence for that."
                )
            self._used.add(nonce)

    def _forget(self, now: datetime) -> None:
        expired = [nonce for nonce, (until, _) in self._until.items() if until <= now]
        for nonce in expired:
            self._shares.give_back(self._until.pop(nonce)[1])
        self._used.difference_update(expired)

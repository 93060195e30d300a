"""What one layer server grants its clients, all of them and each."""

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Connections at a time, in all and of one licence; bytes a second of one connection; patience in seconds.

    offline_requests: layer groups being prepared at a time; each needs up to 24 x 4096 bytes an input.
    greeting_seconds, rows_seconds, idle_seconds: how long a client may be silent before its greeting, within an
    offline request, and otherwise. write_seconds: how long it may leave an answer unread.
    """

    connections: int = 256
    connections_per_licence: int = 32
    bytes_per_second: int = 1 << 30
    offline_requests: int = 2
    greeting_seconds: float = 10.0
    rows_seconds: float = 60.0
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

"""How long to wait before another try: longer each time, and by chance, so that a crowd does not come back as one."""

import random
from typing import Final

FIRST_PAUSE: Final = 0.5
MAX_PAUSE: Final = 60.0


def pause(attempt: int, asked: float = 0.0) -> float:
    """Seconds to wait after attempt number `attempt`, counted from 1. asked: what the other side asked for, if it did.

    Up to half as much again by chance, and a minute at most, whatever the other side asks.
    """
    least = max(FIRST_PAUSE * float(2 ** (attempt - 1)), asked)
    return min(least * random.uniform(1, 1.5), MAX_PAUSE)  # noqa: S311 - spreads load, keeps no secret


def asked_for(header: str | None) -> float:
    """Seconds by a Retry-After header (RFC 9110, 10.2.3); 0 where there is none, or a date."""
    return min(float(header), MAX_PAUSE) if header and header.isascii() and header.isdigit() else 0.0

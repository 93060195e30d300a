"""Whether this machine slept: memory that was written out and read back may have been read back twice."""

import time
from typing import Final

TOLERANCE_SECONDS: Final = 0.5
"""Two clocks are not read at one moment, and a busy machine may do other things in between."""


def slept_seconds() -> float:
    """Seconds, from some fixed point, that this machine was suspended: one clock counts them and another does not.

    Where a system has no such clocks the wall clock stands in, and then setting it looks like sleep.
    """
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
    if hasattr(time, "CLOCK_UPTIME_RAW"):
        return time.clock_gettime(time.CLOCK_MONOTONIC) - time.clock_gettime(time.CLOCK_UPTIME_RAW)
    return time.time() - time.monotonic()

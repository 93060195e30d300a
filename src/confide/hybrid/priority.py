"""Threads that wait for others: what is made ahead, and what a server computes beside its answers."""

import contextlib
import os
import sys
import threading

_LAST = 19
"""The lowest priority there is on Linux."""


def lower_priority(by: int) -> None:
    """Lower the calling thread's priority by so much, as niceness. Only on Linux has a thread one of its own.

    Never to a fixed one: in a process of low priority that would be above the process's own. Threads that this one
    starts have the same.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError):
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(_LAST, os.getpriority(os.PRIO_PROCESS, thread) + by))

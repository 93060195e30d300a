"""The same work for many things, with the results in order: one by one, on this machine's cores, or wherever else.

Whoever has such work takes a `Mapped`, so that it knows neither threads nor clusters. No result is made long before
somebody takes it, for they may be large.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Mapped(Protocol):
    """Does work for all items; the results come in their order. work: pickles, where it is done elsewhere."""

    def __call__(self, work: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
        """Raises what the work raises."""


def one_by_one(work: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
    """In this thread, as the results are asked for."""
    for item in items:
        yield work(item)


def on_cores(work: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
    """By a thread for each core, a few ahead of those that were taken. For what lets go of Python's lock."""
    workers = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[R]] = deque()
        try:
            for item in items:
                if len(ahead) > workers:
                    yield ahead.popleft().result()
                ahead.append(pool.submit(work, item))
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()

"""Many jobs, one thread: each job advances by one step at a time, in turns, so none holds up the others."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from queue import SimpleQueue
from typing import Final, Generic, TypeVar

from confide.errors import EngineError

T = TypeVar("T")


class _End:
    """A job has no more steps."""


_END: Final = _End()


class _Job(Generic[T]):
    """Steps to take, and the way back to the event loop that waits for what they give."""

    def __init__(self, steps: Iterator[T]) -> None:
        self.wanted = True
        self.results: asyncio.Queue[T | Exception | _End] = asyncio.Queue()
        self._steps = steps
        self._loop = asyncio.get_running_loop()

    def advance(self) -> bool:
        """Take one step, on the working thread; whether there is another."""
        if not self.wanted:
            return False
        try:
            return self.report(next(self._steps, _END))
        except Exception as error:  # noqa: BLE001 - whoever waits for this job must hear of it, and the others go on
            return self.report(error)

    def report(self, result: T | Exception | _End) -> bool:
        """Hand over a result; whether more may follow."""
        try:
            self._loop.call_soon_threadsafe(self.results.put_nowait, result)
        except RuntimeError:  # the event loop is gone
            return False
        return not isinstance(result, Exception | _End)


class Turns:
    """The thread, and those who wait for it."""

    def __init__(self, name: str) -> None:
        self._arrivals: SimpleQueue[_Job[object] | None] = SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def run(self, steps: Iterator[T]) -> AsyncGenerator[T, None]:
        """What the steps give, one after the other. Closing the generator ends the job before its next step.

        Raises what a step raises, and EngineError once this is closed.
        """
        job = _Job(steps)
        if self._closed:
            raise _closed()
        self._arrivals.put(job)  # type: ignore[arg-type]
        try:
            while not isinstance(result := await job.results.get(), _End):
                if isinstance(result, Exception):
                    raise result
                yield result
        finally:
            job.wanted = False

    async def close(self) -> None:
        """End all jobs, and wait for the thread."""
        self._closed = True
        self._arrivals.put(None)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        running: deque[_Job[object]] = deque()
        while True:
            while not running or not self._arrivals.empty():
                if (arrival := self._arrivals.get()) is None:
                    return self._end(running)
                running.append(arrival)
            job = running.popleft()
            if job.advance():
                running.append(job)

    def _end(self, running: deque[_Job[object]]) -> None:
        while not self._arrivals.empty():
            if (arrival := self._arrivals.get()) is not None:
                running.append(arrival)
        for job in running:
            job.report(_closed())


def _closed() -> EngineError:
    return EngineError("The engine is closed; send the request again once it serves.")

"""Many jobs, one thread: first come, first served, and yet none holds up the others for long.

A job first prepares, by steps that give None or a `Part`, and then gives results. Jobs that give results take turns, a
step each. Between two such rounds the job that came first goes on with its preparation, by one step, and those after it
where that was less than a whole one; so jobs get ready one after the other, and not all of them at the very end. One
that takes more than `FIRST_STEPS` lets others pass: those that take longer share every second of these steps.

Nobody's step waits for work on a job that is not wanted any more: such jobs end before the next round begins.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final, Generic, TypeVar

from confide.errors import EngineUnavailable

T = TypeVar("T")
FIRST_STEPS: Final = 8
"""Steps of preparation in which nobody passes."""


@dataclass(frozen=True)
class Part:
    """What a step of preparation may give: its share of a whole one, and whether it was the last."""

    share: float
    last: bool


class _End:
    """A job has no more steps."""


_END: Final = _End()


class _Job(Generic[T]):
    """Steps to take, and the way back to the event loop that waits for what they give."""

    def __init__(self, steps: Generator[T | Part | None, None, None]) -> None:
        self.wanted = True
        self.ready = False
        self.steps_taken = 0
        self.share = 1.0
        self.results: asyncio.Queue[T | Exception | _End | None] = asyncio.Queue()
        self._steps = steps
        self._loop = asyncio.get_running_loop()

    def advance(self) -> bool:
        """Take one step, on the working thread; whether there is another."""
        if self.ended():
            return False
        self.steps_taken += 1
        try:
            result = next(self._steps, _END)
        except Exception as error:  # noqa: BLE001 - whoever waits for this job must hear of it, and the others go on
            return self.report(error)
        if isinstance(result, Part):
            self.share, self.ready, result = result.share, result.last, None
        else:
            self.share, self.ready = 1.0, self.ready or result is not None
        return self.report(result)

    def ended(self) -> bool:
        """Whether nobody waits for it any more; then its steps are closed."""
        if not self.wanted:
            self._steps.close()
        return not self.wanted

    def report(self, result: T | Exception | _End | None) -> bool:
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

    async def run(self, steps: Generator[T | Part | None, None, None]) -> AsyncGenerator[T | None, None]:
        """What the steps give, one after the other: None while the job prepares.

        Closing the generator ends the job before its next step.

        Raises what a step raises, and EngineUnavailable once this is closed.
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
        arrived: deque[_Job[object]] = deque()
        long: deque[_Job[object]] = deque()
        ready: deque[_Job[object]] = deque()
        while True:
            while not (arrived or long or ready) or not self._arrivals.empty():
                if (arrival := self._arrivals.get()) is None:
                    return self._end([*arrived, *long, *ready])
                arrived.append(arrival)
            for preparing in (arrived, long):
                left = 1.0
                while preparing and left > 0:
                    job = preparing.popleft()
                    going = job.advance()
                    left -= job.share
                    if not going:
                        continue
                    if job.ready:
                        ready.append(job)
                    elif preparing is arrived and job.steps_taken < FIRST_STEPS:
                        arrived.appendleft(job)
                    else:
                        long.append(job)
            ready = deque(job for job in ready if not job.ended())
            for _ in range(len(ready)):
                job = ready.popleft()
                if job.advance():
                    ready.append(job)

    def _end(self, running: list[_Job[object]]) -> None:
        while not self._arrivals.empty():
            if (arrival := self._arrivals.get()) is not None:
                running.append(arrival)
        for job in running:
            job.report(_closed())


def _closed() -> EngineUnavailable:
    return EngineUnavailable("The engine is closed; send the request again once it serves.")

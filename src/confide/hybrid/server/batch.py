"""Online requests of different clients for one layer group become one matrix product.

Decoding is bound by reading the weights, so two tokens cost little more than one. A request waits for others only
while there are others to wait for: not where a single client is active, and not once every active client's request is
here. Otherwise it waits for at most the window, which shrinks while waiting brings nothing.
"""

import asyncio
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final

from confide.errors import ServerFault
from confide.hybrid import wire
from confide.hybrid.server.service import Admitted, LayerService
from confide.rlwe.parameters import RING_DEGREE

MAX_WINDOW: Final = 0.5e-3
MIN_WINDOW: Final = 0.01e-3
ACTIVE_SECONDS: Final = 0.05
"""A client counts as active for this long after a request."""
MAX_BATCH: Final = 64
INLINE_WORK: Final = 64 << 20
INLINE_WORK_ALONE: Final = 512 << 20
"""With one core, where a worker would only take turns with the event loop: still a fiftieth of a second or so."""

_log = logging.getLogger(__name__)

OnAnswer = Callable[[wire.Answer | ServerFault], None]


def inline_work(cores: int) -> int:
    """Products of more weights times tokens than this leave the event loop to others, and are the worker's."""
    return INLINE_WORK if cores > 1 else INLINE_WORK_ALONE


@dataclass(frozen=True)
class _Waiting:
    client: object
    request: Admitted
    on_answer: OnAnswer


class Batcher:
    """Gathers admitted requests, and answers them on the event loop, or in `worker` where that takes long.

    Answers of one client may come in another order than its requests.
    """

    def __init__(self, service: LayerService, worker: Executor, observe: Callable[[int], None]) -> None:
        self._service = service
        self._worker = worker
        self._observe = observe
        self._loop = asyncio.get_running_loop()
        self._inline_work = inline_work(len(os.sched_getaffinity(0)))
        self._queues: OrderedDict[int, list[_Waiting]] = OrderedDict()
        self._since: dict[int, float] = {}
        self._active: OrderedDict[object, float] = OrderedDict()
        self._at_work = 0
        self._window = MAX_WINDOW
        self._turning = False

    def add(self, client: object, group: int, request: Admitted, on_answer: OnAnswer) -> None:
        """Answer a request of a client, some time soon."""
        now = time.monotonic()
        self._note_active(client, now)
        queue = self._queues.setdefault(group, [])
        queue.append(_Waiting(client, request, on_answer))
        if len(self._active) == 1 or len(queue) >= MAX_BATCH:
            self._flush(group)
            return
        self._since.setdefault(group, now)
        if not self._turning:
            self._turning = True
            self._loop.call_soon(self._turn)

    @property
    def waiting(self) -> int:
        """Requests that have not become part of a product yet."""
        return sum(map(len, self._queues.values()))

    @property
    def busy(self) -> bool:
        """Whether any request waits for its answer."""
        return bool(self._queues) or self._at_work > 0

    def forget(self, client: object) -> None:
        """A client has gone, and nobody waits for what it asked for."""
        self._active.pop(client, None)
        for group, queue in list(self._queues.items()):
            queue[:] = [waiting for waiting in queue if waiting.client is not client]
            if not queue:
                del self._queues[group]
                self._since.pop(group, None)

    def _note_active(self, client: object, now: float) -> None:
        self._active[client] = now
        self._active.move_to_end(client)
        while next(iter(self._active.values())) < now - ACTIVE_SECONDS:
            self._active.popitem(last=False)

    def _turn(self) -> None:
        """Answer a queue if its time has come, and look again as long as there are any.

        Timers of event loops count milliseconds, so this comes back at every turn of the loop, after it has read what
        has arrived; for a window at most.
        """
        if self._queues:
            # Clients that are behind others, in an earlier layer, go first and catch up with them.
            group = min(self._queues)
            oldest = min(self._since, key=self._since.__getitem__)
            if self.waiting >= len(self._active):
                self._flush(group)
            elif time.monotonic() - self._since[oldest] > self._window:
                self._adapt(len(self._queues[oldest]))
                self._flush(oldest)
        self._turning = bool(self._queues)
        if self._turning:
            self._loop.call_soon(self._turn)

    def _adapt(self, gathered: int) -> None:
        if gathered > 1:
            self._window = min(2 * self._window, MAX_WINDOW)
        else:
            self._window = max(self._window / 2, MIN_WINDOW)

    def _flush(self, group: int) -> None:
        batch = self._queues.pop(group)
        self._since.pop(group, None)
        requests = [waiting.request for waiting in batch]
        self._observe(len(batch))
        if self._short(group, requests):
            _deliver(batch, self._answers(group, requests))
            return
        self._at_work += 1

        def done(future: asyncio.Future[Sequence[wire.Answer | ServerFault]]) -> None:
            self._at_work -= 1
            _deliver(batch, future.result())

        self._loop.run_in_executor(self._worker, self._answers, group, requests).add_done_callback(done)

    def _short(self, group: int, requests: list[Admitted]) -> bool:
        parameters = self._service.parameters(group)
        columns = sum(request.count * parameters.columns + request.unmade * RING_DEGREE for request in requests)
        return columns * parameters.rows <= self._inline_work

    def _answers(self, group: int, requests: list[Admitted]) -> Sequence[wire.Answer | ServerFault]:
        try:
            return self._service.answers(group, requests)
        except Exception:  # noqa: BLE001 - those who wait must hear of it
            _log.exception("A product failed inside the server")
            return [ServerFault("The server failed inside; ask its operator to look at its log.") for _ in requests]


def _deliver(batch: list[_Waiting], answers: Sequence[wire.Answer | ServerFault]) -> None:
    for waiting, answer in zip(batch, answers, strict=True):
        try:
            waiting.on_answer(answer)
        except Exception:  # noqa: BLE001 - one client's trouble must not reach the others
            _log.exception("An answer could not be sent")

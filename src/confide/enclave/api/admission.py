"""The gate before whatever makes answers: who asks, so many at a time, the others in line; no failure is told on.

Whoever asks is known before anything of the request is read, and has a turn before anything is computed for it.
"""

import time
from contextlib import AsyncExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from confide.enclave.api.answer import while_connected
from confide.enclave.api.failures import Outlet
from confide.enclave.api.line import Line
from confide.enclave.api.service import Service
from confide.enclave.api.trace import Trace, with_trace
from confide.enclave.api.users import with_user
from confide.net.body import Bodies, origin_of


class Admission:
    """ASGI middleware around one endpoint. A request takes a place once it is all there, and none before."""

    def __init__(self, app: ASGIApp, service: Service, line: Line, bodies: Bodies, endpoint: str) -> None:
        """line, bodies: shared by all endpoints. endpoint: its name in the metrics."""
        self._app = app
        self._service = service
        self._line = line
        self._bodies = bodies
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, metrics, started = self._service, self._service.metrics, time.monotonic()
        answer = Outlet(send, service.limits.idle_seconds)
        asked = _Asked(service.traces.begin(self._endpoint) if service.traces else Trace())
        try:
            await answer.fill(partial(self._admit, asked), scope, receive)
        finally:
            asked.trace.end(answer.status, batch=asked.batch)
            metrics.requests.labels(self._endpoint, answer.status).inc()
            metrics.seconds.labels(self._endpoint).observe(time.monotonic() - started)

    async def _admit(self, asked: "_Asked", scope: Scope, receive: Receive, send: Send) -> None:
        metrics, request = self._service.metrics, Request(scope, receive)
        service = self._service
        service.require_sound()
        with asked.trace.step("ledger") if service.users else nullcontext():
            user = None if service.users is None else await service.users.admit(request)
        who = user.id if user else origin_of(request)
        async with self._bodies.read(request, who) as body:
            waiting = [body]

        async def again() -> Message:
            if waiting:
                return {"type": "http.request", "body": waiting.pop(), "more_body": False}
            return await request.receive()

        async with AsyncExitStack() as stack:
            asked.batch = is_batch(body)
            with metrics.waiting.track_inprogress(), asked.trace.step("queue"):
                turn = self._line.turn(who, batch=asked.batch)
                await while_connected(request, stack.enter_async_context(turn))
            with metrics.running.track_inprogress():
                await self._app(with_trace(with_user(scope, user), asked.trace), again, send)


@dataclass
class _Asked:
    """What is known of a request while it is on its way."""

    trace: Trace
    batch: bool = False


_BATCH: Final = "flex"
"""OpenAI's word for what may wait."""


class _Tier(msgspec.Struct):
    service_tier: Any = None


def is_batch(body: bytes) -> bool:
    """Whether a request says that it may wait; of one that is no JSON, its endpoint says so."""
    try:
        return bool(msgspec.json.decode(body, type=_Tier).service_tier == _BATCH)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False

"""The gate before whatever makes answers: so many at a time, the others in line, and none of their failures is told."""

import time
from contextlib import AsyncExitStack

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from confide.enclave.api.answer import while_connected
from confide.enclave.api.failures import Outlet
from confide.enclave.api.line import Line
from confide.enclave.api.service import Service
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
        metrics, started = self._service.metrics, time.monotonic()
        answer = Outlet(send, self._service.limits.idle_seconds)
        try:
            await answer.fill(self._admit, scope, receive)
        finally:
            metrics.requests.labels(self._endpoint, answer.status).inc()
            metrics.seconds.labels(self._endpoint).observe(time.monotonic() - started)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        metrics, request = self._service.metrics, Request(scope, receive)
        self._service.require_sound()
        async with self._bodies.read(request) as body:
            waiting = [body]

        async def again() -> Message:
            if waiting:
                return {"type": "http.request", "body": waiting.pop(), "more_body": False}
            return await request.receive()

        async with AsyncExitStack() as stack:
            with metrics.waiting.track_inprogress():
                await while_connected(request, stack.enter_async_context(self._line.turn(origin_of(request))))
            with metrics.running.track_inprogress():
                await self._app(scope, again, send)

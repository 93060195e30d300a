"""The gate before whatever makes answers: so many at a time, the others in line, and none of their failures is told."""

import asyncio
import logging
import sys
import time
from contextlib import AsyncExitStack

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from confide.enclave.api.answer import Serving, while_connected
from confide.enclave.api.line import Line
from confide.enclave.api.problems import problem_response
from confide.errors import AnswerTimedOut, ConfideError
from confide.logs import TextLines
from confide.net.body import Bodies, origin_of

_log = logging.getLogger(__name__)


class Admission:
    """ASGI middleware around one endpoint. A request takes a place once it is all there, and none before."""

    def __init__(self, app: ASGIApp, serving: Serving, line: Line, bodies: Bodies, endpoint: str) -> None:
        """line, bodies: shared by all endpoints. endpoint: its name in the metrics."""
        self._app = app
        self._serving = serving
        self._line = line
        self._bodies = bodies
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        metrics, started = self._serving.metrics, time.monotonic()
        answer = _Watched(send, self._serving.limits.idle_seconds)
        try:
            await self._admit(Request(scope, receive), answer)
        except Exception as error:  # noqa: BLE001 - told without its message, which may quote a prompt
            if answer.status == "none":
                await _response(error)(scope, receive, answer)
            elif not isinstance(error, ConfideError | ClientDisconnect | TimeoutError):
                _report()
            # An answer that has begun stays without an end, and the server cuts the connection.
        finally:
            metrics.requests.labels(self._endpoint, answer.status).inc()
            metrics.seconds.labels(self._endpoint).observe(time.monotonic() - started)

    async def _admit(self, request: Request, answer: "_Watched") -> None:
        metrics = self._serving.metrics
        self._serving.require_sound()
        async with self._bodies.read(request) as body:
            waiting = [body]

        async def receive() -> Message:
            if waiting:
                return {"type": "http.request", "body": waiting.pop(), "more_body": False}
            return await request.receive()

        async with AsyncExitStack() as stack:
            with metrics.waiting.track_inprogress():
                await while_connected(request, stack.enter_async_context(self._line.turn(origin_of(request))))
            with metrics.running.track_inprogress():
                await self._app(request.scope, receive, answer)


def _response(error: Exception) -> Response:
    if isinstance(error, ClientDisconnect):
        return Response(status_code=499)  # to nobody; it is nginx's number for that
    if isinstance(error, TimeoutError):
        error = AnswerTimedOut("The answer was not taken in time; ask again.")
    if not isinstance(error, ConfideError):
        _report()
    return problem_response(error)


def _report() -> None:
    _log.error("Answering a request failed.\n%s", TextLines().formatException(sys.exc_info()))


class _Watched:
    """Sends on, with a client that takes its time; keeps the status."""

    def __init__(self, send: Send, seconds: float) -> None:
        self._send = send
        self._seconds = seconds
        self.status = "none"

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = str(message["status"])
        async with asyncio.timeout(self._seconds):
            await self._send(message)

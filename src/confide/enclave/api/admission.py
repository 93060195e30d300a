"""The gate before whatever makes answers: so many at a time, each for so long, and none of their failures is told."""

import asyncio
import logging
import sys
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from confide.enclave.api.answer import Serving
from confide.enclave.api.problems import problem_response
from confide.errors import AnswerTimedOut, ServerBusy
from confide.logs import TextLines

_log = logging.getLogger(__name__)


class Slots:
    """How many answers are being made."""

    def __init__(self, most: int) -> None:
        self._free = most

    def __enter__(self) -> None:
        """ServerBusy where all are taken."""
        if not self._free:
            raise ServerBusy("As many answers as this server can make are being made; try again in a moment.")
        self._free -= 1

    def __exit__(self, *_: object) -> None:
        self._free += 1


class Admission:
    """ASGI middleware around one endpoint."""

    def __init__(self, app: ASGIApp, serving: Serving, slots: Slots, endpoint: str) -> None:
        """slots: shared by all endpoints. endpoint: its name in the metrics."""
        self._app = app
        self._serving = serving
        self._limits = serving.limits
        self._metrics = serving.metrics
        self._slots = slots
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._serving.require_sound()
        with self._slots, self._metrics.running.track_inprogress():
            started = time.monotonic()
            answer = _Watched(send, self._limits.idle_seconds)
            try:
                async with asyncio.timeout(self._limits.request_seconds):
                    await self._app(scope, receive, answer)
            except Exception as error:  # noqa: BLE001 - told without its message, which may quote a prompt
                await self._fail(error, answer, scope, receive)
            finally:
                self._metrics.requests.labels(self._endpoint, answer.status).inc()
                self._metrics.seconds.labels(self._endpoint).observe(time.monotonic() - started)

    async def _fail(self, error: Exception, answer: "_Watched", scope: Scope, receive: Receive) -> None:
        if isinstance(error, TimeoutError):
            error = AnswerTimedOut("The answer took longer than it may; ask for a shorter one.")
        else:
            _log.error("Answering a request failed.\n%s", TextLines().formatException(sys.exc_info()))
        if answer.status == "none":
            await problem_response(error)(scope, receive, answer)
        # Otherwise the answer stays without an end, and the server cuts the connection.


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

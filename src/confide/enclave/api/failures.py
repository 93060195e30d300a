"""What goes wrong at an answer, wherever that is made: one that has not begun says so, and one that has is cut."""

import asyncio
import logging
import sys

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from confide.enclave.api.problems import problem_response
from confide.errors import AnswerTimedOut, ConfideError
from confide.logs import TextLines

_log = logging.getLogger(__name__)


class Outlet:
    """Where an answer goes: to a client that takes its time. status: the answer's, `none` before it has begun."""

    def __init__(self, send: Send, seconds: float | None = None) -> None:
        """seconds: for the client to take the next part; None for as long as it likes."""
        self._send = send
        self._seconds = seconds
        self.status = "none"

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = str(message["status"])
        async with asyncio.timeout(self._seconds):
            await self._send(message)

    async def fill(self, app: ASGIApp, scope: Scope, receive: Receive) -> None:
        """Have an application answer. What it raises is answered, in its API's form, where nothing has been sent.

        An answer that has begun stays without an end, and the server cuts the connection. Of errors that are not
        Confide's the log is told the place and nothing else: their messages may quote a prompt.
        """
        try:
            await app(scope, receive, self)
        except Exception as error:  # noqa: BLE001 - see above
            if not isinstance(error, ConfideError | ClientDisconnect | TimeoutError):
                _log.error("Answering a request failed.\n%s", TextLines().formatException(sys.exc_info()))
            if self.status == "none":
                await _response(error, scope["path"])(scope, receive, self)


def _response(error: Exception, path: str) -> Response:
    if isinstance(error, ClientDisconnect):
        return Response(status_code=499)  # to nobody; it is nginx's number for that
    if isinstance(error, TimeoutError):
        error = AnswerTimedOut("The answer was not taken in time; ask again.")
    return problem_response(error, path)

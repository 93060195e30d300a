"""Where the channel ends: encrypted requests come in over HTTP, an ordinary ASGI application answers them.

That application sees the request inside, and of the one that carried it only from where it comes. Its answer
leaves in encrypted frames, each as soon as it is there. Only an answer that the application has finished gets a last
frame: one that was cut short, by whatever, cannot pass for a whole one.
"""

import logging
import sys
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import unquote

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from confide.channel.encryption import (
    MEDIA_TYPE,
    FrameWriter,
    OpenedRequest,
    RequestHead,
    ResponseHead,
    encode_head,
    open_request,
)
from confide.channel.keys import ChannelKey
from confide.channel.replay import ReplayGuard
from confide.errors import (
    ChannelError,
    ChannelRefused,
    ConfideError,
    KeyChanged,
    RequestRefused,
    RequestTimedOut,
    RequestTooLarge,
    ServerBusy,
    ServerFault,
)
from confide.logs import TextLines
from confide.net.body import Bodies

_log = logging.getLogger(__name__)

_OVERHEAD: Final = 64 << 10
"""More than encryption adds to a body of a few MiB: opening, head, and 20 bytes for every 64 KiB."""
_HEADERS: Final = [
    (b"content-type", MEDIA_TYPE.encode()),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx then passes every frame on at once
]
_STATUS: Final[Mapping[type[ConfideError], int]] = {
    KeyChanged: 409,
    RequestTooLarge: 413,
    RequestTimedOut: 408,
    ServerBusy: 429,
    ServerFault: 500,
}
_OF_THE_CONNECTION: Final = {"connection", "content-length", "transfer-encoding"}


class EncryptedChannel:
    """ASGI application for POST requests with an encrypted body, around the one that answers what is inside."""

    def __init__(
        self,
        app: ASGIApp,
        key: ChannelKey,
        *,
        body_bytes: int,
        body_seconds: float,
        bodies_bytes: int = 64 << 20,
        on_refusal: Callable[[str], None] = lambda code: None,
    ) -> None:
        """body_bytes, body_seconds: how large a body may be, and how long it may take to come. bodies_bytes: of all
        that come at once.

        on_refusal: called with the code of every channel error.
        """
        self._app = app
        self._key = key
        self._bodies = Bodies(body_bytes + _OVERHEAD, body_seconds, bodies_bytes)
        self._on_refusal = on_refusal
        self._guard = ReplayGuard()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            opened = await self._opened(Request(scope, receive))
            inner = _scope(opened.head, scope.get("client"))
        except ClientDisconnect:
            return
        except (ChannelError, RequestRefused, ServerBusy) as error:
            self._on_refusal(error.code)
            await _refusal(error)(scope, receive, send)
            return
        answer = _EncryptedAnswer(opened.writer, send)
        try:
            await self._app(inner, _receive(opened.body, receive), answer)
        except Exception:  # noqa: BLE001 - told without its message, which may quote a prompt
            _log.error("What answers requests failed.\n%s", TextLines().formatException(sys.exc_info()))
        if not answer.started:
            fault = ServerFault("The workload failed inside; ask its operator, whose log says where.")
            await _refusal(fault)(scope, receive, send)
        # An answer that was started and not ended has no last frame. The server below then cuts the connection.

    async def _opened(self, request: Request) -> OpenedRequest:
        if request.headers.get("content-type") != MEDIA_TYPE:
            raise ChannelRefused(f"Encrypted requests are of the type {MEDIA_TYPE}; send what `confide.connect` makes.")
        async with self._bodies.read(request) as body:
            opened = open_request(self._key, body)
        self._guard.admit(opened.id, opened.issued)
        return opened


class _EncryptedAnswer:
    """Takes ASGI messages of an ordinary answer, and sends those of an encrypted one."""

    def __init__(self, writer: FrameWriter, send: Send) -> None:
        self._writer = writer
        self._send = send
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._start(message)
        elif message["type"] == "http.response.body":
            await self._continue(message.get("body", b""), last=not message.get("more_body", False))

    async def _start(self, message: Message) -> None:
        headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in message["headers"])
        head = self._writer.write(encode_head(ResponseHead(message["status"], headers)))
        self.started = True
        await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await self._send({"type": "http.response.body", "body": head, "more_body": True})

    async def _continue(self, body: bytes, *, last: bool) -> None:
        if body or last:
            encrypted = self._writer.write(bytes(body), last=last)
            await self._send({"type": "http.response.body", "body": encrypted, "more_body": not last})


def _scope(head: RequestHead, client: tuple[str, int] | None) -> Scope:
    """The request as if it had come by itself, from whom the connection is."""
    path, _, query = head.path.partition("?")
    try:
        headers = [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in head.headers
            if name.lower() not in _OF_THE_CONNECTION
        ]
    except UnicodeEncodeError:
        raise ChannelRefused("A header of the encrypted request is not in Latin-1; leave it out.") from None
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": head.method,
        "scheme": "https",
        "path": unquote(path),
        "raw_path": path.encode("ascii"),
        "query_string": query.encode("ascii"),
        "root_path": "",
        "headers": headers,
        "client": client,
        "server": None,
    }


def _receive(body: bytes, outer: Receive) -> Receive:
    """The body at once, then what becomes of the connection that carried it."""
    waiting = [body]

    async def receive() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await outer()

    return receive


def _refusal(error: ConfideError) -> Response:
    said = {"code": error.code, "message": str(error)}
    if isinstance(error, KeyChanged):
        said["key"] = error.key_id.hex()  # by which a client knows one replica from another
    content = msgspec.json.encode({"error": said})
    status = _STATUS.get(type(error), 400)
    headers = {"cache-control": "no-store"} | ({"retry-after": "1"} if status == 429 else {})
    return Response(content, status, headers, media_type="application/json")

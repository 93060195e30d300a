"""The encrypted endpoint, in process: an application that is asked through it, and what must not get through."""

import asyncio
import json
from collections.abc import Callable

import httpx
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from confide.channel.encryption import (
    MAX_FRAME,
    MEDIA_TYPE,
    EncryptedExchange,
    RequestHead,
    ResponseHead,
    decode_head,
)
from confide.channel.keys import ChannelKey
from confide.channel.middleware import EncryptedChannel
from confide.channel.replay import WINDOW_SECONDS
from confide.errors import ChannelBroken

KEY = ChannelKey()
HEAD = RequestHead("POST", "/where%20to?a=b%20c", (("Content-Type", "text/plain"), ("content-length", "999")))


async def mirror(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with what it was asked, in two parts."""
    message = await receive()
    seen = {name: scope[name] for name in ("method", "path", "scheme")} | {
        "query": scope["query_string"].decode(),
        "headers": [[name.decode(), value.decode()] for name, value in scope["headers"]],
    }
    await send({"type": "http.response.start", "status": 203, "headers": [(b"x-inner", b"yes")]})
    await send({"type": "http.response.body", "body": json.dumps(seen).encode() + b"\n", "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": True})
    await send({"type": "http.response.body", "body": message["body"]})


def channel(app: ASGIApp = mirror, **settings: object) -> EncryptedChannel:
    return EncryptedChannel(app, KEY, **({"body_bytes": 1 << 20, "body_seconds": 1.0} | settings))  # type: ignore[arg-type]


def post(app: ASGIApp, body: bytes, media_type: str = MEDIA_TYPE) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.post("/encrypted", content=body, headers={"content-type": media_type})

    return asyncio.run(ask())


def opened(exchange: EncryptedExchange, data: bytes) -> tuple[ResponseHead, bytes]:
    frames = list(exchange.reader.feed(data))
    exchange.reader.require_end()
    return decode_head(frames[0], ResponseHead), b"".join(frames[1:])


def test_a_request_and_its_answer() -> None:
    exchange = EncryptedExchange(KEY.public)
    response = post(channel(), exchange.request(HEAD, b"the body"))
    assert response.status_code == 200
    assert response.headers["content-type"] == MEDIA_TYPE
    assert "x-inner" not in response.headers
    assert b"the body" not in response.content
    head, body = opened(exchange, response.content)
    assert head == ResponseHead(203, (("x-inner", "yes"),))
    seen, rest = body.split(b"\n")
    assert rest == b"the body"
    assert json.loads(seen) == {
        "method": "POST",
        "path": "/where to",
        "scheme": "https",
        "query": "a=b%20c",
        "headers": [["content-type", "text/plain"]],
    }


def refused(response: httpx.Response, status: int, code: str) -> None:
    assert response.status_code == status
    error = response.json()["error"]
    assert error["code"] == code
    assert error["message"].endswith(".")


def test_a_repeated_request_is_refused() -> None:
    app, sent = channel(), EncryptedExchange(KEY.public).request(HEAD, b"x")
    assert post(app, sent).status_code == 200
    refused(post(app, sent), 400, "channel-refused")


def test_an_old_request_is_refused() -> None:
    sent = EncryptedExchange(KEY.public, now=1.0).request(HEAD)
    refused(post(channel(), sent), 400, "channel-refused")
    assert WINDOW_SECONDS < 600


def test_another_key_is_told() -> None:
    codes: list[str] = []
    sent = EncryptedExchange(ChannelKey().public).request(HEAD)
    response = post(channel(on_refusal=codes.append), sent)
    refused(response, 409, "key-changed")
    assert response.json()["error"]["key"] == KEY.public.id.hex()
    assert codes == ["key-changed"]


FRAME = MAX_FRAME + 4 + 16
CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda sent: sent[:-1],
    "without its last frame": lambda sent: sent[:-FRAME],
    "longer": lambda sent: sent + b"\0",
    "changed": lambda sent: sent[:-1] + bytes([sent[-1] ^ 1]),
    "frames swapped": lambda sent: (
        sent[: -3 * FRAME] + sent[-2 * FRAME : -FRAME] + sent[-3 * FRAME : -2 * FRAME] + sent[-FRAME:]
    ),
    "a frame repeated": lambda sent: sent[:-FRAME] + sent[-2 * FRAME :],
    "a frame missing": lambda sent: sent[: -2 * FRAME] + sent[-FRAME:],
    "empty": lambda sent: b"",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_damaged_request_is_refused(change: str) -> None:
    sent = EncryptedExchange(KEY.public).request(HEAD, b"x" * MAX_FRAME + b"y" * MAX_FRAME + b"z" * MAX_FRAME)
    response = post(channel(), CHANGES[change](sent))
    assert response.status_code == 400
    assert response.json()["error"]["code"] in ("channel-refused", "channel-broken")


def test_other_refusals() -> None:
    sent = EncryptedExchange(KEY.public).request(HEAD)
    refused(post(channel(), sent, "application/json"), 400, "channel-refused")
    refused(post(channel(body_bytes=10), bytes(200_000)), 413, "request-too-large")
    head = RequestHead("POST", "/", (("x", "\u20ac"),))
    refused(post(channel(), EncryptedExchange(KEY.public).request(head)), 400, "channel-refused")


def test_a_request_that_never_ends_is_given_up() -> None:
    async def slowly() -> list[Message]:
        sent: list[Message] = []

        async def receive() -> Message:
            await asyncio.sleep(0.02)
            return {"type": "http.request", "body": b"x", "more_body": True}

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "headers": [(b"content-type", MEDIA_TYPE.encode())]}
        await channel(body_seconds=0.2)(scope, receive, send)
        return sent

    assert asyncio.run(slowly())[0]["status"] == 408


async def crashing_early(scope: Scope, receive: Receive, send: Send) -> None:
    raise ValueError("with a secret")


async def crashing_late(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})
    raise ValueError("with a secret")


async def stopping(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})


def test_a_crash_before_the_answer(caplog: pytest.LogCaptureFixture) -> None:
    exchange = EncryptedExchange(KEY.public)
    refused(post(channel(crashing_early), exchange.request(HEAD)), 500, "server-fault")
    assert "ValueError" in caplog.text
    assert "with a secret" not in caplog.text.replace('raise ValueError("with a secret")', "")


@pytest.mark.parametrize("app", [crashing_late, stopping])
def test_an_answer_that_breaks_off_has_no_end(app: ASGIApp) -> None:
    exchange = EncryptedExchange(KEY.public)
    sent: list[Message] = []

    async def ask() -> None:
        async def receive() -> Message:
            return {"type": "http.request", "body": exchange.request(HEAD), "more_body": False}

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "headers": [(b"content-type", MEDIA_TYPE.encode())]}
        await channel(app)(scope, receive, send)

    asyncio.run(ask())
    assert all(message["more_body"] for message in sent[1:])
    frames = list(exchange.reader.feed(b"".join(message["body"] for message in sent[1:])))
    assert frames[1] == b"half"
    with pytest.raises(ChannelBroken):
        exchange.reader.require_end()

"""httpx transports that end inside the workload: what is below them sees ciphertext.

A request of httpx goes in, method, path, headers and body; it is encrypted to the verified key and posted to the
workload's one address for such requests. What comes out is the answer that the workload encrypted, streamed frame by
frame. Statuses of the outer hop are errors here, and never answers.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import httpx

from confide.channel.encryption import (
    MEDIA_TYPE,
    PATH,
    EncryptedExchange,
    FrameReader,
    RequestHead,
    ResponseHead,
    decode_head,
)
from confide.client.hop import MAX_REFUSAL_BYTES, aread_bounded, read_bounded, receiving, refusal, sending
from confide.client.standing import Delivery, Standing
from confide.errors import ConfideError

VERIFIED: Final = "confide_verified"
"""Among an answer's extensions: what was verified of whoever could read the question, and made this answer."""
TO: Final = "confide_to"
"""Among a request's extensions: the one replica, verified, that can answer it."""
REPLICA: Final = "Confide-Replica"
"""Header that names the key of the one replica that can answer, for a balancer that knows where it is. Every request
names its key to whoever sees it; this says besides that it is for a receipt."""
_HEADERS: Final = {"Content-Type": MEDIA_TYPE, "Accept": MEDIA_TYPE, "Accept-Encoding": "identity"}
_OF_THE_HOP: Final = frozenset({"host", "connection", "content-length", "transfer-encoding", "accept-encoding"})
"""Compression is left out since lengths would then say something about texts."""


class EncryptedTransport(httpx.BaseTransport):
    """For httpx.Client."""

    def __init__(self, http: httpx.Client, standing: Standing) -> None:
        """http: for the outer hop, and still the caller's to close."""
        self._http, self._standing = http, standing

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """ChannelError, ConnectionLost or ServerBusy where there is no answer of the workload's.

        A request that no answer has begun to is made anew, for a replica that was verified; see Delivery.
        """
        delivery = Delivery(self._standing, request.extensions.get(TO))
        content = request.read()
        while True:
            exchange = EncryptedExchange(delivery.verified.key)
            body = exchange.request(_head(request), content)
            try:
                answer = self._sent(self._http.build_request("POST", **_outer(delivery, request), content=body))
            except ConfideError as error:
                delivery.failed(error)
                continue
            return self._begun(answer, exchange, delivery)

    def _sent(self, outer: httpx.Request) -> httpx.Response:
        with sending():
            answer = self._http.send(outer, stream=True, follow_redirects=False)
        if answer.status_code == httpx.codes.OK:
            return answer
        try:
            body = read_bounded(answer, MAX_REFUSAL_BYTES)
            raise refusal(answer.status_code, body, answer.headers.get("retry-after"))
        finally:
            answer.close()

    def _begun(self, answer: httpx.Response, exchange: EncryptedExchange, delivery: Delivery) -> httpx.Response:
        try:
            frames = _frames(answer, exchange.reader)
            head = decode_head(next(frames), ResponseHead)
        except BaseException:
            answer.close()
            raise
        delivery.answered()
        return httpx.Response(
            head.status,
            headers=list(head.headers),
            stream=_Body(frames, answer),
            extensions={VERIFIED: delivery.verified},
        )


class AsyncEncryptedTransport(httpx.AsyncBaseTransport):
    """For httpx.AsyncClient."""

    def __init__(self, http: httpx.AsyncClient, standing: Standing) -> None:
        """http: for the outer hop, and still the caller's to close."""
        self._http, self._standing = http, standing

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """ChannelError, ConnectionLost or ServerBusy where there is no answer of the workload's.

        A request that no answer has begun to is made anew, for a replica that was verified; see Delivery.
        """
        delivery = Delivery(self._standing, request.extensions.get(TO))
        content = await request.aread()
        while True:
            exchange = EncryptedExchange(delivery.verified.key)
            body = exchange.request(_head(request), content)
            try:
                answer = await self._sent(self._http.build_request("POST", **_outer(delivery, request), content=body))
            except ConfideError as error:
                await asyncio.to_thread(delivery.failed, error)  # it may verify another replica
                continue
            return await self._begun(answer, exchange, delivery)

    async def _sent(self, outer: httpx.Request) -> httpx.Response:
        with sending():
            answer = await self._http.send(outer, stream=True, follow_redirects=False)
        if answer.status_code == httpx.codes.OK:
            return answer
        try:
            body = await aread_bounded(answer, MAX_REFUSAL_BYTES)
            raise refusal(answer.status_code, body, answer.headers.get("retry-after"))
        finally:
            await answer.aclose()

    async def _begun(self, answer: httpx.Response, exchange: EncryptedExchange, delivery: Delivery) -> httpx.Response:
        try:
            frames = _aframes(answer, exchange.reader)
            head = decode_head(await anext(frames), ResponseHead)
        except BaseException:
            await answer.aclose()
            raise
        delivery.answered()
        return httpx.Response(
            head.status,
            headers=list(head.headers),
            stream=_AsyncBody(frames, answer),
            extensions={VERIFIED: delivery.verified},
        )


class _Body(httpx.SyncByteStream):
    def __init__(self, frames: Iterator[bytes], answer: httpx.Response) -> None:
        self._frames, self._answer = frames, answer

    def __iter__(self) -> Iterator[bytes]:
        return self._frames

    def close(self) -> None:
        self._answer.close()


class _AsyncBody(httpx.AsyncByteStream):
    def __init__(self, frames: AsyncIterator[bytes], answer: httpx.Response) -> None:
        self._frames, self._answer = frames, answer

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._frames

    async def aclose(self) -> None:
        await self._answer.aclose()


def _frames(answer: httpx.Response, reader: FrameReader) -> Iterator[bytes]:
    with receiving():
        for part in answer.iter_raw():
            yield from reader.feed(part)
    reader.require_end()


async def _aframes(answer: httpx.Response, reader: FrameReader) -> AsyncIterator[bytes]:
    with receiving():
        async for part in answer.aiter_raw():
            for frame in reader.feed(part):
                yield frame
    reader.require_end()


def _head(request: httpx.Request) -> RequestHead:
    headers = tuple((name, value) for name, value in request.headers.multi_items() if name not in _OF_THE_HOP)
    return RequestHead(request.method, request.url.raw_path.decode("ascii"), headers)


def _outer(delivery: Delivery, request: httpx.Request) -> dict[str, Any]:
    """Where to send it, how, and how long to wait."""
    headers = _HEADERS | ({"Connection": "close"} if delivery.anew else {})
    if TO in request.extensions:
        headers |= {REPLICA: delivery.verified.key.id.hex()}
    return {
        "url": delivery.verified.url + PATH,
        "headers": headers,
        "timeout": httpx.Timeout(**request.extensions["timeout"]),
    }

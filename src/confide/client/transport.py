"""httpx transports that end inside the workload: what is below them sees ciphertext.

A request of httpx goes in, method, path, headers and body; it is encrypted to the verified key and posted to the
workload's one address for such requests. What comes out is the answer that the workload encrypted, streamed frame by
frame. Statuses of the outer hop are errors here, and never answers.
"""

from collections.abc import AsyncIterator, Iterator
from typing import Final

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
from confide.client.attested import Standing
from confide.client.hop import MAX_REFUSAL_BYTES, aread_bounded, read_bounded, receiving, refusal, sending
from confide.client.relying_party import Verified
from confide.errors import ConfideError, KeyChanged

VERIFIED: Final = "confide_verified"
"""Among an answer's extensions: what was verified of whoever could read the question, and made this answer."""
_HEADERS: Final = {"Content-Type": MEDIA_TYPE, "Accept": MEDIA_TYPE, "Accept-Encoding": "identity"}
_OF_THE_HOP: Final = frozenset({"host", "connection", "content-length", "transfer-encoding", "accept-encoding"})
"""Compression is left out since lengths would then say something about texts."""


class EncryptedTransport(httpx.BaseTransport):
    """For httpx.Client."""

    def __init__(self, http: httpx.Client, url: str, standing: Standing) -> None:
        """http: for the outer hop, and still the caller's to close."""
        self._http, self._url, self._standing = http, url + PATH, standing

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """ChannelError, ConnectionLost or ServerBusy where there is no answer of the workload's."""
        verified = self._standing.current
        exchange = EncryptedExchange(verified.key)
        body = exchange.request(_head(request), request.read())
        outer = self._http.build_request("POST", self._url, content=body, headers=_HEADERS, timeout=_timeout(request))
        with sending():
            answer = self._http.send(outer, stream=True, follow_redirects=False)
        try:
            if answer.status_code != httpx.codes.OK:
                body = read_bounded(answer, MAX_REFUSAL_BYTES)
                raise _refused(self._standing, verified, answer, body)
            frames = _frames(answer, exchange.reader)
            head = decode_head(next(frames), ResponseHead)
        except BaseException:
            answer.close()
            raise
        return httpx.Response(
            head.status, headers=list(head.headers), stream=_Body(frames, answer), extensions={VERIFIED: verified}
        )


class AsyncEncryptedTransport(httpx.AsyncBaseTransport):
    """For httpx.AsyncClient."""

    def __init__(self, http: httpx.AsyncClient, url: str, standing: Standing) -> None:
        """http: for the outer hop, and still the caller's to close."""
        self._http, self._url, self._standing = http, url + PATH, standing

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """ChannelError, ConnectionLost or ServerBusy where there is no answer of the workload's."""
        verified = self._standing.current
        exchange = EncryptedExchange(verified.key)
        body = exchange.request(_head(request), await request.aread())
        outer = self._http.build_request("POST", self._url, content=body, headers=_HEADERS, timeout=_timeout(request))
        with sending():
            answer = await self._http.send(outer, stream=True, follow_redirects=False)
        try:
            if answer.status_code != httpx.codes.OK:
                body = await aread_bounded(answer, MAX_REFUSAL_BYTES)
                raise _refused(self._standing, verified, answer, body)
            frames = _aframes(answer, exchange.reader)
            head = decode_head(await anext(frames), ResponseHead)
        except BaseException:
            await answer.aclose()
            raise
        return httpx.Response(
            head.status, headers=list(head.headers), stream=_AsyncBody(frames, answer), extensions={VERIFIED: verified}
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


def _timeout(request: httpx.Request) -> httpx.Timeout:
    return httpx.Timeout(**request.extensions["timeout"])


def _refused(standing: Standing, verified: Verified, answer: httpx.Response, body: bytes) -> ConfideError:
    error = refusal(answer.status_code, body, answer.headers.get("retry-after"))
    if isinstance(error, KeyChanged):
        standing.withdraw(verified)
    return error

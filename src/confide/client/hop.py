"""The outer hop: plain HTTP to whatever listens at the address, which is believed in nothing.

What it says with its status is turned into a typed error here, and never into an answer of the workload's.
"""

import re
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Final
from urllib.parse import urlsplit

import httpx
import msgspec

from confide.errors import (
    ChannelBroken,
    ChannelRefused,
    ConfideError,
    ConnectionLost,
    GatewayError,
    InsecureConnection,
    KeyChanged,
    RequestTooLarge,
    ServerBusy,
    ServerSilent,
    UntrustedCertificate,
)
from confide.net.loopback import is_loopback
from confide.net.patience import asked_for
from confide.net.tls import client_context

CONNECT_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 120.0
"""How long any single wait for the other side may be where the caller says nothing else."""
TIMEOUT: Final = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
LONG_TIMEOUT: Final = httpx.Timeout(600.0, connect=CONNECT_SECONDS)
"""For the model's answers: who waits in line for one hears nothing meanwhile."""
MAX_REFUSAL_BYTES: Final = 64 << 10
_BUSY: Final = (429, 503)
_KEY_ID: Final = re.compile(r"[0-9a-f]{64}")
_CHANNEL_ERRORS: Final[Mapping[str, tuple[type[ConfideError], str]]] = MappingProxyType(
    {
        KeyChanged.code: (
            KeyChanged,
            "The workload has another key than the one that was verified: it was restarted, or several replicas answer "
            "here, and `replicas` says how many. Nothing was answered; ask again.",
        ),
        ChannelRefused.code: (
            ChannelRefused,
            "The workload did not take the request: it came twice or too late, or this machine's clock is wrong. Check "
            "the clock, and send it again.",
        ),
        ChannelBroken.code: (
            ChannelBroken,
            "The request was changed or cut on its way to the workload. Send it again, and find out what is in between "
            "if that recurs.",
        ),
        RequestTooLarge.code: (
            RequestTooLarge,
            "The request is larger than the workload takes, or what stands before it; send less text, or a smaller "
            "document.",
        ),
    }
)


class _Error(msgspec.Struct, frozen=True):
    code: str
    key: str = ""


class _Refusal(msgspec.Struct, frozen=True):
    error: _Error


def server_address(url: str, *, insecure_no_tls: bool = False) -> str:
    """The address without a slash at its end. InsecureConnection for http beyond this machine, unless allowed."""
    no_address = ConnectionLost(f"{url!r} is not the address of a server; write https://host:port.")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # the second raises where it is none
    except ValueError:
        raise no_address from None
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise no_address
    if parts.scheme == "http" and not insecure_no_tls and not is_loopback(host):
        raise InsecureConnection(
            f"{url} is not an https address; prompts would be encrypted all the same, but when and how much you ask "
            "would show. Use https, or allow it with insecure_no_tls."
        )
    return url.rstrip("/")


def tls_context(url: str, ca: Path | str | None) -> ssl.SSLContext | bool:
    """What to trust at this address; loading the system's authorities takes a while and http needs none."""
    return client_context(ca) if urlsplit(url).scheme == "https" else False


@contextmanager
def sending() -> Iterator[None]:
    """Errors of getting a request there and the answer's head back, as typed errors."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise _silent() from error
    except httpx.TransportError as error:
        if caused_by(error, ssl.SSLCertVerificationError):
            raise UntrustedCertificate(
                "The server's certificate is not trusted; give the authority's certificate with ca, or check the "
                "address."
            ) from error
        raise ConnectionLost(f"The server cannot be reached ({error}); check the address and the network.") from error


@contextmanager
def receiving() -> Iterator[None]:
    """The same for an answer that has begun: where it ends early or stops, it was cut."""
    try:
        yield
    except httpx.TransportError as error:
        raise ChannelBroken(
            "The connection broke in the middle of an answer; what came before may be incomplete. Send it again."
        ) from error


def refusal(status: int, body: bytes, retry_after: str | None = None) -> ConfideError:
    """What a status other than 200 means. body: as far as it was read; its words are nobody's, so none is repeated.

    retry_after: that header.
    """
    try:
        said = msgspec.json.decode(body, type=_Refusal).error
    except (msgspec.MsgspecError, ValueError, RecursionError):
        said = _Error("")
    if said.code in _CHANNEL_ERRORS:
        kind, message = _CHANNEL_ERRORS[said.code]
        if kind is KeyChanged:
            return KeyChanged(message, bytes.fromhex(said.key) if _KEY_ID.fullmatch(said.key) else b"")
        return kind(message)
    if status in _BUSY:
        return ServerBusy(
            f"The server is busy (status {status}); try again in a moment.", asked_for(retry_after) or 1.0
        )
    reason = httpx.codes.get_reason_phrase(status)
    return GatewayError(
        f"The server answered {status} {reason} without passing the request on; check the address, and what stands "
        "before the workload."
    )


class Bounded:
    """Collects a body that should be small and quick, for at most ANSWER_SECONDS."""

    def __init__(self, limit: int) -> None:
        """limit: in bytes. Of a larger body there will be a little more than that."""
        self._limit, self._until = limit, time.monotonic() + ANSWER_SECONDS
        self.content = bytearray()

    def add(self, part: bytes) -> bool:
        """Whether more may come. ServerSilent where it took too long."""
        if time.monotonic() > self._until:
            raise _silent()
        self.content += part
        return len(self.content) <= self._limit


def read_bounded(response: httpx.Response, limit: int) -> bytes:
    """The body of a streamed answer, or somewhat more than its first `limit` bytes."""
    body = Bounded(limit)
    with receiving():
        for part in response.iter_bytes():
            if not body.add(part):
                break
    return bytes(body.content)


async def aread_bounded(response: httpx.Response, limit: int) -> bytes:
    """The same for asyncio."""
    body = Bounded(limit)
    with receiving():
        async for part in response.aiter_bytes():
            if not body.add(part):
                break
    return bytes(body.content)


def _silent() -> ServerSilent:
    return ServerSilent("The server took too long; try again, or allow more time.")


def may_pass(error: ConfideError) -> bool:
    """Whether the same question may be answered a little later: by a server that is there, and has too much to do."""
    if isinstance(error, ServerBusy):
        return True
    lasting = (ConnectionRefusedError, socket.gaierror, ssl.SSLCertVerificationError)
    return type(error) is ConnectionLost and not any(caused_by(error, kind) for kind in lasting)


def caused_by(error: BaseException | None, kind: type[BaseException]) -> bool:
    """Whether an error of this kind is what led to this one, or is it."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error is not None


def fetch(http: httpx.Client, url: str, params: Mapping[str, str], most: int) -> bytes:
    """The body that a GET is answered with, of at most so many bytes. Raises what `getting` does."""
    with getting(http, url, params) as response:
        return read_bounded(response, most)


@contextmanager
def getting(http: httpx.Client, url: str, params: Mapping[str, str]) -> Iterator[httpx.Response]:
    """What a GET is answered with, its body not yet read.

    ConnectionLost, GatewayError, or what the server says it refuses for. No redirect is followed.
    """
    request = http.build_request("GET", url, params=dict(params))
    with sending():
        response = http.send(request, stream=True, follow_redirects=False)
    try:
        if response.status_code != httpx.codes.OK:
            body = read_bounded(response, MAX_REFUSAL_BYTES)
            raise refusal(response.status_code, body, response.headers.get("retry-after"))
        yield response
    finally:
        response.close()

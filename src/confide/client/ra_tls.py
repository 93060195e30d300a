"""TLS that ends inside the workload: who the server is follows from evidence in its certificate, and from no authority.

The certificate is looked at when the handshake is over, in which the server has proved that it holds the key, and
before anything is sent through the connection.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from hashlib import sha256
from hmac import compare_digest
from typing import cast

import httpx

from confide.attest.ra_tls import open_certificate, verify_binding
from confide.client.hop import receiving, sending
from confide.client.relying_party import RelyingParty
from confide.client.standing import Standing
from confide.client.transport import VERIFIED
from confide.enclave.workload import TLS_PURPOSE
from confide.errors import KeyChanged, WrongBinding

Check = Callable[[bytes], None]
"""Takes the peer's certificate in DER; raises unless it is to be trusted."""


def unauthenticated_context() -> ssl.SSLContext:
    """For asking for evidence, which proves by itself where it comes from. Nothing else may be sent through it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def attested_context(check: Check) -> ssl.SSLContext:
    """Has `check` look at every connection's certificate before it can be written to."""

    class Socket(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:
            super().do_handshake(block)
            check(_certificate(self))

    class Object(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            check(_certificate(self))

    context = unauthenticated_context()
    context.sslsocket_class, context.sslobject_class = Socket, Object
    return context


def certificate_check(party: RelyingParty, standing: Standing) -> Check:
    """The certificate is current, its evidence genuine and about its key, as is what was verified of the workload."""

    def check(certificate: bytes) -> None:
        verified = standing.current
        opened, now = open_certificate(certificate), datetime.now(UTC)
        opened.require_current(now)
        claims = party.verify(opened.evidence, verified.collateral, now)
        verify_binding(certificate, claims)
        attested = verified.statement.channel_keys.get(TLS_PURPOSE, "")
        if not attested:
            raise WrongBinding("TLS does not end inside this workload; connect without ra_tls.")
        if not compare_digest(sha256(opened.spki).hexdigest(), attested):
            raise KeyChanged("The server has another TLS key than the one that was verified; call verify().")

    return check


class AttestedTlsTransport(httpx.BaseTransport):
    """For httpx.Client: requests go straight to the workload, through TLS that ends in it."""

    def __init__(self, party: RelyingParty, standing: Standing) -> None:
        self._standing = standing
        context = attested_context(certificate_check(party, standing))
        self._inner = httpx.HTTPTransport(verify=context)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """AttestationError, KeyChanged or ConnectionLost where nothing was sent; ChannelBroken for half an answer."""
        verified = self._standing.current
        try:
            answer = self._sent(request)
        except KeyChanged:  # in the handshake, before anything was sent
            verified = self._standing.in_place_of(verified)
            answer = self._sent(request)
        answer.stream = _Body(answer)
        answer.extensions[VERIFIED] = verified
        return answer

    def _sent(self, request: httpx.Request) -> httpx.Response:
        with sending():
            return self._inner.handle_request(request)

    def close(self) -> None:
        """Close the connections."""
        self._inner.close()


class AsyncAttestedTlsTransport(httpx.AsyncBaseTransport):
    """For httpx.AsyncClient: the same."""

    def __init__(self, party: RelyingParty, standing: Standing) -> None:
        self._standing = standing
        context = attested_context(certificate_check(party, standing))
        self._inner = httpx.AsyncHTTPTransport(verify=context)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """AttestationError, KeyChanged or ConnectionLost where nothing was sent; ChannelBroken for half an answer."""
        verified = self._standing.current
        try:
            answer = await self._sent(request)
        except KeyChanged:
            verified = await asyncio.to_thread(self._standing.in_place_of, verified)
            answer = await self._sent(request)
        answer.stream = _AsyncBody(answer)
        answer.extensions[VERIFIED] = verified
        return answer

    async def _sent(self, request: httpx.Request) -> httpx.Response:
        with sending():
            return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()


class _Body(httpx.SyncByteStream):
    def __init__(self, answer: httpx.Response) -> None:
        self._inner = cast(httpx.SyncByteStream, answer.stream)

    def __iter__(self) -> Iterator[bytes]:
        with receiving():
            yield from self._inner

    def close(self) -> None:
        self._inner.close()


class _AsyncBody(httpx.AsyncByteStream):
    def __init__(self, answer: httpx.Response) -> None:
        self._inner = cast(httpx.AsyncByteStream, answer.stream)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with receiving():
            async for part in self._inner:
                yield part

    async def aclose(self) -> None:
        await self._inner.aclose()


def _certificate(connection: ssl.SSLSocket | ssl.SSLObject) -> bytes:
    certificate = connection.getpeercert(binary_form=True)
    if certificate is None:
        raise WrongBinding("The server showed no certificate; check the address.")
    return certificate

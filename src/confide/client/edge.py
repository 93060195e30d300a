"""A service that asks another one: it verifies it, is verified by it, and then asks directly, all in one channel.

The caller's part of `confide.channel.introduction`. What the neighbour is held against is its owners' policy, and
nothing of it is remembered on this machine, whose files are the host's.
"""

import asyncio
import logging
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from ssl import SSLContext
from typing import Final, TypeVar

import httpx
import msgspec

from confide.channel.introduction import (
    MAX_ANSWER_BYTES,
    NONCE_PATH,
    PATH,
    SESSION,
    TOKEN_BYTES,
    UNKNOWN,
    Introduced,
    Introduction,
    decode,
    token_info,
)
from confide.channel.key_release import NonceAnswer
from confide.client.attested import NONCE_BYTES, fetch_attestation
from confide.client.hop import (
    LONG_TIMEOUT,
    MAX_REFUSAL_BYTES,
    TIMEOUT,
    aread_bounded,
    refusal,
    sending,
    server_address,
    tls_context,
)
from confide.client.relying_party import RelyingParty, Verified
from confide.client.standing import Standing
from confide.client.transport import VERIFIED, AsyncEncryptedTransport
from confide.enclave.api.neighbours import Appraise
from confide.enclave.connector import Connector
from confide.enclave.connector_http import async_through, through
from confide.enclave.workload import Workload
from confide.errors import (
    PASSING,
    ConfideError,
    EngineUnavailable,
    MalformedMessage,
    NeighbourRefused,
    ServerBusy,
)
from confide.graph.evidence import EVIDENCE_PATH, MAX_GATHERED_BYTES

_INSIDE: Final = "http://neighbour.invalid"
"""Stands for the neighbour above the channel; the name is never looked up."""
_CONNECTIONS: Final = 256
_log = logging.getLogger(__name__)
_Message = TypeVar("_Message", NonceAnswer, Introduced)


def callers(parties: Mapping[str, RelyingParty]) -> dict[str, Appraise]:
    """For `Neighbours`: each by what is asked of it."""

    def appraise_by(party: RelyingParty) -> Appraise:
        return lambda attested, nonce, now: party.appraise(attested, nonce, now).key

    return {name: appraise_by(party) for name, party in parties.items()}


class Edge(httpx.AsyncBaseTransport):
    """From this workload to one neighbour; an httpx transport of one event loop.

    The neighbour is verified before anything is encrypted to it, and again when it has another key or does not know us
    any more. NeighbourRefused where it is not what it has to be, or refuses us; EngineUnavailable where it is away. Of
    what was wrong the log says more than whoever asked us is told.
    """

    def __init__(
        self,
        url: str,
        workload: Workload,
        party: RelyingParty,
        *,
        name: str,
        ca: Path | str | None = None,
        connector: Connector | None = None,
        insecure_no_tls: bool = False,
    ) -> None:
        """url: where the neighbour is. party: what it has to be. name: of this workload, as the neighbour knows it.

        ca: as for EnclaveSession. connector: opens the connections, where this process cannot. InsecureConnection for
        http beyond this machine, unless allowed.
        """
        self._url = server_address(url, insecure_no_tls=insecure_no_tls)
        self._workload, self._party, self._name = workload, party, name
        tls = tls_context(self._url, ca)
        context = tls if isinstance(tls, SSLContext) else None
        self._http = httpx.Client(
            verify=tls, timeout=TIMEOUT, trust_env=False, transport=through(connector, context) if connector else None
        )
        self._async_http = httpx.AsyncClient(
            verify=tls,
            timeout=LONG_TIMEOUT,
            trust_env=False,
            transport=async_through(connector, _CONNECTIONS, context) if connector else None,
        )
        self._turn = asyncio.Lock()
        self._channel: AsyncEncryptedTransport | None = None
        self._token = ""

    def client(self) -> httpx.AsyncClient:
        """To ask the neighbour's API with, by paths alone. Closing it closes the edge."""
        return httpx.AsyncClient(transport=self, base_url=_INSIDE, timeout=LONG_TIMEOUT)

    async def gathered(self, nonce: str) -> bytes:
        """What the neighbour gathers of the graph for a nonce, not looked at; see `confide.graph.evidence`.

        ConnectionLost, GatewayError, ServerBusy where it gives nothing.
        """
        url, nonces = self._url + EVIDENCE_PATH, {"nonce": nonce}
        request = self._async_http.build_request("GET", url, params=nonces, timeout=TIMEOUT)
        with sending():
            response = await self._async_http.send(request, stream=True, follow_redirects=False)
        try:
            found = response.status_code == httpx.codes.OK
            body = await aread_bounded(response, MAX_GATHERED_BYTES if found else MAX_REFUSAL_BYTES)
        finally:
            await response.aclose()
        if not found:
            raise refusal(response.status_code, body, response.headers.get("retry-after"))
        return body

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The neighbour's answer, whatever its status."""
        await request.aread()
        stale = ""
        for _ in range(2):
            channel, token = await self._session(stale)
            request.headers[SESSION] = token
            with self._told():
                response = await channel.handle_async_request(request)
            if response.headers.get(SESSION) != UNKNOWN:
                return response
            await response.aclose()
            stale = token
        _log.warning("%s does not know this service, although it was introduced a moment ago.", self._url)
        raise _refused()

    async def _session(self, stale: str) -> tuple[AsyncEncryptedTransport, str]:
        """The channel, and a token for it that is not this one."""
        async with self._turn:
            with self._told():
                if self._channel is None:
                    standing = await asyncio.to_thread(Standing, self._verify, [self._url])
                    self._channel = AsyncEncryptedTransport(self._async_http, standing)
                if self._token == stale:
                    self._token = await self._introduced(self._channel)
            return self._channel, self._token

    def _verify(self, url: str) -> Verified:
        nonce = secrets.token_hex(NONCE_BYTES)
        return self._party.appraise(fetch_attestation(self._http, url, nonce), nonce, datetime.now(UTC), url)

    async def _introduced(self, channel: AsyncEncryptedTransport) -> str:
        given, _ = await self._ask(channel, NONCE_PATH, b"", NonceAnswer)
        attested = await asyncio.to_thread(self._workload.attest, given.nonce)
        body = msgspec.json.encode(Introduction(self._name, attested))
        answer, verified = await self._ask(channel, PATH, body, Introduced)
        token = self._workload.key.decrypt(answer.wrapped, token_info(verified.key.id, given.nonce))
        if len(token) != TOKEN_BYTES:
            raise MalformedMessage("The neighbour gave a token that is none; ask its operator what it runs.")
        return token.hex()

    async def _ask(
        self, channel: AsyncEncryptedTransport, path: str, body: bytes, kind: type[_Message]
    ) -> tuple[_Message, Verified]:
        request = httpx.Request("POST", _INSIDE + path, content=body, extensions={"timeout": TIMEOUT.as_dict()})
        response = await channel.handle_async_request(request)
        content = await aread_bounded(response, MAX_ANSWER_BYTES)
        await response.aclose()
        if response.status_code != httpx.codes.OK:
            _log.warning("%s answered an introduction with status %d.", self._url, response.status_code)
            raise _refused()
        return decode(content, kind), response.extensions[VERIFIED]

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What went wrong at the neighbour, as much of it as whoever asked this service may know."""
        try:
            yield
        except (NeighbourRefused, ServerBusy):
            raise
        except PASSING as error:
            _log.warning("%s is away: %s", self._url, error)
            raise EngineUnavailable("A service behind this one is away; try again in a moment.") from None
        except ConfideError as error:
            _log.warning("%s is refused: %s", self._url, error)
            raise _refused() from None

    async def aclose(self) -> None:
        """Close its connections."""
        self._http.close()
        await self._async_http.aclose()


def _refused() -> NeighbourRefused:
    return NeighbourRefused(
        "A service behind this one is not what it has to be, or does not let this one in, and the question was not "
        "answered; ask the operator, whose log says why."
    )

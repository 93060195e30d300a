"""A model in a trusted execution environment: appraised first, then every question is encrypted to the attested key."""

import asyncio
import hmac
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from confide.channel.encryption import CACHE_SALT
from confide.client.attested import verify_workload
from confide.client.hop import TIMEOUT, server_address, tls_context
from confide.client.receipts import EXCHANGE, AsyncReceiptedTransport, Exchange, Receipts, grounds_of
from confide.client.relying_party import RelyingParty, Verified
from confide.client.standing import MAX_REPLICAS, Standing
from confide.client.transport import AsyncEncryptedTransport
from confide.enclave.api.answer import while_connected
from confide.enclave.api.events import event
from confide.enclave.api.problems import MESSAGES, problem
from confide.errors import ConfideError, KeyChanged, ProtocolError, ReceiptMissing
from confide.ledger.keys import KEY_PREFIX
from confide.net.body import bearer
from confide.proxy.backend import Backend, Question
from confide.proxy.facts import enclave_facts
from confide.proxy.receipts import is_wrong
from confide.receipts.receipt import HEADER

_INSIDE: Final = "http://workload.invalid/v1"
"""Stands for the workload above the encrypted channel; the name is never looked up."""
_MAX_MODELS_BYTES: Final = 1 << 20
_HANDED_ON: Final = ("content-type", "cache-control", "retry-after", "x-should-retry")
READ_SECONDS: Final = 600.0
"""How long an answer may give nothing: who waits in line for one hears nothing meanwhile."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkloadAddress:
    """Where a workload is, what its evidence must show, and the licence to use it; see EnclaveSession for each."""

    url: str
    policy: Path | str | None = None
    simulated_root: Path | str | None = None
    ca: Path | str | None = None
    offline: bool = False
    insecure_no_tls: bool = False
    replicas: int = 1
    licence: str = field(default="", repr=False)


class _Model(msgspec.Struct, frozen=True):
    id: str


class _Models(msgspec.Struct, frozen=True):
    data: list[_Model]


class WorkloadBackend(Backend):
    """Passes questions on through the encrypted channel, as they came but for the model's name.

    Raises InvalidPolicy for a policy that is none, InsecureConnection for http beyond this machine.
    """

    def __init__(self, name: str, address: WorkloadAddress, again_seconds: float) -> None:
        super().__init__(name, again_seconds)
        self.address = address
        self._receipts = Receipts(_INSIDE, self._settled_receipt)
        self._wrong: dict[str, ConfideError] = {}
        """What was wrong with receipts, by the keyset of whoever signed them."""
        self._secret = secrets.token_bytes(32)
        self._url = server_address(address.url, insecure_no_tls=address.insecure_no_tls)
        self._party = RelyingParty.configure(address.policy, address.simulated_root, offline=address.offline)
        tls = tls_context(self._url, address.ca)
        self._evidence_http = httpx.Client(verify=tls, timeout=TIMEOUT, trust_env=False)
        timeout = httpx.Timeout(TIMEOUT.connect, read=READ_SECONDS)
        self._outer_http = httpx.AsyncClient(verify=tls, timeout=timeout, trust_env=False)
        self._standing: Standing | None = None
        self._http: httpx.AsyncClient | None = None
        self._served: tuple[str, ...] = ()

    @property
    def models(self) -> Sequence[str]:
        """The name that was chosen, which stands for the workload's first model; or all that the workload has."""
        return [self.name] if self.name else self._served

    def describe(self) -> dict[str, Any]:
        """What the evidence showed."""
        found: dict[str, Any] = {"mode": "enclave", "url": self.address.url}
        if self._standing is None:
            return found
        verified = self._standing.last
        receipts = {"promised": grounds_of(verified).keyset is not None, **self.receipts.describe()}
        return found | enclave_facts(self._standing, self._party.policy) | {"receipts": receipts}

    async def verify(self) -> None:
        if self._standing is None:
            self._standing = await asyncio.to_thread(Standing, self._appraised, [self._url], self.address.replicas)
            transport = AsyncEncryptedTransport(self._outer_http, self._standing)
            receipted = AsyncReceiptedTransport(transport, self._receipts)
            self._http = httpx.AsyncClient(transport=receipted, timeout=self._outer_http.timeout)
        else:
            await asyncio.to_thread(self._standing.renew)
        await self.look()

    def _appraised(self, url: str) -> Verified:
        """Whichever replica the balancer picks; not one that signed a wrong receipt, while it has the same keys."""
        verified = verify_workload(self._evidence_http, url, self._party)
        keyset = grounds_of(verified).keyset
        if keyset is not None and keyset.digest in self._wrong:
            raise self._wrong[keyset.digest].with_traceback(None)
        return verified

    async def look(self) -> None:
        """By asking for its models, through the channel to the key that was verified."""
        self._served = await self._names()

    def _settled_receipt(self, exchange: Exchange) -> None:
        """Keep what came of a receipt. Whoever signed a wrong one is asked nothing more while it has the same keys."""
        error, keyset = exchange.problem, exchange.grounds.keyset
        if exchange.result is not None:
            self.receipts.put(exchange.receipt_id, exchange.receipt, exchange.result.verdict())
        if error is None:
            return
        self.receipts.put_problem(exchange.receipt_id, error)
        _log.warning("An answer of %s was kept back: %s", self.address.url, error)
        if is_wrong(error) and keyset is not None:
            self._wrong[keyset.digest] = error
            while len(self._wrong) > MAX_REPLICAS:
                del self._wrong[next(iter(self._wrong))]
            self.refuse(error)

    async def _names(self) -> tuple[str, ...]:
        async with self._inside.stream("GET", f"{_INSIDE}/models", timeout=TIMEOUT) as response:
            content = bytearray()
            async for part in response.aiter_bytes():
                content += part
                if len(content) > _MAX_MODELS_BYTES:
                    break
        try:
            names = tuple(model.id for model in msgspec.json.decode(bytes(content), type=_Models).data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            names = ()
        if not names:
            raise ProtocolError("The workload serves no model; ask its operator.")
        return names

    async def begin(self, question: Question, scope: Scope, receive: Receive) -> ASGIApp:
        """As the workload answers it."""
        path, body = question.path, question.body
        if self.name:
            body = msgspec.json.encode({**question.fields, "model": self._served[0]})
        request = Request(scope, receive)
        response = await while_connected(request, self._send(path, body, self._headers(request)))
        headers = {name: response.headers[name] for name in _HANDED_ON if name in response.headers}
        if EXCHANGE in response.extensions:  # without one, an id is of a receipt that nobody could check
            headers[HEADER] = response.extensions[EXCHANGE].receipt_id
        return _Streamed(response, headers, self.failed, f"/v1{path}")

    def failed(self, error: ConfideError) -> None:
        """As of every backend. A missing receipt may be an accident; `_settled_receipt` has heard of wrong ones."""
        if not isinstance(error, ReceiptMissing):
            super().failed(error)

    def _headers(self, request: Request) -> dict[str, str]:
        """What goes along inside the channel: no other key of a program's than one that is a licence's."""
        key = bearer(request.headers)
        licence = key if key.startswith(KEY_PREFIX) else self.address.licence
        key_shown = {"authorization": f"Bearer {licence}"} if licence else {}
        return {"content-type": "application/json", CACHE_SALT: self._salt(request)} | key_shown

    def _salt(self, request: Request) -> str:
        """One for each machine that asks here, and on it for each salt that a program gives, so that none is shared."""
        host = request.client.host if request.client else ""
        asked = f"{host} {request.headers.get(CACHE_SALT, '')}"
        return hmac.digest(self._secret, asked.encode(), "sha256").hex()

    async def _send(self, path: str, body: bytes, headers: dict[str, str]) -> httpx.Response:
        request = self._inside.build_request("POST", f"{_INSIDE}{path}", content=body, headers=headers)
        try:
            return await self._inside.send(request, stream=True)
        except ConfideError as error:
            self.failed(error)
            raise

    @property
    def _inside(self) -> httpx.AsyncClient:
        if self._http is None:
            raise KeyChanged("The workload is not verified yet; try again in a moment.")
        return self._http

    async def close(self) -> None:
        """Close all connections."""
        self._evidence_http.close()
        if self._http is not None:
            await self._http.aclose()
        await self._outer_http.aclose()


class _Streamed(StreamingResponse):
    """A workload's answer, part by part; the workload stops when the client goes away.

    One that is no stream begins with its first part, which mostly is all of it: what is wrong with it, its receipt
    included, is then an error, and no connection that is cut.
    """

    def __init__(
        self, response: httpx.Response, headers: dict[str, str], failed: Callable[[ConfideError], object], path: str
    ) -> None:
        """failed: told what cut the answer. path: of the endpoint, whose form errors have."""
        self._response = response
        self._failed = failed
        self._path = path
        self._raw = response.aiter_raw()
        self._streams = "text/event-stream" in response.headers.get("content-type", "")
        self._first = b""
        super().__init__(self._parts(), response.status_code, headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if not self._streams:
                self._first = await anext(self._raw, b"")
            await super().__call__(scope, receive, send)
        finally:
            await self._response.aclose()

    async def _parts(self) -> AsyncIterator[bytes]:
        try:
            if self._first:
                yield self._first
            async for part in self._raw:
                yield part
        except ConfideError as error:
            self._failed(error)
            if not self._streams:
                raise  # the connection is cut: an answer that is not whole must not look as if it were
            yield event(problem(error, self._path), "error" if self._path == MESSAGES else "")

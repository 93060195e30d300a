"""A signed receipt for every answer: middleware around the API, which sees what it takes and gives, byte by byte."""

import base64
import hashlib
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Final, Protocol

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from confide.enclave.workload import Workload
from confide.errors import UnknownReceipt
from confide.receipts.documents import API_VERSION, digest_of
from confide.receipts.events import chain_event, sampling_event, stated_events
from confide.receipts.receipt import (
    FORWARDED,
    HEADER,
    MAX_WITH_ANSWER,
    METHODS,
    RECEIVED,
    RETURNED,
    WITH_ANSWER,
    Event,
    Receipt,
)

_ACI_HEADER: Final = "x-receipt-id"
_KEPT: Final = 4096
_ID_BYTES: Final = 24
_ANSWER_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,256}")
_DATA: Final = re.compile(rb"(?:\A|\n)data: ([^\n]*)")


class _Named(msgspec.Struct):
    id: str | None = None


class _Answer(_Named):
    """response, message: what the first event of a stream is about, in the newer APIs."""

    response: _Named | None = None
    message: _Named | None = None


_NOTED: Final = "confide.noted"
_WHOLE: Final = "application/json"
"""What comes in one part; a stream begins before there is a receipt."""

Finish = Callable[[str, str | None, str, Sequence[Event]], bytes | None]
"""Takes the id of a receipt, that in the answer, the digest of what went out and what was noted on the way, and has
the receipt made. Gives it, where it may come with the answer."""


class Issuer(Protocol):
    """Whoever makes receipts."""

    def headers(self, receipt_id: str) -> Mapping[str, str]:
        """Of an answer that has a receipt."""

    def begin(self, method: str, endpoint: str, body: bytes) -> Finish:
        """A question has come. What it gives is called before the last of the answer leaves, unless it was cut."""


class Receipts:
    """Those that a workload made last. Each names the one before, so that none can be left out or put in later."""

    def __init__(self, workload: Workload, model: str, kept: int = _KEPT) -> None:
        """model: as the API calls it, which is what was asked for wherever something was answered."""
        self._workload, self._model, self._kept = workload, model, kept
        self._receipts: OrderedDict[str, Receipt] = OrderedDict()
        self._lock = Lock()
        self._sequence = 0
        self._previous: str | None = None

    def headers(self, receipt_id: str) -> Mapping[str, str]:
        """With ACI's own (5.2)."""
        return {
            HEADER: receipt_id,
            "x-receipt-id": receipt_id,
            "x-aci-version": API_VERSION,
            "x-aci-keyset-digest": self._workload.keyset.digest,
        }

    def begin(self, method: str, endpoint: str, body: bytes) -> Finish:
        """Note what came in."""
        events = self.received(endpoint, body, digest_of(body))

        def finish(receipt_id: str, chat_id: str | None, returned: str, noted: Sequence[Event]) -> bytes:
            changed = any(event["type"] == FORWARDED for event in noted)
            kept = [event for event in events if not (changed and event["type"] == FORWARDED)]
            return self.issue(receipt_id, chat_id, endpoint, [*kept, *noted], returned, method).write()

        return finish

    def issue(
        self,
        receipt_id: str,
        chat_id: str | None,
        endpoint: str,
        events: list[Event],
        returned: str,
        method: str = METHODS[0],
    ) -> Receipt:
        """Sign a receipt, and keep it. events: what came in. returned: the digest of what went out."""
        workload = self._workload
        with self._lock:
            self._sequence += 1
            receipt = workload.receipt_key.sign(
                receipt_id=receipt_id,
                chat_id=chat_id,
                model=self._model,
                keyset_digest=workload.keyset.digest,
                endpoint=endpoint,
                method=method,
                served_at=int(time.time()),
                events=[
                    *events,
                    *stated_events(workload.configuration, workload.model_digest),
                    chain_event(self._sequence, self._previous),
                    {"type": RETURNED, "body_hash": returned},
                ],
            )
            self._previous = receipt.digest
            self._receipts[receipt_id] = receipt
            if len(self._receipts) > self._kept:
                self._receipts.popitem(last=False)
        return receipt

    def received(self, endpoint: str, body: bytes, digest: str) -> list[Event]:
        """What came in, and how it was sampled. Where another program computes, what it was sent is not known here."""
        configuration = self._workload.configuration
        events: list[Event] = [{"type": RECEIVED, "body_hash": digest}]
        if configuration.upstream is None:
            events.append({"type": FORWARDED, "body_hash": digest})
        if endpoint != "/v1/embeddings" and configuration.sampling is not None:
            sampled = sampling_event(body, configuration.sampling)
            events += [sampled] if sampled else []
        return events

    async def show(self, request: Request) -> Response:
        """GET /v1/aci/receipts/{id}. UnknownReceipt; whoever knows an id, which nobody can guess, may have it."""
        receipt = self._receipts.get(request.path_params["id"])
        if receipt is None:
            raise UnknownReceipt("There is no such receipt here, or not any more; fetch them right after answers.")
        return Response(receipt.write(), 200, {"cache-control": "no-store"}, media_type="application/json")


class Receipted:
    """ASGI middleware around the API. The header with a receipt's id comes with the answer, the receipt at its end.

    Whatever is asked with one of METHODS gets one: a client that was promised receipts takes no such answer without it.
    """

    def __init__(self, app: ASGIApp, receipts: Issuer) -> None:
        self._app = app
        self._receipts = receipts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] in METHODS:
            together = Headers(scope=scope).get(WITH_ANSWER) == "1"
            exchange = _Exchange(self._receipts, (scope["method"], scope["path"]), receive, send, together=together)
            receive, send = exchange.receive, exchange.send
            scope = {**scope, _NOTED: exchange.noted}
        await self._app(scope, receive, send)


def note(request: Request, events: Sequence[Event]) -> None:
    """Have these stand in the receipt for a request, if there will be one."""
    request.scope.get(_NOTED, []).extend(events)


class _Exchange:
    """One question and its answer, on their way through."""

    def __init__(
        self, receipts: Issuer, asked: tuple[str, str], receive: Receive, send: Send, *, together: bool
    ) -> None:
        """asked: method and path. together: whether the receipt may come with the answer."""
        self._receipts, self._asked, self._together = receipts, asked, together
        self._held: Message | None = None
        self._receive, self._send = receive, send
        self._parts: list[bytes] = []
        self._finish: Finish | None = None
        self._returned = hashlib.sha256()
        self._id = ""
        self._chat_id: str | None = None
        self._begun = False
        self.noted: list[Event] = []

    async def receive(self) -> Message:
        """Hashes what comes in."""
        message = await self._receive()
        if message["type"] == "http.request" and self._finish is None:
            self._parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                self._finish = self._receipts.begin(*self._asked, b"".join(self._parts))
                self._parts.clear()
        return message

    async def send(self, message: Message) -> None:
        """Hashes what goes out. The receipt is there before the last of it."""
        if message["type"] == "http.response.start" and message["status"] == 200 and self._finish is not None:
            self._id = secrets.token_hex(_ID_BYTES)
            headers = MutableHeaders(raw=list(message["headers"]))
            headers.update(self._receipts.headers(self._id))
            message = {**message, "headers": headers.raw}
            if self._together and headers.get("content-type") == _WHOLE:
                self._held = message  # until it is known whether there is more than one part
                return
        elif message["type"] == "http.response.body" and self._id and self._finish is not None:
            body = message.get("body", b"")
            if body and not self._begun:
                self._begun, self._chat_id = True, _answer_id(body)
            self._returned.update(body)
            if not message.get("more_body", False):
                returned = f"sha256:{self._returned.hexdigest()}"
                receipt = self._finish(self._id, self._chat_id, returned, self.noted)
                self._put_in(receipt)
        if self._held is not None:
            held, self._held = self._held, None
            await self._send(held)
        await self._send(message)

    def _put_in(self, receipt: bytes | None) -> None:
        """With the answer's head, if that is still here."""
        if self._held is None or receipt is None:
            return
        encoded = base64.b64encode(receipt).decode()
        if len(encoded) <= MAX_WITH_ANSWER:
            MutableHeaders(raw=self._held["headers"])[WITH_ANSWER] = encoded


def _answer_id(first: bytes) -> str | None:
    """The id in an answer, or in the first event of a stream."""
    data = _DATA.search(first)
    try:
        answer = msgspec.json.decode(data.group(1) if data else first, type=_Answer)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    found = (answer.response or answer.message or answer).id
    return found if found and _ANSWER_ID.fullmatch(found) else None

"""Receipts of answers, asked for and checked as the answers come: the end of one is handed on once its receipt holds.

A workload promises receipts by the keyset in its signed statement. From then on an answer without one is no answer.
"""

import base64
import hashlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import httpx

from confide.attest.bundle import Bundle
from confide.audit.log import note
from confide.channel.encryption import COLLECTION_KEY
from confide.client.corpora import require_current
from confide.client.hop import aread_bounded, read_bounded
from confide.client.relying_party import Verified
from confide.client.transport import TO, VERIFIED
from confide.disk.files import create_file
from confide.errors import (
    ConfideError,
    ModelKeyError,
    ProtocolError,
    ReceiptMissing,
    ReceiptRefused,
    UnknownReceipt,
)
from confide.packages.sealed.key import ModelKey
from confide.rag.collection import collection_id
from confide.receipts.documents import digest_of
from confide.receipts.events import COLLECTION, SOURCES, source_corpus, sources_event
from confide.receipts.receipt import HEADER, MAX_RECEIPT_BYTES, METHODS, WITH_ANSWER, Receipt
from confide.receipts.verify import Grounds, ReceiptResult, grounds_of_statement, verify_receipt

MAX_KEPT_BYTES: Final = 4 << 20
"""Of an answer, for whoever saves it with its receipt. Its digest is that of all of it, however long it is."""
EXCHANGE: Final = "confide_exchange"
"""Among an answer's extensions: its Exchange, if it has to have a receipt."""
_LONGEST_ID: Final = 256
_END: Final = b"[DONE]"


@dataclass(eq=False)
class Exchange:
    """One question, its answer, and what came of the receipt.

    verified: the workload that answered. collection: the id of the one whose key was shown; empty for none. together:
    what came with the answer's head in the receipt's place, empty for nothing. receipt: as it came, once it was there.
    result: every check of a receipt that holds. problem: why there is none. Neither while the answer is under way, or
    where it was stopped. response: the answer, or None where it is too long to be kept.
    """

    receipt_id: str
    request: bytes = field(repr=False)
    verified: Verified = field(repr=False)
    grounds: Grounds = field(repr=False)
    collection: str = ""
    together: str = field(default="", repr=False)
    receipt: bytes = field(default=b"", repr=False)
    result: ReceiptResult | None = field(default=None, repr=False)
    problem: ConfideError | None = None
    response: bytearray | None = field(default_factory=bytearray, repr=False)
    _hash: "hashlib._Hash" = field(default_factory=hashlib.sha256, repr=False)

    def take(self, part: bytes) -> None:
        """The answer goes on."""
        self._hash.update(part)
        if self.response is not None:
            self.response += part
            if len(self.response) > MAX_KEPT_BYTES:
                self.response = None

    def check(self, status: int, content: bytes) -> None:
        """Hold what the workload gave as the receipt against the whole answer. status, content: of that reply.

        ReceiptMissing, MalformedReceipt, ReceiptRefused; CorpusRefused where it went by an older head of a corpus, or
        of a collection, than this user has met.
        """
        if status == httpx.codes.NOT_FOUND:
            raise ReceiptMissing(
                "The workload signed no receipt for its answer, although its statement promises one; ask its operator."
            )
        if status != httpx.codes.OK:
            raise ProtocolError(f"The workload answered {status} for a receipt; ask its operator.")
        self.receipt = content
        returned = f"sha256:{self._hash.hexdigest()}"
        response = None if self.response is None else bytes(self.response)
        result = verify_receipt(
            Receipt.read(content),
            self.grounds,
            request=self.request,
            response=response,
            returned=returned,
            receipt_id=self.receipt_id,
        )
        if not result.verified:
            failed = "; ".join(f"{one.code}: expected {one.expected}, saw {one.seen}" for one in result.failures)
            raise ReceiptRefused(
                f"The receipt does not hold. Failed: {failed or 'it cannot be checked'}. Rely on nothing of this "
                "answer, and ask the workload's operator."
            )
        cited = next(result.receipt.events(SOURCES), None) or (sources_event(response) if response else None)
        own = next(result.receipt.events(COLLECTION), None)
        if own is not None and own.get("corpus") != self.collection:
            raise ReceiptRefused(
                "The receipt is about another collection than the one whose key was shown. Rely on nothing of this "
                "answer, and ask the workload's operator."
            )
        for event in (cited, own):
            if event is not None and not event.get("deleted"):
                require_current(source_corpus(event), simulated=self.verified.result.simulated)
        self.result = result


def grounds_of(verified: Verified) -> Grounds:
    """What a workload's receipts are held against; without a keyset where its signed statement promises none."""
    return grounds_of_statement(verified.result, verified.statement)


class Receipts:
    """What came of the receipts of one workload's answers. last: the latest exchange that has one; None before that.

    base_url: of the API, inside the channel. settled: called with every exchange whose receipt was checked, or is
    missing, before the end of its answer is handed on.
    """

    def __init__(self, base_url: str, settled: Callable[[Exchange], None] = lambda _: None) -> None:
        self._base_url = base_url
        self._settled = settled
        self.last: Exchange | None = None
        self._known: tuple[Verified, Grounds] | None = None

    def result(self) -> ReceiptResult:
        """Every check of the last answer's. UnknownReceipt where there is none; what was wrong with it is raised."""
        exchange = self.last
        if exchange is None:
            raise UnknownReceipt(
                "No answer with a receipt has come yet; ask something first. If you have, this workload signs none."
            )
        if exchange.problem is not None:
            raise exchange.problem.with_traceback(None)
        if exchange.result is None:
            raise UnknownReceipt("The last answer was stopped, and has no receipt; ask something again.")
        return exchange.result

    def begin(self, request: httpx.Request, content: bytes, answer: httpx.Response) -> Exchange | None:
        """For an answer that has to have a receipt. ReceiptMissing where there is none."""
        if request.method not in METHODS or not answer.is_success:
            return None
        verified: Verified = answer.extensions[VERIFIED]
        grounds = self._grounds_of(verified)
        if grounds.keyset is None:
            return None
        receipt_id = answer.headers.get(HEADER, "")
        self.last = exchange = Exchange(receipt_id, content, verified, grounds, _collection_of(request))
        if not receipt_id.isalnum() or not receipt_id.isascii() or len(receipt_id) > _LONGEST_ID:
            exchange.receipt_id = ""
            exchange.problem = ReceiptMissing(
                "The workload answered without a receipt, although its statement promises one. The answer was not "
                "taken; ask its operator what stands in between."
            )
            self._close(exchange)
        exchange.together = answer.headers.get(WITH_ANSWER, "")
        answer.extensions[EXCHANGE] = exchange
        return exchange

    def _grounds_of(self, verified: Verified) -> Grounds:
        """The same for all answers of a workload, as long as it is the one that was verified."""
        known = self._known
        if known is None or known[0] is not verified:
            self._known = known = verified, grounds_of(verified)
        return known[1]

    def came(self, exchange: Exchange) -> tuple[int, bytes] | None:
        """The receipt that came with an answer; None where it has to be fetched."""
        if not exchange.together:
            return None
        try:
            content = base64.b64decode(exchange.together, validate=True)
        except ValueError:
            content = b""
        return int(httpx.codes.OK), content  # what is none is found out where it is read

    def question(self, exchange: Exchange, asked: httpx.Request) -> httpx.Request:
        """How to ask the replica that answered for the receipt, with the patience that the question itself had."""
        extensions = {"timeout": asked.extensions["timeout"], TO: exchange.verified}
        return httpx.Request("GET", f"{self._base_url}/aci/receipts/{exchange.receipt_id}", extensions=extensions)

    def settle(self, exchange: Exchange, fetched: tuple[int, bytes] | ConfideError) -> None:
        """The answer is whole. Raises what is wrong with its receipt."""
        try:
            if isinstance(fetched, ConfideError):
                raise fetched
            exchange.check(*fetched)
        except ConfideError as error:
            exchange.problem = error
        self._close(exchange)

    def _close(self, exchange: Exchange) -> None:
        """Have it stand in the audit log, if this user keeps one, and say what is wrong."""
        verified, problem = exchange.verified, exchange.problem
        try:
            note(
                "receipt",
                mode="enclave",
                made_by="workload",
                model=verified.statement.model_digest,
                receipt=digest_of(exchange.receipt) if exchange.receipt else "",
                simulated=verified.result.simulated,
                failed=(problem.code,) if problem else (),
            )
        except ConfideError as error:
            exchange.problem = error
        if exchange.problem is not None:
            exchange.result = None
        self._settled(exchange)
        if exchange.problem is not None:
            raise exchange.problem


def _collection_of(request: httpx.Request) -> str:
    """The id of the collection whose key a request shows; empty for none."""
    shown = request.headers.get(COLLECTION_KEY, "")
    try:
        return collection_id(ModelKey(bytes.fromhex(shown))) if shown else ""
    except (ValueError, ModelKeyError):
        return ""  # the workload refuses it


class ReceiptedTransport(httpx.BaseTransport):
    """For httpx.Client, around the transport that does the work."""

    def __init__(self, inner: httpx.BaseTransport, receipts: Receipts) -> None:
        self._inner, self._receipts = inner, receipts

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """As the transport inside. ReceiptMissing; what is wrong with a receipt is raised at the answer's end."""
        request.headers[WITH_ANSWER] = "1"
        answer = self._inner.handle_request(request)
        try:
            exchange = self._receipts.begin(request, request.read(), answer)
        except BaseException:
            answer.close()
            raise
        if exchange is not None:
            answer.stream = _Body(answer, exchange, lambda: self._settle(exchange, request))
        return answer

    def _settle(self, exchange: Exchange, asked: httpx.Request) -> None:
        self._receipts.settle(exchange, self._receipts.came(exchange) or self._fetched(exchange, asked))

    def _fetched(self, exchange: Exchange, asked: httpx.Request) -> tuple[int, bytes] | ConfideError:
        try:
            answer = self._inner.handle_request(self._receipts.question(exchange, asked))
            try:
                return answer.status_code, read_bounded(answer, MAX_RECEIPT_BYTES)
            finally:
                answer.close()
        except ConfideError as error:
            return error

    def close(self) -> None:
        """Close the connections."""
        self._inner.close()


class AsyncReceiptedTransport(httpx.AsyncBaseTransport):
    """For httpx.AsyncClient: the same."""

    def __init__(self, inner: httpx.AsyncBaseTransport, receipts: Receipts) -> None:
        self._inner, self._receipts = inner, receipts

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """As the transport inside. ReceiptMissing; what is wrong with a receipt is raised at the answer's end."""
        request.headers[WITH_ANSWER] = "1"
        answer = await self._inner.handle_async_request(request)
        try:
            exchange = self._receipts.begin(request, await request.aread(), answer)
        except BaseException:
            await answer.aclose()
            raise
        if exchange is not None:
            answer.stream = _AsyncBody(answer, exchange, lambda: self._settle(exchange, request))
        return answer

    async def _settle(self, exchange: Exchange, asked: httpx.Request) -> None:
        self._receipts.settle(exchange, self._receipts.came(exchange) or await self._fetched(exchange, asked))

    async def _fetched(self, exchange: Exchange, asked: httpx.Request) -> tuple[int, bytes] | ConfideError:
        try:
            answer = await self._inner.handle_async_request(self._receipts.question(exchange, asked))
            try:
                return answer.status_code, await aread_bounded(answer, MAX_RECEIPT_BYTES)
            finally:
                await answer.aclose()
        except ConfideError as error:
            return error

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()


class _Held:
    """The end of an answer, until its receipt holds: of a stream what ends it, of all else the last part.

    Who reads a stream reads no further than [DONE]; what comes before is handed on at once.
    """

    def __init__(self, answer: httpx.Response) -> None:
        self._streams = "text/event-stream" in answer.headers.get("content-type", "")
        self._tail = b""
        self._ending = False
        self.rest = b""

    def add(self, part: bytes) -> bytes:
        """What may be handed on by now."""
        if not self._streams:
            before, self.rest = self.rest, part
            return before
        self._ending = self._ending or _END in self._tail + part
        self._tail = (self._tail + part)[-len(_END) :]
        if not self._ending:
            return part
        self.rest += part
        return b""


class _Body(httpx.SyncByteStream):
    def __init__(self, answer: httpx.Response, exchange: Exchange, settle: Callable[[], None]) -> None:
        self._inner = cast(httpx.SyncByteStream, answer.stream)
        self._held, self._exchange, self._settle = _Held(answer), exchange, settle

    def __iter__(self) -> Iterator[bytes]:
        for part in filter(None, self._inner):
            self._exchange.take(part)
            if now := self._held.add(part):
                yield now
        self._settle()
        yield self._held.rest

    def close(self) -> None:
        self._inner.close()


class _AsyncBody(httpx.AsyncByteStream):
    def __init__(
        self, answer: httpx.Response, exchange: Exchange, settle: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        self._inner = cast(httpx.AsyncByteStream, answer.stream)
        self._held, self._exchange, self._settle = _Held(answer), exchange, settle

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._inner:
            if part:
                self._exchange.take(part)
                if now := self._held.add(part):
                    yield now
        await self._settle()
        yield self._held.rest

    async def aclose(self) -> None:
        await self._inner.aclose()


def save_receipt(folder: Path, exchange: Exchange, result: ReceiptResult, bundle: Bundle) -> None:
    """Keep a receipt for whoever audits it later, each file for its owner only. FileExistsError.

    An answer of more than MAX_KEPT_BYTES is not there.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    create_file(folder / "receipt.json", result.receipt.write())
    create_file(folder / "bundle.json", bundle.write())
    create_file(folder / "request", exchange.request)
    if exchange.response is not None:
        create_file(folder / "response", bytes(exchange.response))

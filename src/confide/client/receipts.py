"""The last answer that has a receipt, byte by byte, and the receipt for it, verified."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast

import httpx

from confide.attest.bundle import Bundle
from confide.client.hop import read_bounded
from confide.client.relying_party import Verified
from confide.disk.files import create_file
from confide.errors import ProtocolError, ReceiptRefused, UnknownReceipt
from confide.receipts.receipt import HEADER, MAX_RECEIPT_BYTES, Receipt
from confide.receipts.verify import ReceiptResult, grounds_of_statement, verify_receipt

_DONE: Final = b"data: [DONE]\n\n"
_LONGEST_ID: Final = 256


@dataclass
class Exchange:
    """One question and its answer. whole: whether all of the answer came; a stream may have been stopped."""

    receipt_id: str
    request: bytes
    response: bytearray = field(default_factory=bytearray, repr=False)
    ended: bool = False

    def __repr__(self) -> str:
        return f"Exchange({self.receipt_id!r})"

    @property
    def whole(self) -> bool:
        """Clients of streams stop reading at the event that is the last."""
        return self.ended or self.response.endswith(_DONE)


class Witness:
    """Sees what goes through a transport. last: the latest exchange with a receipt; None before there is one."""

    last: Exchange | None = None

    def see(self, request: bytes, answer: httpx.Response) -> Exchange | None:
        """Begin to keep an answer, if there is a receipt for it."""
        receipt_id = answer.headers.get(HEADER, "")
        if not receipt_id.isalnum() or not receipt_id.isascii() or len(receipt_id) > _LONGEST_ID:
            return None
        self.last = Exchange(receipt_id, request)
        return self.last


class WitnessedTransport(httpx.BaseTransport):
    """For httpx.Client, around the transport that does the work."""

    def __init__(self, inner: httpx.BaseTransport, witness: Witness) -> None:
        self._inner, self._witness = inner, witness

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """As the transport inside."""
        answer = self._inner.handle_request(request)
        if exchange := self._witness.see(request.read(), answer):
            answer.stream = _Body(cast(httpx.SyncByteStream, answer.stream), exchange)
        return answer

    def close(self) -> None:
        """Close the connections."""
        self._inner.close()


class AsyncWitnessedTransport(httpx.AsyncBaseTransport):
    """For httpx.AsyncClient: the same."""

    def __init__(self, inner: httpx.AsyncBaseTransport, witness: Witness) -> None:
        self._inner, self._witness = inner, witness

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """As the transport inside."""
        answer = await self._inner.handle_async_request(request)
        if exchange := self._witness.see(await request.aread(), answer):
            answer.stream = _AsyncBody(cast(httpx.AsyncByteStream, answer.stream), exchange)
        return answer

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()


class _Body(httpx.SyncByteStream):
    def __init__(self, inner: httpx.SyncByteStream, exchange: Exchange) -> None:
        self._inner, self._exchange = inner, exchange

    def __iter__(self) -> Iterator[bytes]:
        for part in self._inner:
            self._exchange.response += part
            yield part
        self._exchange.ended = True

    def close(self) -> None:
        self._inner.close()


class _AsyncBody(httpx.AsyncByteStream):
    def __init__(self, inner: httpx.AsyncByteStream, exchange: Exchange) -> None:
        self._inner, self._exchange = inner, exchange

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._inner:
            self._exchange.response += part
            yield part
        self._exchange.ended = True

    async def aclose(self) -> None:
        await self._inner.aclose()


def fetch_receipt(http: httpx.Client, base_url: str, exchange: Exchange | None, verified: Verified) -> ReceiptResult:
    """The receipt for an exchange, held against what was verified. base_url: of the API, inside the channel.

    UnknownReceipt where there is none, MalformedReceipt, ReceiptRefused where it is for something else or by another.
    """
    if exchange is None:
        raise UnknownReceipt("No answer with a receipt has come yet; ask something first.")
    with http.stream("GET", f"{base_url}/aci/receipts/{exchange.receipt_id}") as answer:
        content = read_bounded(answer, MAX_RECEIPT_BYTES)
        if answer.status_code == httpx.codes.NOT_FOUND:
            raise UnknownReceipt(
                "The workload has no receipt for this answer: it was stopped, or is long ago. Fetch them right away."
            )
        if answer.status_code != httpx.codes.OK:
            raise ProtocolError(f"The workload answered {answer.status_code} for a receipt; ask its operator.")
    result = verify_receipt(
        Receipt.read(content),
        grounds_of_statement(verified.result, verified.statement),
        request=exchange.request,
        response=bytes(exchange.response) if exchange.whole else None,
    )
    if not result.verified:
        failed = "; ".join(f"{one.code}: expected {one.expected}, saw {one.seen}" for one in result.failures)
        raise ReceiptRefused(
            f"The receipt does not hold. Failed: {failed or 'it cannot be checked'}. Keep it with the answer, and ask "
            "the workload's operator."
        )
    return result


def save_receipt(folder: Path, result: ReceiptResult, bundle: Bundle, exchange: Exchange | None) -> None:
    """Keep a receipt for whoever audits it later, each file for its owner only. FileExistsError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    create_file(folder / "receipt.json", result.receipt.write())
    create_file(folder / "bundle.json", bundle.write())
    if exchange is not None:
        create_file(folder / "request", exchange.request)
        if exchange.whole:
            create_file(folder / "response", bytes(exchange.response))

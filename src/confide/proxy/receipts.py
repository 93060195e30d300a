"""The receipts of a backend's answers: the last ones, for programs that ask for them, and what came of all of them."""

from collections import OrderedDict
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from confide.errors import ConfideError, MalformedReceipt, ReceiptRefused

if TYPE_CHECKING:
    from confide.hybrid.client.generation import Generated

GENERATIONS: ContextVar[list["Generated"]] = ContextVar("confide_generations")
"""Of the question that is being answered, for its receipt: every run of the model for it."""
MAX_KEPT_BYTES: Final = 8 << 20
_WRONG: Final = (ReceiptRefused, MalformedReceipt)


class ReceiptShelf:
    """Receipts that hold, the oldest gone first. most_bytes: of all that are kept.

    held, missing, wrong: how many answers had one that holds, none, and one that does not. Where asking for one failed
    otherwise, the connection is at fault, and it is missing.
    """

    def __init__(self, most_bytes: int = MAX_KEPT_BYTES) -> None:
        self._most_bytes = most_bytes
        self._receipts: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0
        self.held = self.missing = self.wrong = 0
        self._last: dict[str, Any] | None = None

    def put(self, receipt_id: str, receipt: bytes, verdict: str) -> None:
        """One that holds. receipt: as its signer wrote it."""
        self.held += 1
        self._note(receipt_id, verdict)
        self._bytes += len(receipt) - len(self._receipts.pop(receipt_id, b""))
        self._receipts[receipt_id] = receipt
        while self._bytes > self._most_bytes:
            self._bytes -= len(self._receipts.popitem(last=False)[1])

    def put_problem(self, receipt_id: str, error: ConfideError) -> None:
        """An answer whose end was kept back, for want of a receipt that holds."""
        if is_wrong(error):
            self.wrong += 1
        else:
            self.missing += 1
        self._note(receipt_id, str(error))

    def get(self, receipt_id: str) -> bytes | None:
        """None for one that is not, or no longer, here."""
        return self._receipts.get(receipt_id)

    def _note(self, receipt_id: str, verdict: str) -> None:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        self._last = {"id": receipt_id, "verdict": verdict, "at": at}

    def counts(self) -> dict[str, int]:
        """As JSON."""
        return {"held": self.held, "missing": self.missing, "wrong": self.wrong}

    def describe(self) -> dict[str, Any]:
        """The same with the last one."""
        return {**self.counts(), "last": self._last}


def is_wrong(error: ConfideError) -> bool:
    """Whether somebody signed what is not so, or signed nothing that is a receipt; a missing one may be an accident."""
    return isinstance(error, _WRONG)

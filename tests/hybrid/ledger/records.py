"""What the ledger's tests put into it."""

import math

from confide.hybrid.server.ledger import Ledger
from confide.hybrid.server.ledger.journal import Entry
from confide.hybrid.server.ledger.usage import Answerable

PACK, TAG, OTHER = b"p" * 16, b"t" * 16, b"o" * 16
LIMIT = 4096
OPEN = Answerable(LIMIT, math.inf)


def entry(first: int, count: int = 1, tag: bytes = TAG, group: int = 0, pack: bytes = PACK) -> Entry:
    return Entry(pack, group, first, count, tag)


def spend(ledger: Ledger, first: int, count: int = 1, tag: bytes = TAG, group: int = 0, pack: bytes = PACK) -> None:
    ledger.spend(ledger.anonymous(), entry(first, count, tag, group, pack), OPEN)


def bind(ledger: Ledger, group: int = 0, digest: bytes = b"d" * 32, pack: bytes = PACK) -> None:
    ledger.bind_request(ledger.anonymous(), pack, group, digest)


def kill(ledger: Ledger) -> None:
    """What SIGKILL leaves: the lock gone and nothing settled."""
    ledger._store.close()
    ledger._journal.close()
    ledger._lock.close()

"""What a ledger that servers share costs: a spent token on PostgreSQL against one on SQLite.

The database is the one that CONFIDE_BENCH_LEDGER names, on this machine and empty; see "One ledger for several servers"
in docs/how-to.md. As in the server, one thread counts answers and another renews leases.
"""

import os
import statistics
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.measure import Figure, write
from confide.ledger.address import DatabaseAddress, Place
from confide.ledger.ledger import Ledger

GROUPS = 48
TOKENS = 3000
ROUNDS = 5


def main() -> list[Figure]:
    if "CONFIDE_BENCH_LEDGER" not in os.environ:
        raise SystemExit("Say in CONFIDE_BENCH_LEDGER which database to measure: postgresql://USER@127.0.0.1/DATABASE")
    database = DatabaseAddress.parse(os.environ["CONFIDE_BENCH_LEDGER"])
    with TemporaryDirectory() as folder:
        pairs = [(_seconds(Path(folder)), _seconds(database)) for _ in range(ROUNDS)]
    sqlite, postgres = (statistics.median(of_one) for of_one in zip(*pairs, strict=True))
    figures = [
        Figure(
            "a spent token's record on PostgreSQL, beyond SQLite",
            1e6 * statistics.median(there - here for here, there in pairs),
            "us",
            20,
            5,
            f"{GROUPS} answers each: {1e6 * postgres:.0f} us and {1e6 * sqlite:.0f} us",
        )
    ]
    write("scale", figures)
    return figures


def _seconds(place: Place) -> float:
    """For each token, of all that is done for it."""
    with ThreadPoolExecutor(1) as worker, closing(Ledger(place)) as ledger:
        account = ledger.authenticate(ledger.licences.create(os.urandom(8).hex(), disclosure=None)[1], bytes(32))
        ledger.charge(account, 0, 1, None)
        renewing: Future[None] | None = None
        started = time.perf_counter()
        for _ in range(TOKENS):
            for group in range(GROUPS):
                low = ledger.charge(account, group, 1, None)
                if low and (renewing is None or renewing.done()):
                    renewing = worker.submit(ledger.renew, account)
        return (time.perf_counter() - started) / TOKENS

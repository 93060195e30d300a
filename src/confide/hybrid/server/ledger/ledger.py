"""The layer server's durable record: who may ask for how much, and what was answered.

A lease stands in the database, on the disk, before the first of its answers leaves: no layer group will have answered
more than what is recorded of it and the lease. So no write stands between most requests and their answers, and none
is answered unbilled: after a crash, whatever was leased counts as answered.
"""

import logging
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from confide.disk.files import hold_folder
from confide.errors import ClockWentBackwards, LedgerCopied, LedgerInUse, LicenceRefused
from confide.hybrid.server.ledger.identity import file_identity
from confide.hybrid.server.ledger.licences import ANONYMOUS, SECONDS_PER_DAY, Licence, LicenceBook
from confide.hybrid.server.ledger.store import DATABASE, Store
from confide.hybrid.server.ledger.usage import WARN_DISCLOSED, Account, Budget
from confide.packages.manifest import Group

LEAST_LEASE: Final = 16
MOST_LEASE: Final = 256
"""Tokens that a lease has beyond the request it is made for: the most that a crash costs a licence."""
LICENCE_SECONDS: Final = 1.0
"""How old the licence may be that a request is checked against."""
CLOCK_TOLERANCE: Final = 300.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Lease:
    """What the database says: of each layer group, the recorded tokens and so many more may have been answered."""

    tokens: int = 0
    recorded: dict[int, int] = field(default_factory=dict)

    def covers(self, group: int, answered: int) -> bool:
        return answered <= self.recorded.get(group, 0) + self.tokens

    def left(self, group: int, answered: int) -> int:
        return self.recorded.get(group, 0) + self.tokens - answered


_NOTHING: Final = _Lease(-(1 << 62))
"""Covers no answer."""


class _Metered:
    """An account and its lease. pending: a lease that is being written, beside which the old one still counts.

    spare: tokens that the next lease has beyond its request. settled: what was answered at the last checkpoint.
    """

    def __init__(self, account: Account) -> None:
        self.account = account
        self.durable = _Lease(0, dict(account.answered))
        self.pending: _Lease | None = None
        self.spare = LEAST_LEASE
        self.settled = sum(account.answered.values())
        self.read_at = float("-inf")

    def covers(self, group: int, answered: int) -> bool:
        return self.durable.covers(group, answered) and (self.pending is None or self.pending.covers(group, answered))

    @property
    def dirty(self) -> bool:
        return self.durable.tokens != 0 or self.durable.recorded != self.account.answered


class Ledger:
    """The record in a state folder, held by one process at a time. Safe to call from several threads.

    Raises LedgerInUse, LedgerCopied, LedgerCorrupted, LedgerUnavailable or ClockWentBackwards where it cannot be
    opened.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._mutex = threading.RLock()
        self._writing = threading.Lock()
        self._accounts: dict[tuple[bytes, bytes], _Metered] = {}
        self._budgets: dict[bytes, Budget] = {}
        with ExitStack() as stack:
            self._lock = lock_folder(folder)
            stack.callback(self._lock.close)
            self._store = Store(folder / DATABASE)
            stack.callback(self._store.close)
            self.licences = LicenceBook(self._store)
            self._started = time.time() - time.monotonic()
            self._require_original()
            self._require_forward_clock()
            self._count_lost_leases()
            stack.pop_all()

    def _value(self, name: str) -> bytes | None:
        row = self._store.row("server", name=name)
        return None if row is None else bytes(row["value"])

    def _require_original(self) -> None:
        known = self._value("identity")
        if known is not None and known != file_identity(self._store.path):
            raise LedgerCopied(
                f"{self._store.path.parent} is a copy or came back from a backup, and may have forgotten what was "
                "answered since. `confide ledger restore` takes licences and usage over."
            )

    def _require_forward_clock(self) -> None:
        last = self._value("clock")
        if last is not None and self.now() < float(last) - CLOCK_TOLERANCE:
            raise ClockWentBackwards(
                f"The clock says {_utc(self.now())}, before the ledger's last record of {_utc(float(last))}; "
                "set the clock, or run `confide ledger accept-clock` if it is right now."
            )

    def _count_lost_leases(self) -> None:
        """Count what a process that was killed had leased as answered, by every layer group."""
        with self._store.transaction():
            count_lost_leases(self._store)
            self._put_server()

    def _put_server(self) -> None:
        self._store.put("server", name="clock", value=str(self.now()).encode())
        self._store.put("server", name="identity", value=file_identity(self._store.path))

    def now(self) -> float:
        """Seconds since 1970, by the clock as it stood when the ledger was opened."""
        return self._started + time.monotonic()

    # -- licences ----------------------------------------------------------------------------------------------

    def authenticate(self, key: str, model: bytes) -> Account:
        """The account of a bearer key at a model. LicenceRefused where there is none, or it is not active."""
        with self._mutex:
            licence = self.licences.of_key(key)
            if licence is None:
                raise LicenceRefused("The server does not know this licence key; check it, or ask for another.")
            account = self._metered(licence, model).account
            account.budget.licence = licence
        account.budget.require_active()
        return account

    def anonymous(self, model: bytes) -> Account:
        """The account of clients without a licence."""
        with self._mutex:
            return self._metered(ANONYMOUS, model).account

    def _metered(self, licence: Licence, model: bytes) -> _Metered:
        metered = self._accounts.get((licence.id, model))
        if metered is None:
            account = Account(self._budget(licence), model)
            account.answered.update(self.licences.disclosed(licence, model))
            account.lost = self.licences.lost(licence, model)
            account.peak = max(account.answered.values(), default=0)
            metered = self._accounts[licence.id, model] = _Metered(account)
        return metered

    def _budget(self, licence: Licence) -> Budget:
        budget = self._budgets.get(licence.id)
        if budget is None:
            budget = self._budgets[licence.id] = Budget(licence, self.now)
            for usage in self.licences.usage(licence):
                budget.days[usage.day] = usage.tokens
            budget.used = sum(budget.days.values())
        return budget

    def _refresh(self, metered: _Metered) -> None:
        """Notice changes that were made to a licence while the server runs."""
        now = time.monotonic()
        if now - metered.read_at > LICENCE_SECONDS:
            licence = metered.account.licence
            if licence is not ANONYMOUS:
                known = self.licences.by_id(licence.id)
                if known is None:
                    raise LicenceRefused("This licence is gone from the ledger; ask the model's owner for another.")
                metered.account.budget.licence = known
            metered.read_at = now

    def require_key(self, account: Account, key_hash: bytes) -> None:
        """LicenceRefused unless the account's licence is active and still has the key that a client came with."""
        with self._mutex:
            self._refresh(self._accounts[_key(account)])
        account.budget.require_active()
        if account.licence.key_hash != key_hash:
            raise LicenceRefused("The licence has another key by now; ask the model's owner for it.")

    # -- answers -----------------------------------------------------------------------------------------------

    def charge(self, account: Account, index: int, count: int, group: Group | None) -> bool:
        """Count answers of so many tokens of a layer group, of which a lease is durable now.

        group: what the answers disclose something of; None where the weights are public. Returns whether it is time
        to `renew`. Raises LicenceError where the licence does not allow it, RateLimited, and LedgerUnavailable where
        no lease can be recorded; in none of these cases anything was counted.
        """
        metered = self._accounts[_key(account)]
        while True:
            with self._mutex:
                self._refresh(metered)
                account.require(index, count, group)
                answered = account.answered.get(index, 0) + count
                if metered.covers(index, answered):
                    account.charge(index, count)
                    self._warn(account, index, group)
                    spare = metered.durable.left(index, answered)
                    return metered.pending is None and spare < metered.durable.tokens // 2
            self._write([metered], leasing=True, count=count)

    def renew(self, account: Account) -> None:
        """Make the next lease before the present one is used up; for another thread than the one that answers."""
        self._write([self._accounts[_key(account)]], leasing=True)

    def checkpoint(self) -> None:
        """Record what was answered, and give back the leases of licences that were not used since the last time."""
        with self._mutex:
            dirty = [metered for metered in self._accounts.values() if metered.dirty]
        self._write(dirty, leasing=False)

    def _write(self, accounts: list[_Metered], *, leasing: bool, count: int = 0) -> None:
        with self._writing:
            with self._mutex:
                if not accounts or self._lock.closed:
                    return
                for metered in accounts:
                    metered.pending = self._next_lease(metered, count, leasing=leasing)
                rows = [(_key(metered.account), metered.pending) for metered in accounts if metered.pending]
                lost = {_key(metered.account): metered.account.lost for metered in accounts}
                days = {metered.account.licence.id: dict(metered.account.budget.days) for metered in accounts}
                before = {_key(metered.account): metered.durable.recorded for metered in accounts}
            failed: _Lease | None = _NOTHING  # a transaction that failed may have been written all the same
            try:
                with self._store.transaction():
                    today = int(self.now() // SECONDS_PER_DAY)
                    for (licence, model), lease in rows:
                        place = {"licence": licence, "model": model}
                        for group, tokens in lease.recorded.items():
                            if before[licence, model].get(group) != tokens:
                                self._store.put("disclosed", **place, layer_group=group, tokens=tokens)
                        for day in sorted(days[licence])[-2:]:
                            self._store.put("usage", licence=licence, day=day, tokens=days[licence][day])
                        leased = {"day": today, "tokens": lease.tokens, "lost": lost[licence, model]}
                        self._store.put("leases", **place, **leased)
                    self._put_server()
                failed = None
            finally:
                with self._mutex:
                    for metered in accounts:
                        metered.durable = failed or metered.pending or _NOTHING
                        metered.pending = None

    def _next_lease(self, metered: _Metered, count: int, *, leasing: bool) -> _Lease:
        account = metered.account
        recorded = dict(account.answered)
        answered = sum(recorded.values())
        if not leasing:
            # A busy licence keeps its lease; an idle one has none that a crash could cost it.
            busy, metered.settled = answered != metered.settled, answered
            metered.spare = metered.spare if busy else LEAST_LEASE
            return _Lease(metered.durable.tokens if busy else 0, recorded)
        left = account.tokens_left
        spare = metered.spare if left is None else min(metered.spare, left)
        metered.spare = min(2 * metered.spare, MOST_LEASE)
        return _Lease(max(count, spare), recorded)

    def _warn(self, account: Account, index: int, group: Group | None) -> None:
        if group is None or account.warned or account.licence.disclosure is None:  # an owner who lifted it knows
            return
        share = account.share_disclosed(index, group)
        if share >= WARN_DISCLOSED * min(1.0, account.licence.disclosure):
            account.warned = True
            _log.warning(
                "The licence %s has seen %.0f%% of what solves layer group %d.",
                account.licence.label,
                100 * share,
                index,
            )

    def close(self) -> None:
        """Record what was answered, give all leases back and close; once is enough."""
        with self._writing, self._mutex:
            if self._lock.closed:
                return
            for metered in self._accounts.values():
                metered.settled = sum(metered.account.answered.values())
        self.checkpoint()
        with self._writing, self._mutex:
            self._store.close()
            self._lock.close()


def _key(account: Account) -> tuple[bytes, bytes]:
    return account.licence.id, account.model


def count_lost_leases(store: Store) -> None:
    """Count, within a transaction, what is leased as answered: by every layer group, on the day of the lease."""
    for lease in store.rows("leases"):
        if lease["tokens"]:
            used = store.row("usage", licence=lease["licence"], day=lease["day"])
            tokens = lease["tokens"] + (used["tokens"] if used else 0)
            store.put("usage", licence=lease["licence"], day=lease["day"], tokens=tokens)
            store.put("leases", **(lease | {"tokens": 0, "lost": lease["lost"] + lease["tokens"]}))


def lock_folder(folder: Path) -> IO[str]:
    """Hold a state folder for this process; LedgerInUse where another one does."""
    lock = hold_folder(folder)
    if lock is None:
        raise LedgerInUse(f"Another server is using {folder}; stop it, or give this one a --state folder of its own.")
    return lock


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))

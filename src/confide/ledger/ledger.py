"""A server's durable record: who may ask for how much, and what was answered.

A lease stands in the database, on the disk, before the first of its answers leaves: no layer group will have answered
more than what is recorded of it and the leases. So no write stands between most requests and their answers, and none
is answered unbilled: whatever a server had leased that has ended counts as answered. Several servers may have leases of
one licence, none may answer what it does not hold, and each reads at least every second who may be answered at all.
"""

import logging
import math
import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Final

import msgspec

from confide.errors import ClockWentBackwards, LedgerCopied, LedgerUnavailable, LicenceRefused, ServerBusy
from confide.ledger.address import Place
from confide.ledger.licences import ANONYMOUS, SECONDS_PER_DAY, LicenceBook
from confide.ledger.opening import open_store
from confide.ledger.store import LAYERS, OWNER_SECONDS, Row, Store, Unit
from confide.ledger.usage import WARN_DISCLOSED, Account, AccountKey, Budget
from confide.packages.manifest import Group

LEAST_LEASE: Final = 16
MOST_LEASE: Final = 256
"""Tokens that a lease has beyond the request it is made for: the most that a crash costs a licence."""
LICENCE_SECONDS: Final = 1.0
"""How old the knowledge of licences may be that a request is checked against."""
POLL_SECONDS: Final = 0.25
TOUCH_SECONDS: Final = 5.0
"""How old that knowledge may be in a server that says it is well: a moment in which it is too old is no failure."""
HEARD_SECONDS: Final = 2.0
"""How often a server says that it is there, where there may be others."""
FORGOTTEN_SECONDS: Final = 86_400.0
"""How long it is known of an owner that it was ended, so that it learns that if it is alive all the same."""
ENDED: Final = -1
"""In the place of such an owner's fencing number."""
CLOCK_TOLERANCE: Final = 300.0
WRITTEN_TOGETHER: Final = 256
"""Accounts in one transaction: a database gives up on one that lasts for seconds."""

_log = logging.getLogger(__name__)


class _Fenced(Exception):
    """This owner's leases are not its own any more. lost: they were counted as answered."""

    def __init__(self, *, lost: bool) -> None:
        super().__init__()
        self.lost = lost


@dataclass(frozen=True)
class _Standing:
    """What the database says at one moment of a licence, and of a model's account.

    used: tokens billed, of all models and units. answered: tokens of each layer group. leased, leased_of_account:
    tokens that other servers have leased, of the licence and of this account alone.
    """

    used: int
    answered: dict[int, int]
    lost: int
    leased: int
    leased_of_account: int


class _Metered:
    """An account, and the lease that this server holds of it.

    leased: what every layer group may answer beyond what is recorded; None where that is not known. spent: what each
    has answered of it. unbilled: tokens of that which no record has billed yet. pending: a lease that is being written,
    beside which the present one still counts, with what was answered since it was made out, in the same way.
    """

    def __init__(self, account: Account) -> None:
        self.account = account
        self.leased: int | None = 0
        self.spent: Counter[int] = Counter()
        self.unbilled = 0
        self.pending: int | None = None
        self.spare = LEAST_LEASE
        self.settled = 0
        self._since: Counter[int] = Counter()
        self._billing = 0

    def covers(self, group: int, count: int) -> bool:
        """Whether so many answers more are within what the database says, whatever becomes of a write."""
        if self.leased is None or self.spent[group] + count > self.leased:
            return False
        return self.pending is None or self._since[group] + count <= self.pending

    def charge(self, group: int, count: int) -> None:
        self.unbilled += self.account.charge(group, count)
        self.spent[group] += count
        self._since[group] += count

    def begin(self, lease: int) -> None:
        """A lease is about to be written, with the record of all that was spent."""
        self.pending, self._since = lease, Counter()
        self._billing = self.unbilled

    def recorded(self) -> None:
        """What was spent before `begin` is in the database."""
        self.spent = self._since.copy()
        self.unbilled -= self._billing
        self._billing = 0

    def committed(self) -> None:
        """The write has ended as it should."""
        self.recorded()
        self.leased, self.pending = self.pending, None

    def failed(self) -> None:
        """It may be in the database, or may not; whichever it is, nothing more is answered."""
        if self.pending is not None:
            self.leased = self.pending = None

    def forget(self, *, lost: bool) -> None:
        """The lease is nobody's now. lost: all of it is counted as answered, and so is what was spent."""
        self.leased, self.pending = None, None
        if lost:
            self.spent.clear()
            self.unbilled = 0

    @property
    def dirty(self) -> bool:
        return self.leased != 0 or self.spent.total() > 0


class Ledger:
    """The record in a state folder, held by one process at a time, or in a database that several servers share.

    Safe to call from several threads. Raises LedgerInUse, LedgerCopied, LedgerCorrupted, LedgerUnavailable or
    ClockWentBackwards where it cannot be opened.
    """

    def __init__(self, place: Place | Store) -> None:
        """place: or a store that is open, which is closed with this."""
        self._mutex = threading.RLock()
        self._writing = threading.Lock()
        self._reading = threading.Lock()
        self._accounts: dict[AccountKey, _Metered] = {}
        self._budgets: dict[bytes, Budget] = {}
        self._unsure: Sequence[_Metered] = ()
        self._due: set[AccountKey] = set()
        self._owner, self._fence = b"", 0
        self._fresh_at = self._heard_at = -math.inf
        self._in_touch_since = time.monotonic()
        self._closed = False
        with ExitStack() as stack:
            self._store = place if isinstance(place, Store) else open_store(place, serving=True)
            stack.callback(self._store.close)
            self.licences = LicenceBook(self._store)
            self._started = self._store.now() - time.monotonic()
            with self._store.transaction():
                self._require_original()
                self._require_forward_clock()
                if self._store.alone:
                    end_owners(self._store, math.inf)
            self._join()
            self._changes = self.licences.changes
            stack.pop_all()
        self._watcher = threading.Thread(target=self._watch, name="ledger", daemon=True)
        self._watcher.start()

    def _require_original(self) -> None:
        """The database itself, and not a copy of it; one that does not say which it is, is new."""
        known, present = self._store.row("server", name="identity"), self._store.identity()
        if known is None:
            self._store.put("server", name="identity", value=present)
        elif known["value"] != present:
            raise LedgerCopied(
                f"{self._store.place} is a copy or came back from a backup, and may have forgotten what was answered "
                "since. `confide ledger restore` takes licences and usage over."
            )

    def _require_forward_clock(self) -> None:
        clock = self._store.row("server", name="clock")
        known = [owner["heard"] for owner in self._store.rows("owners")] + ([float(clock["value"])] if clock else [])
        last = max(known, default=-math.inf)
        if self.now() < last - CLOCK_TOLERANCE:
            raise ClockWentBackwards(
                f"The clock says {_utc(self.now())}, before the ledger's last record of {_utc(last)}; "
                "set the clock, or run `confide ledger accept-clock` if it is right now."
            )

    def _join(self) -> None:
        """Be an owner of leases, one that never was before."""
        owner = os.urandom(16)
        with self._store.transaction(()):
            self._store.put("owners", id=owner, fence=0, heard=self._store.now())
        self._owner, self._fence = owner, 0

    def now(self) -> float:
        """Seconds since 1970, by the store's clock as it stood when the ledger was opened."""
        return self._started + time.monotonic()

    # -- licences ----------------------------------------------------------------------------------------------

    def authenticate(self, key: str, model: bytes, unit: Unit = LAYERS) -> Account:
        """The account of a bearer key at a model. LicenceRefused where there is none, or it is not active."""
        with self._reading:
            licence = self.licences.of_key(key)
            if licence is None:
                raise LicenceRefused("The server does not know this licence key; check it, or ask for another.")
            with self._mutex:
                budget = self._budgets.setdefault(licence.id, Budget(licence, self.now))
                budget.licence = licence
        budget.require_active()
        return self.account(budget, model, unit)

    def anonymous(self, model: bytes) -> Account:
        """The account of clients without a licence."""
        with self._mutex:
            budget = self._budgets.setdefault(ANONYMOUS.id, Budget(ANONYMOUS, self.now))
        return self.account(budget, model)

    def account(self, budget: Budget, model: bytes, unit: Unit = LAYERS) -> Account:
        """A licence's account of a model, in a unit. All of them draw on one budget."""
        key = (budget.licence.id, model, unit)
        with self._mutex:
            metered = self._accounts.get(key)
        if metered is not None:
            return metered.account
        with self._writing:
            if (metered := self._accounts.get(key)) is not None:
                return metered.account
            account = Account(budget, model, unit)
            with self._store.snapshot():
                standing = self._standings([account])[key]
            with self._mutex:
                metered = self._accounts[key] = _Metered(account)
                self._take(metered, standing)
                metered.settled = sum(account.answered.values())
        return account

    def _standings(self, accounts: Sequence[Account]) -> dict[AccountKey, _Standing]:
        """By accounts' keys, of one moment, within a transaction."""
        licences, models, units = ([*set(one)] for one in zip(*(account.key for account in accounts), strict=True))
        places = {"licence": licences, "model": models, "unit": units}
        used = self._store.totals("usage", "tokens", "licence", licence=licences)
        answered: defaultdict[AccountKey, dict[int, int]] = defaultdict(dict)
        for row in self._store.rows("disclosed", **places):
            answered[_account_of(row)][row["layer_group"]] = row["tokens"]
        lost = {_account_of(row): row["tokens"] for row in self._store.rows("lost", **places)}
        leased: Counter[bytes] = Counter()
        leased_of_account: Counter[AccountKey] = Counter()
        for lease in self._store.rows("leases", licence=licences):
            if lease["owner"] != self._owner:
                leased[lease["licence"]] += lease["tokens"]
                leased_of_account[_account_of(lease)] += lease["tokens"]
        return {
            key: _Standing(used.get(key[0], 0), answered[key], lost.get(key, 0), leased[key[0]], leased_of_account[key])
            for key in (account.key for account in accounts)
        }

    def _take(self, metered: _Metered, standing: _Standing) -> None:
        """What the database says is so, and what was spent since comes on top."""
        account, budget = metered.account, metered.account.budget
        account.lost, account.leased_elsewhere = standing.lost, standing.leased_of_account
        answered = Counter(standing.answered)
        answered.update(metered.spent)
        account.answered = answered
        account.peak = max(answered.values(), default=0)
        metered.unbilled = account.peak - max(standing.answered.values(), default=0)
        budget.leased_elsewhere = standing.leased
        of_licence = (one for (licence, *_), one in self._accounts.items() if licence == account.licence.id)
        budget.used = standing.used + sum(one.unbilled for one in of_licence)

    def refresh(self) -> None:
        """Read what has become of the licences, where any was changed. LedgerUnavailable where that cannot be."""
        with self._reading:  # so that nobody puts an older one in the place of what is read here
            asked = time.monotonic()
            changes = self.licences.changes
            if changes != self._changes:
                known = {licence.id: licence for licence in self.licences.all()}
                with self._mutex:
                    for budget in self._budgets.values():
                        if budget.licence is not ANONYMOUS:
                            gone = msgspec.structs.replace(budget.licence, revoked=0)
                            budget.licence = known.get(budget.licence.id, gone)
                self._changes = changes
            self._fresh_at = asked
        if not self._fresh:
            raise LedgerUnavailable(
                f"The ledger {self._store.place} takes longer than a second to answer, in which a licence can be "
                "revoked; see what keeps it busy. Nothing was answered and no token billed."
            )

    @property
    def in_touch(self) -> bool:
        """Whether the database has lately said who may be answered; where it has not, most are answered nothing."""
        return time.monotonic() - self._fresh_at <= TOUCH_SECONDS

    @property
    def over(self) -> bool:
        """Whether only another process can ever answer from it again."""
        return self._store.over

    @property
    def _fresh(self) -> bool:
        return time.monotonic() - self._fresh_at <= LICENCE_SECONDS

    def ready(self, account: Account, index: int = 0, count: int = 0, group: Group | None = None) -> bool:
        """Whether `charge` needs no word from the database, nor `require_key`; with a count of 0, this one alone."""
        if not count:
            return self._fresh
        with self._mutex:
            return self._covered(self._accounts[account.key], index, count, group)

    def require_key(self, account: Account, key_hash: bytes) -> None:
        """LicenceRefused unless the account's licence is active and still has the key that a client came with."""
        if not self._fresh:
            self.refresh()
        account.budget.require_active()
        if account.licence.key_hash != key_hash:
            raise LicenceRefused("The licence has another key by now; ask the model's owner for it.")

    # -- answers -----------------------------------------------------------------------------------------------

    def charge(self, account: Account, index: int, count: int, group: Group | None, *, admitted: bool = False) -> bool:
        """Count answers of so many tokens of a layer group, of which a lease is durable now.

        group: what the answers disclose something of; None where the weights are public. admitted: they belong to a
        request that was let in at its time, and are not too many for this minute. Returns whether it is time to
        `renew`. Raises LicenceError where the licence does not allow it, RateLimited, ServerBusy where it would if
        other servers gave back what they have leased, and LedgerUnavailable where no lease can be recorded; in none of
        these cases anything was counted.
        """
        metered = self._accounts[account.key]
        while True:
            with self._mutex:
                if self._covered(metered, index, count, group):
                    account.require(index, count, group, admitted=admitted)
                    metered.charge(index, count)
                    self._warn(account, index, group)
                    leased = metered.leased or 0
                    return metered.pending is None and leased - metered.spent[index] < leased // 2
            self.prepare(account, index, count, group, admitted=admitted)

    def _covered(self, metered: _Metered, index: int, count: int, group: Group | None) -> bool:
        if time.monotonic() - self._fresh_at > LICENCE_SECONDS or not metered.covers(index, count):
            return False
        return not metered.account.waits_for_others(index, count, group)

    def prepare(self, account: Account, index: int, count: int, group: Group | None, *, admitted: bool = False) -> None:
        """Have such a charge `ready`, for another thread than the one that answers. Raises what `charge` does."""
        metered = self._accounts[account.key]
        if self._closed:
            raise LedgerUnavailable(f"The ledger {self._store.place} is closed; ask a server that runs.")
        if not self._fresh:
            self.refresh()
        with self._mutex:
            account.require(index, count, group, admitted=admitted)
            if self._covered(metered, index, count, group):
                return
        self._write([metered], lambda _: self._lease_for(metered, index, count, group))
        with self._mutex:
            waits = account.waits_for_others(index, count, group)
        if waits:
            with self._store.transaction(()):
                self._store.announce(account.licence.id)
            raise ServerBusy(
                f"Other servers hold the last tokens of the licence {account.licence.label}; try again in a moment."
            )

    def renew(self, account: Account) -> None:
        """Make the next lease before the present one is used up; for another thread than the one that answers.

        Those that are to be made while another one is being written are written together by whichever thread is next.
        """
        with self._mutex:
            self._due.add(account.key)
        with self._writing:
            with self._mutex:
                due, self._due = [self._accounts[key] for key in self._due], set()
            self._write_now(due, lambda metered: self._lease_for(metered, 0, 0, None))

    def checkpoint(self) -> None:
        """Record what was answered, and give back the leases of licences that were not used since the last time."""
        self._write(self._dirty(), self._lease_after)

    def _dirty(self, licences: Container[bytes] | None = None) -> list[_Metered]:
        with self._mutex:
            found = [(licence, metered) for (licence, *_), metered in self._accounts.items() if metered.dirty]
        return [metered for licence, metered in found if licences is None or licence in licences]

    def _write(self, accounts: Sequence[_Metered], lease: Callable[[_Metered], int]) -> None:
        """Record what was answered, durably, and lease so much anew."""
        for start in range(0, len(accounts), WRITTEN_TOGETHER):
            with self._writing:
                self._write_now(accounts[start : start + WRITTEN_TOGETHER], lease)

    def _write_now(self, accounts: Sequence[_Metered], lease: Callable[[_Metered], int]) -> None:
        """The same, in one transaction, while no other thread writes."""
        while accounts and not self._closed:
            with suppress(_Fenced):
                self._record_all(accounts, lease)
                return

    def _record_all(self, accounts: Sequence[_Metered], lease: Callable[[_Metered], int]) -> None:
        try:
            with self._store.transaction({metered.account.licence.id for metered in accounts}):
                self._say_here(self._fence + 1)
                self._record(accounts, lease)
        except _Fenced as fenced:
            self._join_again(lost=fenced.lost)
            raise
        except BaseException:
            with self._mutex:
                self._unsure = [metered for metered in accounts if metered.pending is not None] or self._unsure
                for metered in accounts:
                    metered.failed()
            raise
        with self._mutex:
            self._fence += 1
            for metered in accounts:
                metered.committed()

    def _say_here(self, fence: int) -> None:
        """Within a transaction: be the owner still, and learn what became of a write that broke off.

        fence: the number of the present write, one more than the last, or the last where nothing is counted. Raises
        _Fenced, and LedgerCopied where the database knows less than it once did.
        """
        owner = self._store.row("owners", id=self._owner)
        if owner is not None and owner["fence"] == ENDED:
            raise _Fenced(lost=True)
        ahead = -1 if owner is None else owner["fence"] - self._fence
        if owner is None or ahead < 0:
            raise LedgerCopied(
                f"{self._store.place} was put back to an earlier state while servers answered from it, or has "
                "forgotten this one. Stop them all; `confide ledger restore` takes licences and usage over."
            )
        if ahead > bool(self._unsure):
            raise _Fenced(lost=False)
        with self._mutex:
            if ahead:
                for metered in self._unsure:
                    metered.recorded()
            self._fence, self._unsure = owner["fence"], ()
        self._store.put("owners", id=self._owner, fence=fence + ahead, heard=self._store.now())

    def _join_again(self, *, lost: bool) -> None:
        _log.warning("This server was taken for dead, and what it had leased is counted as answered.")
        self._join()
        with self._mutex:
            self._unsure = ()
            for metered in self._accounts.values():
                metered.forget(lost=lost)

    def _record(self, accounts: Sequence[_Metered], lease: Callable[[_Metered], int]) -> None:
        """Within a transaction: what was answered since the last record, and the leases from here on."""
        day = int(self.now() // SECONDS_PER_DAY)
        keys = [metered.account.key for metered in accounts]
        standings = self._standings([metered.account for metered in accounts])
        today = self._store.rows("usage", licence=[*{licence for licence, *_ in keys}], day=day)
        used = {(row["licence"], row["unit"]): row["tokens"] for row in today}
        billed = set()
        disclosed, leases, without = [], [], defaultdict(list)
        # The event loop waits for the lock, so it is had for one account at a time. What is read of all of a licence's
        # accounts is taken before any of them begins.
        for key, metered in zip(keys, accounts, strict=True):
            with self._mutex:
                self._take(metered, standings[key])
        for (licence, model, unit), metered in zip(keys, accounts, strict=True):
            with self._mutex:
                tokens, leased = metered.unbilled, lease(metered)
                answered = [(one, metered.account.answered[one]) for one, spent in metered.spent.items() if spent]
                metered.begin(leased)
            place = {"licence": licence, "model": model, "unit": unit}
            disclosed += [place | {"layer_group": one, "tokens": total} for one, total in answered]
            if tokens:
                used[licence, unit] = used.get((licence, unit), 0) + tokens
                billed.add((licence, unit))
            if leased:
                leases.append(place | {"owner": self._owner, "day": day, "tokens": leased})
            else:
                without[model, unit].append(licence)
        self._store.put_all("disclosed", disclosed)
        self._store.put_all(
            "usage",
            [{"licence": licence, "day": day, "unit": unit, "tokens": used[licence, unit]} for licence, unit in billed],
        )
        self._store.put_all("leases", leases)
        for (model, unit), licences in without.items():
            self._store.delete("leases", licence=licences, model=model, unit=unit, owner=self._owner)

    def _lease_for(self, metered: _Metered, index: int, count: int, group: Group | None) -> int:
        """Beyond a request as much as the licence has left; nothing where others have to give theirs back first."""
        account = metered.account
        if account.waits_for_others(index, count, group):
            return 0
        spare = min(metered.spare, _most(account))
        metered.spare = min(2 * metered.spare, MOST_LEASE)
        return max(count, spare)

    def _lease_after(self, metered: _Metered) -> int:
        """A busy licence keeps its lease; an idle one has none that a crash could cost it."""
        answered = sum(metered.account.answered.values())
        busy, metered.settled = answered != metered.settled, answered
        if not busy:
            metered.spare = LEAST_LEASE
            return 0
        return min(metered.leased or 0, _most(metered.account))

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

    # -- beside answering --------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Until it is closed: hear of licences and of other servers, and be heard."""
        trouble = ""
        while not self._closed:
            try:
                self.refresh()
                self._be_heard()
                named = self._store.wait(POLL_SECONDS)
                self._write(self._dirty(named), lambda _: 0)
                trouble = ""
            except Exception as error:  # noqa: BLE001 - it goes on looking, and what is not fresh is not answered from
                if str(error) != trouble:
                    trouble = str(error)
                    _log.warning("The ledger cannot be followed: %s", trouble)
                self._in_touch_since = time.monotonic()
                self._store.rest(POLL_SECONDS)

    def _be_heard(self) -> None:
        """Say that this server is there, and end those that have not said so for long."""
        if self._store.alone or time.monotonic() - self._heard_at < HEARD_SECONDS:
            return
        with self._writing:
            if self._closed:
                return
            try:
                with self._store.transaction(()):
                    self._say_here(self._fence)
            except _Fenced as fenced:
                self._join_again(lost=fenced.lost)
        self._heard_at = time.monotonic()
        if self._heard_at - self._in_touch_since < OWNER_SECONDS:
            return  # the others may have been as cut off as this one was
        silent = self._store.now() - OWNER_SECONDS
        if any(owner["heard"] < silent and owner["fence"] != ENDED for owner in self._store.rows("owners")):
            with self._store.transaction():
                end_owners(self._store, silent)

    def close(self) -> None:
        """Record what was answered, give all leases back and close; once is enough.

        Where the database cannot be written, what is leased counts as answered.
        """
        try:
            self._write(self._dirty(), lambda _: 0)
            with self._writing:
                if self._closed:
                    return
                self._closed = True
                with self._store.transaction():
                    self._store.delete("owners", id=self._owner)
                    self._store.put("server", name="clock", value=str(self._store.now()).encode())
        finally:
            self._closed = True
            self._store.wake()
            self._watcher.join()
            self._store.close()


def _account_of(row: Row) -> AccountKey:
    """Whose row of a table with accounts it is."""
    return row["licence"], row["model"], row["unit"]


def _most(account: Account) -> int:
    """Tokens that a lease may have beyond what is asked for."""
    left = account.tokens_left
    return MOST_LEASE if left is None else max(0, left - account.budget.leased_elsewhere)


def end_owners(store: Store, before: float) -> None:
    """Within a transaction that is for all: end the owners not heard of since then, and leases without an owner.

    What they had leased counts as answered by every layer group, and is billed on the day of the lease.
    """
    owners = store.rows("owners")
    heard = {owner["id"]: owner["heard"] for owner in owners if owner["fence"] != ENDED}
    for lease in store.rows("leases"):
        if heard.get(lease["owner"], -math.inf) >= before:
            continue
        billed = {name: lease[name] for name in ("licence", "day", "unit")}
        account = {name: lease[name] for name in ("licence", "model", "unit")}
        used, lost = store.row("usage", **billed), store.row("lost", **account)
        store.put("usage", **billed, tokens=lease["tokens"] + (used["tokens"] if used else 0))
        store.put("lost", **account, tokens=lease["tokens"] + (lost["tokens"] if lost else 0))
        store.delete("leases", **account, owner=lease["owner"])
    for owner in owners:
        if owner["heard"] < before - FORGOTTEN_SECONDS:
            store.delete("owners", id=owner["id"])
        elif owner["heard"] < before:
            store.put("owners", **(owner | {"fence": ENDED}))


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))

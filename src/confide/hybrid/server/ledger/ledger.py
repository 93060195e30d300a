"""The layer server's durable record: its keys, each pack's request digests, which indexes are spent, and who pays.

Two writes make an answered index durable. A record in the journal, before every answer, costs microseconds and
outlives the process: after a crash nothing is lost, burned or billed twice. A lease in the database, before the first
of its indexes is answered, outlives the machine: after a power failure whatever was leased and is not in the journal
is burned, and nobody pays for it. So no disk write stands between a token and its answer.
"""

import logging
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import IO, Final

from confide.disk.files import hold_folder, replace_file
from confide.errors import (
    BudgetExhausted,
    ClockWentBackwards,
    InvalidPackage,
    LedgerCopied,
    LedgerInUse,
    LicenceRefused,
    RequestConflict,
    UnknownPack,
)
from confide.hybrid.server.ledger.identity import file_identity
from confide.hybrid.server.ledger.journal import Entry, Journal, Position
from confide.hybrid.server.ledger.licences import ANONYMOUS, SECONDS_PER_DAY, Licence, LicenceBook
from confide.hybrid.server.ledger.store import DATABASE, SERVER_KEY, Store, require_whole
from confide.hybrid.server.ledger.usage import WARN_DISCLOSED, Account, Answerable, PackUsage
from confide.rlwe.streams import KEY_BYTES, fresh_key

LEASE_TOKENS: Final = 256
"""Indexes leased at a time; at most this many of a pack burn in a power failure."""
PACKS_IN_MEMORY: Final = 64
"""Packs whose index record is kept at hand (about 90 kB a layer group each); the least recently used is settled."""
PACK_IDLE_SECONDS: Final = 60.0
"""A pack used more recently than this stays at hand however many there are: settled between two layers of one token,
the second of them would be refused."""
LICENCE_SECONDS: Final = 1.0
"""How long a change to a licence may take to be noticed."""
CLOCK_TOLERANCE: Final = 120.0

_log = logging.getLogger(__name__)


class Ledger:
    """The record in one folder. One process at a time: LedgerInUse for a second one. Safe to call from threads.

    Raises LedgerCorrupted, LedgerCopied or ClockWentBackwards where what it finds there cannot be gone on from.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = lock_folder(folder)
        try:
            require_whole(folder)
            self._store = Store(folder / DATABASE)
            self._store.verify()
            self.server_key = _server_key(folder / SERVER_KEY)
            self._open()
            self._journal = Journal(folder)
            self._recover()
        except BaseException:
            self._lock.close()
            raise

    # -- opening and closing -----------------------------------------------------------------------------------

    def _open(self) -> None:
        self.licences = LicenceBook(self._store)
        self.mutex = threading.RLock()
        self._packs: OrderedDict[bytes, PackUsage] = OrderedDict()
        self._accounts: dict[bytes, Account] = {}
        self._licences_read: dict[bytes, float] = {}
        self._require_original()
        # Wall-clock time from here on follows the monotonic clock, so that no jump can revive or end a licence.
        self._started = time.time() - time.monotonic()
        self._require_forward_clock()
        self.server_seed = self._value("seed") or fresh_key()

    def _value(self, name: str) -> bytes | None:
        row = self._store.row("server", name=name)
        return None if row is None else bytes(row["value"])

    def _put_value(self, name: str, value: bytes) -> None:
        self._store.put("server", name=name, value=value)

    def _require_original(self) -> None:
        known = self._value("identity")
        if known is not None and known != file_identity(self._store.path):
            raise LedgerCopied(
                f"{self._store.path.parent} is a copy or came back from a backup, and may have forgotten what was "
                "answered since. `confide ledger restore` takes licences and usage over and rotates the server key."
            )

    def _require_forward_clock(self) -> None:
        last = self._value("clock")
        if last is not None and self.now() < float(last) - CLOCK_TOLERANCE:
            raise ClockWentBackwards(
                f"The clock says {_utc(self.now())}, before the ledger's last record of {_utc(float(last))}; "
                "set the clock, or run `confide ledger accept-clock` if it is right now."
            )

    def now(self) -> float:
        """Seconds since 1970, by the clock as it stood when the ledger was opened."""
        return self._started + time.monotonic()

    def _recover(self) -> None:
        """Take in what the journal knows and the database does not; burn leases that the journal may have lost."""
        whole = self._value("boot") in (_boot_id(), b"closed")
        for row in self._store.rows("packs"):
            if not whole and row["leased_to"] > row["floor"]:
                with self._store.transaction():
                    self._store.put("packs", **(row | {"floor": row["leased_to"], "used_to": row["leased_to"]}))
        settled = _position(self._value("checkpoint"))
        for position, entry in self._journal.replay(forgiving_from=None if whole else settled):
            self._replay(entry, billed=position < settled)
        self._checkpoint(boot=_boot_id())

    def _replay(self, entry: Entry, *, billed: bool) -> None:
        usage = self.usage(entry.pack)
        if not billed:
            self._account(usage.licence).charge(usage.unbilled(entry), entry.group, entry.count)
        # Also below the floor: its other layer groups must not bill the token again.
        usage.mark(entry)
        usage.leased_to = max(usage.leased_to, usage.used_to)

    def checkpoint(self) -> None:
        """Bring usage and leases in the database up to date, durably, where anything is new."""
        with self.mutex:
            if not self._lock.closed and any(account.dirty for account in self._accounts.values()):
                self._checkpoint(boot=_boot_id())

    def _checkpoint(self, *, boot: bytes) -> None:
        self._journal.sync()
        position = self._journal.position
        dirty = [account for account in self._accounts.values() if account.dirty]
        with self._store.transaction():
            for usage in self._packs.values():
                self._put_pack(usage)
            for account in dirty:
                self._put_account(account)
            self._put_value("checkpoint", f"{position.segment}:{position.offset}".encode())
            self._put_value("clock", str(self.now()).encode())
            self._put_value("boot", boot)
            self._put_value("seed", self.server_seed)
            self._put_value("identity", file_identity(self._store.path))
        for account in dirty:
            account.dirty = False

    def _put_pack(self, usage: PackUsage) -> None:
        self._store.put(
            "packs",
            pack=usage.pack,
            licence=usage.licence,
            day=usage.day,
            leased_to=usage.leased_to,
            used_to=usage.used_to,
            floor=usage.floor_after_restart,
        )

    def _put_account(self, account: Account) -> None:
        licence = account.licence.id
        for day, tokens in account.days.items():
            self._store.put("usage", licence=licence, day=day, tokens=tokens)
        for group, tokens in account.disclosed.items():
            self._store.put("disclosed", licence=licence, layer_group=group, tokens=tokens)

    def close(self) -> None:
        """Return what was leased and not used, then close; once is enough."""
        with self.mutex:
            if self._lock.closed:
                return
            for usage in self._packs.values():
                usage.leased_to = usage.used_to
            self._checkpoint(boot=b"closed")
            self._journal.close()
            self._store.close()
            self._lock.close()

    # -- licences ----------------------------------------------------------------------------------------------

    def authenticate(self, key: str) -> Account:
        """The account of a bearer key. LicenceRefused where there is none, or it is not active."""
        with self.mutex:
            licence = self.licences.of_key(key)
            if licence is None:
                raise LicenceRefused("The server does not know this licence key; check it, or ask for another.")
            account = self._account(licence.id)
            account.licence = licence
        account.require_active()
        return account

    def anonymous(self) -> Account:
        """The account of clients without a licence."""
        with self.mutex:
            return self._account(ANONYMOUS.id)

    def _account(self, licence_id: bytes) -> Account:
        account = self._accounts.get(licence_id)
        if account is None:
            licence = self._licence(licence_id)
            account = self._accounts[licence_id] = Account(licence, self.now)
            for usage in self.licences.usage(licence):
                account.days[usage.day] = usage.tokens
            account.used = sum(account.days.values())
            account.disclosed.update(self.licences.disclosed(licence))
        return account

    def _licence(self, licence_id: bytes) -> Licence:
        licence = ANONYMOUS if licence_id == ANONYMOUS.id else self.licences.by_id(licence_id)
        if licence is None:
            raise LicenceRefused("The licence of this pack is gone from the ledger; ask the model's owner.")
        return licence

    def _refresh(self, account: Account) -> None:
        """Notice changes that were made to a licence while the server runs."""
        now = time.monotonic()
        if now - self._licences_read.get(account.licence.id, 0.0) > LICENCE_SECONDS:
            account.licence = self._licence(account.licence.id)
            self._licences_read[account.licence.id] = now

    # -- packs -------------------------------------------------------------------------------------------------

    def bind_request(self, account: Account, pack: bytes, group: int, digest: bytes) -> None:
        """Make a request's digest durable, or check that it is the one on record; RequestConflict if it is not."""
        with self.mutex:
            self._refresh(account)
            account.require_active()
            known = self._store.row("packs", pack=pack)
            if known is None:
                self._require_pack_allowed(account)
            elif known["licence"] != account.licence.id:
                raise _conflict()
            with self._store.transaction():
                if known is None:
                    self._put_pack(PackUsage(pack, account.licence.id, self._today(), 0, 0))
                recorded = self._store.row("requests", pack=pack, layer_group=group)
                if recorded is None:
                    self._store.put("requests", pack=pack, layer_group=group, digest=digest)
        if recorded is not None and recorded["digest"] != digest:
            raise _conflict()

    def _require_pack_allowed(self, account: Account) -> None:
        limit = account.licence.packs_per_day
        made = self._store.count("packs", licence=account.licence.id, day=self._today())
        if limit is not None and made >= limit:
            raise BudgetExhausted(
                f"The licence {account.licence.label} allows {limit} packs a day and they are made; try tomorrow, "
                "or ask the model's owner for more."
            )

    def _today(self) -> int:
        return int(self.now() // SECONDS_PER_DAY)

    def prepared_groups(self, account: Account, pack: bytes) -> int:
        """How many layer groups of a pack have an offline request on record."""
        with self.mutex:
            known = self._store.row("packs", pack=pack)
            if known is None or known["licence"] != account.licence.id:
                return 0
            return self._store.count("requests", pack=pack)

    def usage(self, pack: bytes, tokens: int = 1 << 12) -> PackUsage:
        """The index record of a pack that has at least one offline request; UnknownPack otherwise."""
        with self.mutex:
            now = time.monotonic()
            if pack in self._packs:
                self._packs.move_to_end(pack)
                self._packs[pack].touched = now
                return self._packs[pack]
            row = self._store.row("packs", pack=pack)
            if row is None:
                raise _unknown_pack()
            if len(self._packs) >= PACKS_IN_MEMORY and self._oldest.touched <= now - PACK_IDLE_SECONDS:
                self._settle_oldest()
            usage = self._packs[pack] = PackUsage(pack, row["licence"], row["day"], row["floor"], tokens)
            usage.touched = now
            return usage

    @property
    def _oldest(self) -> PackUsage:
        return next(iter(self._packs.values()))

    def _settle_oldest(self) -> None:
        oldest = self._oldest
        oldest.floor_after_restart = oldest.leased_to = oldest.used_to
        self._checkpoint(boot=_boot_id())
        del self._packs[oldest.pack]

    def mark(self, account: Account, pack: bytes) -> int:
        """Indexes below this one are used or burned in some layer group of the account's pack."""
        with self.mutex:
            usage = self.usage(pack)
            if usage.licence != account.licence.id:
                raise _unknown_pack()
            return usage.used_to

    def request_digest(self, pack: bytes, group: int) -> bytes:
        """The digest on record; UnknownPack where there is none."""
        with self.mutex:
            row = self._store.row("requests", pack=pack, layer_group=group)
        if row is None:
            raise UnknownPack("The server has no offline request of this pack for this layer group; prepare it.")
        return bytes(row["digest"])

    # -- answers -----------------------------------------------------------------------------------------------

    def spend(self, account: Account, entry: Entry, answerable: Answerable) -> None:
        """Record, durably, that a pack's indexes are answered for the data with a tag, and bill them once.

        The same indexes may be spent again for the same data, free of charge: a retry. Raises IndexUsed for anything
        else, UnknownPack for another licence's pack, LicenceError where the licence does not allow it, and
        LedgerUnavailable where it cannot be recorded; in none of these cases anything was spent.
        """
        with self.mutex:
            usage = self.usage(entry.pack, answerable.pack_tokens)
            if usage.licence != account.licence.id:
                raise _unknown_pack()
            if usage.is_retry(entry):
                return
            usage.require_unused(entry)
            self._refresh(account)
            tokens = usage.unbilled(entry)
            account.require(tokens, entry.group, entry.count, answerable)
            self._make_durable(usage, entry, answerable.pack_tokens)
            usage.mark(entry)
            account.charge(tokens, entry.group, entry.count)
            self._warn(account, entry.group, answerable)

    def _make_durable(self, usage: PackUsage, entry: Entry, limit: int) -> None:
        end = entry.first + entry.count
        leased_to = usage.leased_to
        if end > leased_to:
            usage.leased_to = min(limit, end + LEASE_TOKENS)
        try:
            if self._journal.full:
                self._rotate()
            elif end > leased_to:
                self._checkpoint(boot=_boot_id())
            self._journal.append(entry)
        except BaseException:
            usage.leased_to = leased_to
            raise

    def _rotate(self) -> None:
        """Begin a new journal segment. What the one that is dropped knew of indexes becomes each pack's floor."""
        for usage in self._packs.values():
            usage.floor_after_restart = usage.rotated_at
            usage.rotated_at = usage.used_to
        self._checkpoint(boot=_boot_id())
        self._journal.rotate()

    def _warn(self, account: Account, group: int, answerable: Answerable) -> None:
        if account.warned or account.licence.disclosure is None:  # an owner who lifted the limit knows
            return
        if account.share_disclosed(group, answerable) >= WARN_DISCLOSED:
            account.warned = True
            _log.warning(
                "The licence %s has seen %.0f%% of what solves layer group %d.",
                account.licence.label,
                100 * account.share_disclosed(group, answerable),
                group,
            )


def lock_folder(folder: Path) -> IO[str]:
    """Hold a state folder for this process; LedgerInUse where another one does."""
    lock = hold_folder(folder)
    if lock is None:
        raise LedgerInUse(f"Another server is using {folder}; stop it, or give this one a --state folder of its own.")
    return lock


def _conflict() -> RequestConflict:
    return RequestConflict("This pack already has another offline request for this layer group; prepare a new pack.")


def _unknown_pack() -> UnknownPack:
    return UnknownPack("The server has no record of this pack; prepare a new one.")


def _server_key(path: Path) -> bytes:
    """The 32 secret bytes in a file that only its owner can read; made where it is missing."""
    if not path.exists():
        replace_file(path, fresh_key(), mode=0o600)
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise InvalidPackage(f"{path} does not hold {KEY_BYTES} bytes; restore it, or start with a new state folder.")
    return key


def _position(value: bytes | None) -> Position:
    segment, _, offset = (value or b"0:0").partition(b":")
    return Position(int(segment), int(offset))


def _boot_id() -> bytes:
    """Changes when the machine restarts, and with it everything that was not on disk yet is lost."""
    return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))

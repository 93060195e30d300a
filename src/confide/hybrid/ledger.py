"""The layer server's durable record: its keys, each pack's request digests, and which mask indexes may be spent.

Durability of used indexes is bought in leased blocks: a lease is on disk before its first index is answered, and
after a crash whatever was leased is burned. So no disk write stands between a token and its answer.
"""

import fcntl
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from confide.errors import IndexUsed, InvalidPackage, LedgerInUse, RequestConflict, UnknownPack
from confide.files import replace_file
from confide.rlwe.streams import KEY_BYTES, fresh_key

LEASE_TOKENS = 256
"""Indexes leased at a time; at most this many burn in a crash."""
PACKS_IN_MEMORY = 256
"""Packs whose index record is kept at hand; the least recently used beyond that are settled and forgotten."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS server (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS requests (
    pack BLOB NOT NULL, layer_group INTEGER NOT NULL, digest BLOB NOT NULL, PRIMARY KEY (pack, layer_group)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS leases (pack BLOB PRIMARY KEY, leased_to INTEGER NOT NULL) WITHOUT ROWID;
"""


class Ledger:
    """The record in one folder: `ledger.sqlite`, and the server key in a file of its own, readable by its owner.

    One process at a time: LedgerInUse for a second one, which would not see what the first has answered. Safe to
    call from several threads.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = (folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise LedgerInUse(
                f"Another server is using {folder}; stop it, or give this one a --state folder of its own."
            ) from None
        self.mutex = threading.RLock()
        self._database = sqlite3.connect(folder / "ledger.sqlite", check_same_thread=False, isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        self._database.executescript(_SCHEMA)
        self.server_key = _secret_file(folder / "server.key")
        self.server_seed = self._public_seed()
        self._packs: OrderedDict[bytes, PackUsage] = OrderedDict()

    def _public_seed(self) -> bytes:
        with self._transaction():
            self._database.execute("INSERT OR IGNORE INTO server VALUES ('seed', ?)", (fresh_key(),))
        row = self._database.execute("SELECT value FROM server WHERE name = 'seed'").fetchone()
        return bytes(row[0])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self.mutex:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    def bind_request(self, pack: bytes, group: int, digest: bytes) -> None:
        """Make a request's digest durable, or check that it is the one on record; RequestConflict if it is not."""
        with self._transaction():
            self._database.execute("INSERT OR IGNORE INTO requests VALUES (?, ?, ?)", (pack, group, digest))
            recorded = self._database.execute(
                "SELECT digest FROM requests WHERE pack = ? AND layer_group = ?", (pack, group)
            ).fetchone()[0]
        if recorded != digest:
            raise RequestConflict(
                "This pack already has another offline request for this layer group; prepare a new pack."
            )

    def prepared_groups(self, pack: bytes) -> int:
        """How many layer groups of a pack have an offline request on record."""
        query = "SELECT count(*) FROM requests WHERE pack = ?"
        with self.mutex:
            return int(self._database.execute(query, (pack,)).fetchone()[0])

    def usage(self, pack: bytes) -> "PackUsage":
        """The index record of a pack that has at least one offline request; UnknownPack otherwise."""
        with self.mutex:
            if pack in self._packs:
                self._packs.move_to_end(pack)
                return self._packs[pack]
            if not self.prepared_groups(pack):
                raise UnknownPack("The server has no record of this pack; prepare a new one.")
            row = self._database.execute("SELECT leased_to FROM leases WHERE pack = ?", (pack,)).fetchone()
            usage = self._packs[pack] = PackUsage(self, pack, burned_to=row[0] if row else 0)
            if len(self._packs) > PACKS_IN_MEMORY:
                self._packs.popitem(last=False)[1].settle()
            return usage

    def spend(self, pack: bytes, group: int, first: int, count: int, tag: bytes, limit: int) -> None:
        """Record, durably, that a pack's indexes are answered: `PackUsage.spend` as one step among all threads."""
        with self.mutex:
            self.usage(pack).spend(group, first, count, tag, limit)

    def request_digest(self, pack: bytes, group: int) -> bytes:
        """The digest on record; UnknownPack where there is none."""
        query = "SELECT digest FROM requests WHERE pack = ? AND layer_group = ?"
        with self.mutex:
            row = self._database.execute(query, (pack, group)).fetchone()
        if row is None:
            raise UnknownPack("The server has no offline request of this pack for this layer group; prepare it.")
        return bytes(row[0])

    def write_lease(self, pack: bytes, leased_to: int) -> None:
        """Make a pack's lease durable."""
        with self._transaction():
            self._database.execute("INSERT OR REPLACE INTO leases VALUES (?, ?)", (pack, leased_to))

    def close(self) -> None:
        """Return what was leased and not used, then close."""
        for usage in self._packs.values():
            usage.settle()
        self._database.close()
        self._lock.close()


class PackUsage:
    """Which indexes of one pack have been answered, for each layer group, and for which data."""

    def __init__(self, ledger: Ledger, pack: bytes, burned_to: int) -> None:
        self._ledger = ledger
        self._pack = pack
        self._burned_to = burned_to
        self._leased_to = burned_to
        self._used_to = burned_to
        self._groups: dict[int, _GroupUsage] = {}

    @property
    def mark(self) -> int:
        """Indexes below this one are used or burned in some layer group."""
        return self._used_to

    def spend(self, group: int, first: int, count: int, tag: bytes, limit: int) -> None:
        """Record that indexes first.. of a group are answered for the data with this tag, durably.

        The same indexes may be spent again for the same data: a retry. IndexUsed for anything else.
        """
        if first < self._burned_to:
            raise IndexUsed(
                f"Mask index {first} is burned: the server restarted after leasing it; "
                f"go on from index {self._burned_to}."
            )
        usage = self._groups.get(group)
        if usage is None:
            usage = self._groups[group] = _GroupUsage(limit)
        if usage.is_retry(first, count, tag):
            return
        usage.require_unused(first, count)
        end = first + count
        if end > self._leased_to:
            self._leased_to = min(limit, end + LEASE_TOKENS)
            self._ledger.write_lease(self._pack, self._leased_to)
        usage.mark(first, count, tag)
        self._used_to = max(self._used_to, end)

    def settle(self) -> None:
        """Give back the unused end of the lease."""
        if self._leased_to > self._used_to:
            self._ledger.write_lease(self._pack, self._used_to)


class _GroupUsage:
    def __init__(self, limit: int) -> None:
        self._used = bytearray(limit)
        self._tags: dict[int, tuple[int, bytes]] = {}

    def is_retry(self, first: int, count: int, tag: bytes) -> bool:
        return self._tags.get(first) == (count, tag)

    def require_unused(self, first: int, count: int) -> None:
        if self._used.find(1, first, first + count) >= 0:
            raise IndexUsed("A mask index was already answered for other data; it can never be used again.")

    def mark(self, first: int, count: int, tag: bytes) -> None:
        self._used[first : first + count] = b"\1" * count
        self._tags[first] = (count, tag)


def _secret_file(path: Path) -> bytes:
    """The 32 secret bytes in a file that only its owner can read; made where it is missing."""
    if not path.exists():
        replace_file(path, fresh_key(), mode=0o600)
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise InvalidPackage(f"{path} does not hold {KEY_BYTES} bytes; restore it, or start with a new state folder.")
    return key

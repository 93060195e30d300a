"""The ledger's database file: a few small tables, every row with a checksum of its own.

SQLite finds damage to its structure; the checksums find damage to what it holds.
"""

import hashlib
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from confide.errors import LedgerCorrupted, LedgerUnavailable

DATABASE: Final = "ledger.sqlite"
SCHEMA: Final = 4
"""As `PRAGMA user_version` says; 0 for a database without tables."""
_FULL: Final = 2

Row = dict[str, Any]

_KEYS: Final = {
    "server": ("name",),
    "licences": ("id",),
    "usage": ("licence", "day"),
    "disclosed": ("licence", "model", "layer_group"),
    "leases": ("licence", "model"),
}
_COLUMNS: Final = {
    "server": ("name", "value"),
    "licences": (
        "id",
        "key_hash",
        "name",
        "created",
        "expires",
        "tokens",
        "tokens_per_minute",
        "disclosure",
        "check_sets",
        "revoked",
    ),
    "usage": ("licence", "day", "tokens"),
    "disclosed": ("licence", "model", "layer_group", "tokens"),
    "leases": ("licence", "model", "day", "tokens", "lost"),
}


class Store:
    """An open database. Safe to call from several threads; other processes may read, and write other tables.

    What a transaction wrote is on the disk when it ends. LedgerUnavailable for a database of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mutex = threading.RLock()
        with self._reporting():
            self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._database.row_factory = sqlite3.Row
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
        if not self.durable:
            raise LedgerUnavailable(f"SQLite does not write {path} through to the disk; use another build of it.")
        self._make_tables()

    @property
    def durable(self) -> bool:
        """Whether a transaction waits for the disk, as the open connection itself says."""
        with self._reporting():
            return bool(self._database.execute("PRAGMA synchronous").fetchone()[0] >= _FULL)

    def _make_tables(self) -> None:
        with self._reporting():
            if self._version() == SCHEMA:
                return
        with self.transaction():  # in one, because another process may be faster
            if self._version() == SCHEMA:
                return
            if self._version() or self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise LedgerUnavailable(
                    f"{self.path} was written by another version of Confide; use that one, or another state folder."
                )
            for table, columns in _COLUMNS.items():
                self._database.execute(
                    f"CREATE TABLE {table} "
                    f"({', '.join(columns)}, sum NOT NULL, PRIMARY KEY ({', '.join(_KEYS[table])})) WITHOUT ROWID"
                )
            self._database.execute(f"PRAGMA user_version={SCHEMA}")

    def _version(self) -> int:
        return int(self._database.execute("PRAGMA user_version").fetchone()[0])

    def verify(self) -> None:
        """Read everything. LedgerCorrupted where any of it is not what was written."""
        with self._reporting():
            verdict = self._database.execute("PRAGMA integrity_check").fetchone()[0]
        if verdict != "ok":
            raise _corrupted(self.path)
        for table in _COLUMNS:
            self.rows(table)

    def rows(self, table: str, **where: Any) -> list[Row]:
        """The rows whose columns have these values, each checked against its sum."""
        condition = " AND ".join(f"{column} = ?" for column in where) or "1"
        with self._reporting():
            # The names come from this module and its callers, never from outside.
            query = f"SELECT * FROM {table} WHERE {condition}"  # noqa: S608
            found = [dict(row) for row in self._database.execute(query, tuple(where.values()))]
        for row in found:
            recorded = row.pop("sum", None)
            if row.keys() != set(_COLUMNS[table]) or recorded != _row_sum(table, row):
                raise _corrupted(self.path)
        return found

    def row(self, table: str, **where: Any) -> Row | None:
        """The one row with these values, or None."""
        found = self.rows(table, **where)
        return found[0] if found else None

    def count(self, table: str, **where: Any) -> int:
        """How many rows have these values."""
        condition = " AND ".join(f"{column} = ?" for column in where) or "1"
        with self._reporting():
            query = f"SELECT count(*) FROM {table} WHERE {condition}"  # noqa: S608
            return int(self._database.execute(query, tuple(where.values())).fetchone()[0])

    def put(self, table: str, **values: Any) -> None:
        """Insert a row, or replace the one with its key."""
        places = ", ".join("?" * (len(values) + 1))
        command = f"INSERT OR REPLACE INTO {table} ({', '.join(values)}, sum) VALUES ({places})"  # noqa: S608
        with self._reporting():
            self._database.execute(command, (*values.values(), _row_sum(table, values)))

    def clear(self, table: str) -> None:
        """Delete all rows."""
        with self._reporting():
            self._database.execute(f"DELETE FROM {table}")  # noqa: S608

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of what is written inside, durably at its end, or none of it."""
        with self.mutex, self._reporting():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    def copy_to(self, path: Path) -> None:
        """A consistent copy of the database in another file, while both sides go on."""
        with self._reporting():
            target = sqlite3.connect(path)
            try:
                self._database.backup(target)
            finally:
                target.close()

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        with self.mutex:
            try:
                yield
            except sqlite3.OperationalError as error:
                raise LedgerUnavailable(
                    f"{self.path} cannot be read or written ({error}); make room on its disk, check its permissions, "
                    "or wait for the other command that is using it. Nothing was answered and no token billed."
                ) from error
            except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter for a column of no name
                raise _corrupted(self.path) from error

    def close(self) -> None:
        """Close the file."""
        self._database.close()


def _row_sum(table: str, row: Row, columns: tuple[str, ...] | None = None) -> bytes:
    ordered = [row.get(column) for column in columns or _COLUMNS[table]]
    return hashlib.blake2b(msgspec.msgpack.encode([table, ordered]), digest_size=8).digest()


def _corrupted(path: Path) -> LedgerCorrupted:
    return LedgerCorrupted(
        f"{path} is damaged; do not serve from it. Restore the last backup with `confide ledger restore`."
    )

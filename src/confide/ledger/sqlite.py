"""A ledger in a file: SQLite, whose transactions wait for the disk."""

import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import IO, Any, Final

from confide.disk.files import hold_folder
from confide.errors import LedgerInUse, LedgerUnavailable
from confide.ledger.identity import file_identity
from confide.ledger.store import MIGRATED, SCHEMA, TABLES, Row, Store, corrupted

DATABASE: Final = "ledger.sqlite"
_FULL: Final = 2


class SqliteStore(Store):
    """A database file, brought to the present schema. LedgerUnavailable for one of another version.

    lock: what holds the folder for this process, let go with the file; without, another process may be serving.
    """

    mark = "?"

    def __init__(self, path: Path, lock: IO[str] | None = None) -> None:
        super().__init__(str(path))
        self.path = path
        self.alone = lock is not None
        self._lock = lock
        self._mutex = threading.RLock()
        self._started = time.time() - time.monotonic()
        with self._reporting():
            self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._database.row_factory = sqlite3.Row
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
        if not self.durable:
            raise LedgerUnavailable(f"SQLite does not write {path} through to the disk; use another build of it.")
        self._make_tables()

    @classmethod
    def open(cls, folder: Path, *, serving: bool) -> "SqliteStore":
        """The ledger of a state folder, made where there is none; serving: held for this process.

        LedgerInUse where another process serves from it, and this one is to, or the ledger has another schema.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / DATABASE
        if not serving:
            if _schema(path) in MIGRATED:
                with closing(lock_folder(folder)):
                    return cls(path)
            return cls(path)
        lock = lock_folder(folder)
        try:
            return cls(path, lock)
        except BaseException:
            lock.close()
            raise

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
            version = self._version()
            if version == SCHEMA:
                return
            if version in MIGRATED:
                self.migrate(version)
            elif version or self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise LedgerUnavailable(
                    f"{self.path} was written by another version of Confide; use that one, or another state folder."
                )
            else:
                for table in TABLES:
                    self.create(table)
            self._database.execute(f"PRAGMA user_version={SCHEMA}")

    def create(self, table: str) -> None:
        made = TABLES[table]
        self._database.execute(
            f"CREATE TABLE {table} ({', '.join(made.columns)}, sum NOT NULL, PRIMARY KEY ({', '.join(made.key)})) "
            "WITHOUT ROWID"
        )

    def _version(self) -> int:
        return int(self._database.execute("PRAGMA user_version").fetchone()[0])

    def verify(self) -> None:
        with self._reporting():
            verdict = self._database.execute("PRAGMA integrity_check").fetchone()[0]
        if verdict != "ok":
            raise corrupted(self.path)
        super().verify()

    def query(self, statement: str, values: Sequence[Any]) -> list[Row]:
        with self._reporting():
            return [dict(row) for row in self._database.execute(statement, values)]

    def write(self, table: str, columns: Sequence[str], conflict: str, rows: Sequence[Row]) -> None:
        places = ", ".join("?" * len(columns))
        command = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places}) {conflict}"  # noqa: S608
        with self._reporting():
            self._database.executemany(command, [tuple(row[column] for column in columns) for row in rows])

    def transaction(self, licences: Iterable[bytes] | None = None) -> AbstractContextManager[None]:
        return self._transaction("IMMEDIATE")

    def snapshot(self) -> AbstractContextManager[None]:
        return self._transaction("DEFERRED")

    @contextmanager
    def _transaction(self, kind: str) -> Iterator[None]:
        with self._reporting():
            self._database.execute(f"BEGIN {kind}")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    def now(self) -> float:
        """By the clock as it stood when the file was opened."""
        return self._started + time.monotonic()

    def identity(self) -> bytes:
        return file_identity(self.path)

    def announce(self, licence: bytes) -> None:
        """To nobody: the one server there may be looks often enough."""

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        with self._mutex, _reporting(self.path):
            yield

    def close(self) -> None:
        self._database.close()
        if self._lock is not None:
            self._lock.close()


def copy_file(source: Path, target: Path) -> None:
    """A consistent copy of a database file, of whatever schema, while others go on with it.

    LedgerCorrupted for what is no database, LedgerUnavailable where it cannot be read or written.
    """
    with _reporting(source), closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)


@contextmanager
def _reporting(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise LedgerUnavailable(
            f"{path} cannot be read or written ({error}); make room on its disk, check its permissions, or wait for "
            "the other command that is using it. Nothing was answered and no token billed."
        ) from error
    except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter for a column of no name
        raise corrupted(path) from error


def lock_folder(folder: Path) -> IO[str]:
    """Hold a state folder for this process; LedgerInUse where another one does."""
    lock = hold_folder(folder)
    if lock is None:
        raise LedgerInUse(f"Another server is using {folder}; stop it, or give this one a --state folder of its own.")
    return lock


def _schema(path: Path) -> int:
    """The schema of a file, 0 where there is none, or none that can be told: opening it says what is wrong."""
    if not path.exists():
        return 0
    try:
        with closing(sqlite3.connect(path)) as database:
            return int(database.execute("PRAGMA user_version").fetchone()[0])
    except sqlite3.Error:
        return 0

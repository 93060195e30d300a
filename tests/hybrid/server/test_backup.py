"""Going on from a backup keeps what was paid for, and no server does it by itself."""

import hashlib
import shutil
import sqlite3
import stat
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from confide.errors import ConfideError, LedgerCopied, LedgerCorrupted, LedgerInUse, LedgerUnavailable
from confide.ledger import backup as module
from confide.ledger.address import DatabaseAddress, Place
from confide.ledger.backup import backup, restore
from confide.ledger.identity import file_identity
from confide.ledger.keys import licence_digest
from confide.ledger.ledger import LEAST_LEASE, Ledger
from confide.ledger.opening import open_store
from confide.ledger.sqlite import DATABASE, SqliteStore, lock_folder
from confide.ledger.store import TABLES

from .world import break_transactions, kill, outlast_the_dead

if TYPE_CHECKING:
    from postgres import Postgres


class Served:
    """A ledger with a licence that has used five tokens."""

    def __init__(self, folder: Place) -> None:
        self.folder = folder
        self.ledger = Ledger(folder)
        self.licence, self.key = self.ledger.licences.create("reader", tokens=100)
        self.spend(5)

    def spend(self, tokens: int) -> None:
        account = self.ledger.authenticate(self.key, bytes(32))
        for _ in range(tokens):
            self.ledger.charge(account, 0, 1, None)

    def settle(self) -> None:
        """Record what was used; what is leased stays so."""
        self.ledger.checkpoint()

    def used(self) -> int:
        with closing(Ledger(self.folder)) as ledger:
            return ledger.authenticate(self.key, bytes(32)).used


@pytest.fixture
def served(tmp_path: Path) -> Served:
    return Served(tmp_path / "state")


@pytest.fixture
def anywhere(place: Place) -> Served:
    """The same in either kind of database."""
    return Served(place)


def test_a_backup_is_made_while_the_server_goes_on(
    anywhere: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = anywhere
    for patience in ("CONNECT_SECONDS", "STATEMENT_SECONDS", "LOCK_SECONDS"):  # the machine may be busy with others
        monkeypatch.setattr(f"confide.ledger.postgres.{patience}", 60)
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            with suppress(ConfideError):  # the tokens end
                served.spend(1)
            served.ledger.checkpoint()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        for number in range(5):
            backup(served.folder, tmp_path / f"backup-{number}")
    finally:
        stop.set()
        thread.join()
    served.ledger.close()
    for number in range(5):
        path = tmp_path / f"backup-{number}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with closing(SqliteStore(path)) as store:
            store.verify()
            assert store.count("licences") == 1
    assert not list(tmp_path.glob(".backup*"))


def test_a_backup_holds_no_licence_key(served: Served, tmp_path: Path) -> None:
    backup(served.folder, tmp_path / "backup")
    content = (tmp_path / "backup").read_bytes()
    assert served.key.removeprefix("confide-").encode() not in content
    assert served.licence.key_hash in content


def test_a_backup_replaces_nothing(served: Served, tmp_path: Path) -> None:
    (tmp_path / "backup").write_text("precious")
    with pytest.raises(ConfideError, match="exists already"):
        backup(served.folder, tmp_path / "backup")
    assert (tmp_path / "backup").read_text() == "precious"
    with pytest.raises(ConfideError, match="does not exist"):
        backup(tmp_path / "nowhere", tmp_path / "other")
    assert not (tmp_path / "nowhere").exists()


def test_a_failed_backup_leaves_no_file(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(SqliteStore, "copy_to", Interruption(1))
        with pytest.raises(Interrupted):
            backup(served.folder, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()
    backup(served.folder, tmp_path / "backup")


@pytest.mark.parametrize("where", ["in place", "over another ledger", "in a new folder", "by a dead server"])
def test_restoring_keeps_licences_and_counts_what_was_leased(served: Served, tmp_path: Path, where: str) -> None:
    served.settle()
    copy = tmp_path / "backup"
    backup(served.folder, copy)
    folder, source = served.folder, None if where == "in place" else copy
    if where == "by a dead server":
        kill(served.ledger)
    else:
        served.ledger.close()
    if where == "in a new folder":
        folder = tmp_path / "new"
    elif where == "over another ledger":
        folder = tmp_path / "other"
        Ledger(folder).close()
    restored = restore(folder, source)
    # The lease was given back where the server had stopped, and stands in a backup that was made while it ran.
    used = 5 if where == "in place" else 5 + LEAST_LEASE
    assert (restored.licences, restored.tokens_used) == (1, used)
    assert restored.known_until > 0
    with closing(Ledger(folder)) as ledger:
        account = ledger.authenticate(served.key, bytes(32))
        assert (account.used, account.answered[0], account.licence) == (used, 5, served.licence)
        assert account.lost == used - 5
        ledger.charge(account, 0, 1, None)
    left = {path.name for path in folder.iterdir()} - {"ledger.sqlite.before-restore"}
    assert left == {"ledger.sqlite", "lock"}


@pytest.mark.parametrize("to", ["sqlite", "postgres"])
@pytest.mark.parametrize("of", ["sqlite", "postgres"])
def test_a_backup_of_either_database_is_restored_in_either(
    database: DatabaseAddress, tmp_path: Path, of: str, to: str
) -> None:
    """Which is also how a ledger moves from one to the other."""
    served = Served(tmp_path / "state" if of == "sqlite" else database)
    served.settle()
    backup(served.folder, tmp_path / "backup")
    served.spend(4)  # answered after the backup
    served.ledger.close()
    there: Place = tmp_path / "new" if to == "sqlite" else database
    restored = restore(there, tmp_path / "backup")
    assert (restored.licences, restored.tokens_used) == (1, 5 + LEAST_LEASE)
    assert restored.known_until > 0
    with closing(Ledger(there)) as ledger:
        account = ledger.authenticate(served.key, bytes(32))
        assert (account.used, account.lost, account.answered[0]) == (5 + LEAST_LEASE, LEAST_LEASE, 5)
        assert account.licence == served.licence
        ledger.charge(account, 0, 1, None)


def test_a_database_is_gone_on_with_in_place(database: DatabaseAddress) -> None:
    served = Served(database)
    kill(served.ledger)
    with pytest.raises(LedgerInUse, match="stop them all"):
        restore(database)
    outlast_the_dead(database)
    assert restore(database).tokens_used == LEAST_LEASE
    assert served.used() == LEAST_LEASE


def test_a_database_that_is_a_copy_is_refused(database: DatabaseAddress) -> None:
    Served(database).ledger.close()
    with closing(open_store(database)) as store:
        store.put("server", name="identity", value=b"7000000000000000000:5")
    with pytest.raises(LedgerCopied, match="confide ledger restore"):
        Ledger(database)
    assert restore(database).tokens_used == 5
    Ledger(database).close()


def test_a_failed_restore_leaves_a_database_as_it_was(
    database: DatabaseAddress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Served(database)
    served.settle()
    backup(database, tmp_path / "backup")
    served.spend(4)
    served.ledger.close()
    with monkeypatch.context() as patch:
        break_transactions(patch, "rolled back")
        with pytest.raises(LedgerUnavailable):
            restore(database, tmp_path / "backup")
    assert served.used() == 9
    (tmp_path / "damaged").write_bytes((tmp_path / "backup").read_bytes()[:-5000])
    with pytest.raises(LedgerCorrupted, match="damaged"):
        restore(database, tmp_path / "damaged")
    assert served.used() == 9


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("lease", [0, 16])
def test_a_ledger_of_a_schema_before_is_gone_on_with(tmp_path: Path, lease: int, version: int) -> None:
    """As servers wrote it that had one owner of leases, with what was lost in their rows, and that had one unit."""
    folder = tmp_path / "state"
    folder.mkdir()
    key = of_schema(version, folder / DATABASE, lease)
    backup(folder, tmp_path / "backup")  # which brings it up to date
    for place in (folder, tmp_path / "restored"):
        if place != folder:
            restore(place, tmp_path / "backup")
        with closing(Ledger(place)) as ledger:
            account = ledger.authenticate(key, bytes(32))
            assert (account.used, account.lost, dict(account.answered)) == (40 + lease, 7 + lease, {0: 33, 2: 30})
            assert (account.licence.name, account.licence.disclosure) == ("reader", 1.0)
            ledger.charge(account, 0, 1, None)
    (tmp_path / "older").mkdir()
    of_schema(version, tmp_path / "older.sqlite", lease)
    before = (tmp_path / "older.sqlite").read_bytes()
    assert restore(tmp_path / "older", tmp_path / "older.sqlite").tokens_used == 40 + lease
    assert (tmp_path / "older.sqlite").read_bytes() == before


def test_a_server_of_the_schema_before_is_not_left_without_its_tables(tmp_path: Path) -> None:
    of_schema(4, tmp_path / DATABASE, 16)
    with closing(lock_folder(tmp_path)), pytest.raises(LedgerInUse):
        open_store(tmp_path)
    with closing(sqlite3.connect(tmp_path / DATABASE)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (4,)
        database.execute("UPDATE leases SET tokens = 1")
        database.commit()
    with pytest.raises(LedgerCorrupted):
        open_store(tmp_path)


@pytest.mark.parametrize("heard", ["long ago", "now", "damaged"])
def test_a_database_of_the_schema_before_is_gone_on_with(
    database: DatabaseAddress, postgres: "Postgres", heard: str
) -> None:
    """Once no server of that version uses it any more: it would go on without its tables."""
    owned = 5.0 if heard != "now" else time.time() + 60
    with postgres.connect() as connection:
        connection.execute("CREATE SCHEMA confide_ledger")
        connection.execute("CREATE TABLE confide_ledger.version AS SELECT 5::bigint AS number")
        for name, (columns, keys, rows) in tables_of(5, b"", 16).items():
            described = ", ".join(f"{column} {TABLES[name].columns[column]}" for column in columns)
            key = ", ".join(columns[:keys])
            connection.execute(
                f"CREATE TABLE confide_ledger.{name} ({described}, sum bytea NOT NULL, PRIMARY KEY ({key}))".encode()
            )
            for row in rows:
                if row[0] == "identity":
                    continue
                if name == "owners":
                    row = (*row[:-1], owned)
                places = "%s, " * len(row)
                command = f"INSERT INTO confide_ledger.{name} VALUES ({places} %s)"  # noqa: S608
                connection.execute(command.encode(), (*row, old_sum(name, row)))
        if heard == "damaged":
            connection.execute("UPDATE confide_ledger.usage SET tokens = 1")
    if heard != "long ago":
        with pytest.raises(LedgerInUse if heard == "now" else LedgerCorrupted):
            open_store(database)
        with postgres.connect() as connection:
            assert connection.execute("SELECT number FROM confide_ledger.version").fetchall() == [(5,)]
            assert connection.execute("SELECT count(*) FROM confide_ledger.leases").fetchone() == (1,)
        return
    with closing(Ledger(database)) as ledger:
        account = ledger.authenticate("confide-key", bytes(32))
        assert (account.used, account.leased_elsewhere, dict(account.answered)) == (40, 16, {0: 33, 2: 30})
        outlast_the_dead(database)
    with closing(open_store(database)) as store:
        store.verify()
        assert store.totals("usage", "tokens", "unit") == {"layers": 40 + 16}


def of_schema(version: int, path: Path, lease: int) -> str:
    """A ledger's file as it was then, with a licence of this key."""
    with closing(sqlite3.connect(path)) as database, database:
        for name, (columns, keys, rows) in tables_of(version, b"", lease).items():
            key_columns = ", ".join(columns[:keys])
            database.execute(
                f"CREATE TABLE {name} ({', '.join(columns)}, sum NOT NULL, PRIMARY KEY ({key_columns})) WITHOUT ROWID"
            )
            for row in rows:
                if row[0] == "identity":
                    row = ("identity", file_identity(path))
                database.execute(f"INSERT INTO {name} VALUES ({'?, ' * len(row)}?)", (*row, old_sum(name, row)))  # noqa: S608
        database.execute(f"PRAGMA user_version = {version}")
    return "confide-key"


def old_sum(table: str, row: tuple[object, ...]) -> bytes:
    return hashlib.blake2b(msgspec.msgpack.encode([table, list(row)]), digest_size=8).digest()


OldTable = tuple[tuple[str, ...], int, list[tuple[Any, ...]]]


def tables_of(version: int, identity: bytes, lease: int) -> dict[str, OldTable]:
    """Columns, how many of them are the key, and rows."""
    licence, model, share = b"12345678", bytes(32), 1 if version == 4 else 1.0
    leases: dict[str, OldTable] = {
        "leases": (("licence", "model", "day", "tokens", "lost"), 2, [(licence, model, 20001, lease, 7)]),
    }
    if version == 5:
        owned = [(licence, model, b"a server", 20001, lease)] if lease else []
        leases = {
            "leases": (("licence", "model", "owner", "day", "tokens"), 3, owned),
            "lost": (("licence", "model", "tokens"), 2, [(licence, model, 7)]),
            "owners": (("id", "fence", "heard"), 1, [(b"a server", 3, 5.0)]),
        }
    return leases | {
        "server": (("name", "value"), 1, [("clock", b"1700000000.5"), ("identity", identity)]),
        "licences": (
            ("id", "key_hash", "name", "created", "expires", "tokens", "tokens_per_minute", "disclosure", "check_sets",
             "revoked"),
            1,
            [(licence, licence_digest("confide-key"), "reader", 1700000000, None, 1000, None, share, 1, None)],
        ),
        "usage": (("licence", "day", "tokens"), 2, [(licence, 20000, 33), (licence, 20001, 7)]),
        "disclosed": (
            ("licence", "model", "layer_group", "tokens"), 3, [(licence, model, 0, 33), (licence, model, 2, 30)]
        ),
    }  # fmt: skip


def test_nothing_is_restored_under_a_running_server(anywhere: Served, tmp_path: Path) -> None:
    served = anywhere
    backup(served.folder, tmp_path / "backup")
    with pytest.raises(LedgerInUse):
        restore(served.folder, tmp_path / "backup")
    served.spend(1)
    served.ledger.close()
    assert served.used() == 6


@pytest.mark.parametrize("damage", ["cut", "text", "row", "missing"])
def test_a_damaged_backup_is_refused_and_changes_nothing(served: Served, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "backup"
    served.settle()
    backup(served.folder, path)
    served.ledger.close()
    match damage:
        case "cut":
            path.write_bytes(path.read_bytes()[:-5000])
        case "text":
            path.write_text("no database" * 100)
        case "row":
            with closing(sqlite3.connect(path)) as database, database:
                database.execute("UPDATE usage SET tokens = 0")
        case "missing":
            path.unlink()
    with pytest.raises(ConfideError if damage == "missing" else LedgerCorrupted):
        restore(served.folder, path)
    assert served.used() == 5


def test_a_damaged_ledger_gives_way_to_a_backup(served: Served, tmp_path: Path) -> None:
    served.settle()
    backup(served.folder, tmp_path / "backup")
    served.ledger.close()
    (served.folder / DATABASE).write_bytes(b"no database" * 100)
    with pytest.raises(LedgerCorrupted, match="confide ledger restore"):
        Ledger(served.folder)
    restore(served.folder, tmp_path / "backup")
    assert served.used() == 5 + LEAST_LEASE


def test_a_backup_put_in_the_ledgers_place_by_hand_is_refused(served: Served, tmp_path: Path) -> None:
    """Even written into the same inode, where it would have forgotten answers."""
    backup(served.folder, tmp_path / "backup")
    served.spend(10)
    served.ledger.close()
    inode = (served.folder / DATABASE).stat().st_ino
    shutil.copyfile(tmp_path / "backup", served.folder / DATABASE)
    assert (served.folder / DATABASE).stat().st_ino == inode
    with pytest.raises(LedgerCopied, match="confide ledger restore"):
        Ledger(served.folder)
    restore(served.folder)
    assert served.used() == LEAST_LEASE  # none of the five was recorded yet, and all were leased


class Interrupted(Exception):
    pass


class Interruption:
    """Raises at the n-th call of all those it stands in for."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, *arguments: object, **named: object) -> None:
        self.left -= 1
        if self.left == 0:
            raise Interrupted

    def before(self, function: Callable[..., object]) -> Callable[..., object]:
        def step(*arguments: object, **named: object) -> object:
            self()
            return function(*arguments, **named)

        return step


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("step", range(1, 10))
def test_an_interrupted_restore_leaves_one_ledger_or_the_other(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, in_place: bool
) -> None:
    served.settle()
    backup(served.folder, tmp_path / "backup")
    served.spend(4)  # answered after the backup
    served.settle()
    kill(served.ledger)
    source = None if in_place else tmp_path / "backup"
    interruption = Interruption(step)
    finished = False
    with monkeypatch.context() as patch:
        for owner, name in [
            (SqliteStore, "verify"),
            (module, "copy_file"),
            (SqliteStore, "delete"),
            (Path, "unlink"),
            (module.os, "link"),
            (module.os, "replace"),
            (module, "sync_folder"),
        ]:
            patch.setattr(owner, name, interruption.before(getattr(owner, name)))
        with suppress(Interrupted):
            restore(served.folder, source)
            finished = True
    before, after = 9 + LEAST_LEASE, (9 if in_place else 5) + LEAST_LEASE
    assert served.used() in ({after} if finished else {before, after})
    assert restore(served.folder, source).tokens_used in (before, after)
    assert served.used() in (before, after)

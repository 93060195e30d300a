"""The database says what was written to it, or that it does not, to any number of processes."""

import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from confide.errors import LedgerCorrupted, LedgerUnavailable
from confide.ledger.address import DatabaseAddress, Place
from confide.ledger.keeper import KeptStore
from confide.ledger.ledger import Ledger
from confide.ledger.opening import open_store
from confide.ledger.sqlite import DATABASE, SqliteStore
from confide.ledger.store import MAX_VALUE_BYTES, Store

ROWS = {
    "server": {"name": "clock", "value": b"1"},
    "licences": {"id": b"i", "name": "reader", "tokens": None},
    "leases": {"licence": b"i", "model": b"m", "unit": "layers", "owner": b"o", "day": 1, "tokens": 16},
    "lost": {"licence": b"i", "model": b"m", "unit": "layers", "tokens": 3},
    "owners": {"id": b"o", "fence": 1, "heard": 5.0},
    "usage": {"licence": b"i", "day": 1, "unit": "layers", "tokens": 2},
    "disclosed": {"licence": b"i", "model": b"m", "unit": "layers", "layer_group": 1, "tokens": 2},
}


@pytest.fixture(params=["sqlite", "postgres", "kept"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """kept: a database that another process keeps for this one."""
    if request.param == "sqlite":
        return tmp_path / "state"
    address: DatabaseAddress = request.getfixturevalue("database")
    return address


@pytest.fixture
def store(request: pytest.FixtureRequest, place: Place) -> Iterator[Store]:
    kept = request.node.callspec.params["place"] == "kept"
    with closing(KeptStore(place) if kept and isinstance(place, DatabaseAddress) else open_store(place)) as made:
        for table, row in ROWS.items():
            made.put(table, **row)
        yield made


def test_rows_come_back_as_they_were_written(store: Store, place: Place) -> None:
    with closing(open_store(place)) as again:
        again.verify()
        for table, row in ROWS.items():
            found = again.row(table, **row) if None not in row.values() else again.rows(table)[0]
            assert found is not None
            assert {name: found[name] for name in row} == row
            assert again.count(table) == 1


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("server", "value = NULL"),
        ("licences", "tokens = 5"),
        ("licences", "name = 'another'"),
        ("leases", "tokens = 2"),
        ("lost", "tokens = 0"),
        ("owners", "fence = 0"),
        ("usage", "tokens = 1"),
        ("disclosed", "tokens = 0"),
        ("disclosed", "sum = licence"),
    ],
)
def test_a_changed_row_is_found(store: Store, table: str, change: str) -> None:
    store.query(f"UPDATE {table} SET {change}", ())  # noqa: S608
    with pytest.raises(LedgerCorrupted, match="confide ledger restore"):
        store.verify()
    with pytest.raises(LedgerCorrupted):
        store.rows(table)


def test_a_row_of_one_table_is_none_of_another(store: Store) -> None:
    store.query("INSERT INTO disclosed SELECT licence, model, unit, 9, tokens, sum FROM lost", ())
    with pytest.raises(LedgerCorrupted):
        store.verify()


def test_a_value_larger_than_any_that_is_written_is_damage(store: Store) -> None:
    store.put("server", name="x" * MAX_VALUE_BYTES, value=b"1")
    store.rows("server")
    store.put("server", name="clock", value=b"1" * (MAX_VALUE_BYTES + 1))
    with pytest.raises(LedgerCorrupted):
        store.rows("server")


def test_a_number_is_the_same_however_it_is_written(store: Store) -> None:
    store.put("owners", id=b"p", fence=2, heard=7)
    assert store.row("owners", id=b"p") == {"id": b"p", "fence": 2, "heard": 7.0}


def test_several_rows_are_put_at_once(store: Store) -> None:
    place = {"licence": b"i", "model": b"m", "unit": "layers"}
    store.put_all("disclosed", [place | {"layer_group": group, "tokens": group * 5} for group in range(100)])
    store.put("disclosed", licence=b"j", model=b"m", unit="layers", layer_group=0, tokens=7)
    sums = {b"i": 5 * sum(range(100)), b"j": 7}
    assert store.totals("disclosed", "tokens", "licence") == sums
    assert store.totals("disclosed", "tokens", "licence", licence=[b"j", b"nobody"]) == {b"j": 7}
    assert [row["tokens"] for row in store.rows("disclosed", layer_group=[3], licence=[b"i", b"j"])] == [15]
    assert store.row("disclosed", layer_group=1) == place | {"layer_group": 1, "tokens": 5}
    store.delete("disclosed", layer_group=1)
    assert store.count("disclosed") == 100
    store.put_all("disclosed", [])


@pytest.mark.parametrize("content", [b"hello" * 1000, b"\0" * 4096, b"SQLite format 3\0" + b"\xff" * 4000])
def test_what_is_no_database_is_a_clear_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / DATABASE
    path.write_bytes(content)
    with pytest.raises(LedgerCorrupted, match=str(path)):
        SqliteStore(path).verify()
    assert path.read_bytes() == content


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnavailable, match="permissions"):
        SqliteStore(tmp_path / "missing" / DATABASE)


def test_a_transaction_is_all_or_nothing(store: Store) -> None:
    with suppress(ZeroDivisionError), store.transaction():
        store.put("server", name="clock", value=b"2")
        store.put("server", name="seed", value=b"3")
        raise ZeroDivisionError
    assert store.rows("server") == [{"name": "clock", "value": b"1"}]
    with store.transaction():
        store.put("server", name="clock", value=b"2")
    assert store.row("server", name="clock") == {"name": "clock", "value": b"2"}


@pytest.mark.parametrize(
    ("ours", "theirs", "together"),
    [(None, None, False), (None, [b"licence1"], False), ([b"licence1", b"licence2"], [b"licence2"], False),
     ([b"licence1"], [b"licence2"], True), ([], [b"licence2"], True)],
    ids=["all", "all and one", "the same one", "different ones", "none and one"],
)  # fmt: skip
def test_transactions_wait_for_each_other(
    database: DatabaseAddress, ours: list[bytes] | None, theirs: list[bytes] | None, together: bool
) -> None:
    inside = threading.Event()

    def other() -> None:
        with store.transaction(theirs):
            inside.set()

    with closing(open_store(database)) as store:
        thread = threading.Thread(target=other)
        with store.transaction(ours):
            thread.start()
            assert inside.wait(60 if together else 0.2) == together
        thread.join()
        assert inside.is_set()


# One process is a second or two of imports.
several_processes = pytest.mark.parametrize(
    "place", ["sqlite", pytest.param("postgres", marks=pytest.mark.slow)], indirect=True
)


@several_processes
def test_readers_see_whole_transactions_while_another_process_writes(store: Store, place: Place) -> None:
    code = """
import sys
from confide.ledger.address import parse_place
from confide.ledger.opening import open_store
store = open_store(parse_place(sys.argv[1]))
for number in range(2, 100):
    with store.transaction([b"licence1"]):
        store.put("usage", licence=b"i", day=1, unit="layers", tokens=number)
        store.put("disclosed", licence=b"i", model=b"m", unit="layers", layer_group=1, tokens=number)
store.close()
"""
    seen = set()
    with subprocess.Popen([sys.executable, "-c", code, str(place)]) as writer:
        while writer.poll() is None:
            with store.snapshot():
                usage, disclosed = store.rows("usage")[0], store.rows("disclosed")[0]
            assert usage["tokens"] == disclosed["tokens"]
            seen.add(usage["tokens"])
        assert writer.returncode == 0
        assert store.rows("usage")[0]["tokens"] == 99
    assert len(seen) > 1


@several_processes
def test_licences_are_written_by_many_processes_while_the_server_answers(place: Place) -> None:
    code = """
import sys
from confide.ledger.address import parse_place
from confide.ledger.licences import licence_book
for number in range(10):
    with licence_book(parse_place(sys.argv[1])) as book:
        book.create(f"{sys.argv[2]} {number}")
"""
    with closing(Ledger(place)) as ledger:
        writers = [subprocess.Popen([sys.executable, "-c", code, str(place), name]) for name in "ab"]
        account, tokens = ledger.anonymous(bytes(32)), 0
        while any(writer.poll() is None for writer in writers):
            ledger.charge(account, 0, 1, None)
            tokens += 1
            if tokens % 50 == 0:
                ledger.checkpoint()
                time.sleep(0.01)  # a server's checkpoints are seconds apart: whoever waits for the lock may get it
        assert [writer.returncode for writer in writers] == [0, 0]
        assert len(ledger.licences.all()) == 20
        ledger.checkpoint()
        assert [usage.tokens for usage in ledger.licences.usage()] == [tokens]


def test_a_database_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    SqliteStore(tmp_path / DATABASE).close()
    with closing(sqlite3.connect(tmp_path / DATABASE)) as database:
        database.execute("PRAGMA user_version = 9")
    with pytest.raises(LedgerUnavailable, match="another version"):
        SqliteStore(tmp_path / DATABASE)


def test_tables_without_a_version_are_left_alone(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / DATABASE)) as database, database:
        database.execute("CREATE TABLE licences (id)")
    with pytest.raises(LedgerUnavailable, match="another version"):
        SqliteStore(tmp_path / DATABASE)

"""The database says what was written to it, or that it does not, to any number of processes."""

import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path

import pytest

from confide.errors import LedgerCorrupted, LedgerUnavailable
from confide.hybrid.server.ledger import Ledger
from confide.hybrid.server.ledger.store import DATABASE, Store

ROWS = {
    "server": {"name": "clock", "value": b"1"},
    "licences": {"id": b"i", "name": "reader", "tokens": None},
    "leases": {"licence": b"i", "model": b"m", "day": 1, "tokens": 16, "lost": 3},
    "usage": {"licence": b"i", "day": 1, "tokens": 2},
    "disclosed": {"licence": b"i", "model": b"m", "layer_group": 1, "tokens": 2},
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / DATABASE)
    for table, row in ROWS.items():
        made.put(table, **row)
    return made


def test_rows_come_back_as_they_were_written(store: Store, tmp_path: Path) -> None:
    store.close()
    with closing(Store(tmp_path / DATABASE)) as again:
        again.verify()
        for table, row in ROWS.items():
            found = again.row(table, **row) if None not in row.values() else again.rows(table)[0]
            assert found is not None
            assert {name: found[name] for name in row} == row
            assert again.count(table) == 1


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("server", "value = x'32'"),
        ("licences", "tokens = 5"),
        ("licences", "name = 'another'"),
        ("leases", "tokens = 2"),
        ("leases", "lost = '3'"),
        ("usage", "tokens = 1"),
        ("disclosed", "tokens = 0"),
        ("disclosed", "sum = x'00'"),
    ],
)
def test_a_changed_row_is_found(store: Store, tmp_path: Path, table: str, change: str) -> None:
    with closing(sqlite3.connect(tmp_path / DATABASE)) as other, other:
        other.execute(f"UPDATE {table} SET {change}")  # noqa: S608
    with pytest.raises(LedgerCorrupted, match="confide ledger restore"):
        store.verify()
    with pytest.raises(LedgerCorrupted):
        store.rows(table)


def test_a_row_of_one_table_is_none_of_another(store: Store, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / DATABASE)) as other, other:
        other.execute("INSERT OR REPLACE INTO disclosed SELECT licence, x'6d', day, tokens, sum FROM usage")
    with pytest.raises(LedgerCorrupted):
        store.verify()


@pytest.mark.parametrize("content", [b"hello" * 1000, b"\0" * 4096, b"SQLite format 3\0" + b"\xff" * 4000])
def test_what_is_no_database_is_a_clear_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / DATABASE
    path.write_bytes(content)
    with pytest.raises(LedgerCorrupted, match=str(path)):
        Store(path).verify()
    assert path.read_bytes() == content


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnavailable, match="permissions"):
        Store(tmp_path / "missing" / DATABASE)


def test_a_transaction_is_all_or_nothing(store: Store) -> None:
    with suppress(ZeroDivisionError), store.transaction():
        store.put("server", name="clock", value=b"2")
        store.put("server", name="seed", value=b"3")
        raise ZeroDivisionError
    assert store.rows("server") == [{"name": "clock", "value": b"1"}]
    with store.transaction():
        store.put("server", name="clock", value=b"2")
    assert store.row("server", name="clock") == {"name": "clock", "value": b"2"}


def test_readers_see_whole_transactions_while_another_process_writes(store: Store, tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from confide.hybrid.server.ledger.store import Store
store = Store(Path({str(tmp_path / DATABASE)!r}))
for number in range(2, 300):
    with store.transaction():
        store.put("usage", licence=b"i", day=1, tokens=number)
        store.put("disclosed", licence=b"i", model=b"m", layer_group=1, tokens=number)
"""
    seen = set()
    with closing(store), subprocess.Popen([sys.executable, "-c", code]) as writer:
        while writer.poll() is None:
            with store.transaction():
                usage, disclosed = store.rows("usage")[0], store.rows("disclosed")[0]
            assert usage["tokens"] == disclosed["tokens"]
            seen.add(usage["tokens"])
        assert writer.returncode == 0
        assert store.rows("usage")[0]["tokens"] == 299
    assert len(seen) > 1


def test_licences_are_written_by_many_processes_while_the_server_answers(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from confide.hybrid.server.ledger.licences import licence_book
for number in range(10):
    with licence_book(Path(sys.argv[1])) as book:
        book.create(f"{sys.argv[2]} {number}")
"""
    with closing(Ledger(tmp_path)) as ledger:
        writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in "ab"]
        account, tokens = ledger.anonymous(bytes(32)), 0
        while any(writer.poll() is None for writer in writers):
            ledger.charge(account, 0, 1, None)
            tokens += 1
            if tokens % 50 == 0:
                ledger.checkpoint()
        assert [writer.returncode for writer in writers] == [0, 0]
        assert len(ledger.licences.all()) == 20
        ledger.checkpoint()
        assert [usage.tokens for usage in ledger.licences.usage()] == [tokens]


def test_a_database_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    Store(tmp_path / DATABASE).close()
    with closing(sqlite3.connect(tmp_path / DATABASE)) as database:
        database.execute("PRAGMA user_version = 9")
    with pytest.raises(LedgerUnavailable, match="another version"):
        Store(tmp_path / DATABASE)


def test_tables_without_a_version_are_left_alone(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / DATABASE)) as database, database:
        database.execute("CREATE TABLE licences (id)")
    with pytest.raises(LedgerUnavailable, match="another version"):
        Store(tmp_path / DATABASE)

"""A database that another process keeps, for one that has no ways out itself."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from confide.errors import InvalidSettings, LedgerUnavailable
from confide.ledger import keeper
from confide.ledger.address import DatabaseAddress
from confide.ledger.keeper import KeptStore
from confide.ledger.ledger import Ledger
from confide.ledger.store import INPUT

if TYPE_CHECKING:
    from postgres import Postgres

MODEL = bytes(32)


@pytest.fixture
def store(database: DatabaseAddress) -> Iterator[KeptStore]:
    with closing(KeptStore(database)) as made:
        yield made


def keepers(of: int) -> list[int]:
    """The keepers that a process has started."""
    children = Path(f"/proc/{of}/task").glob("*/children")
    numbers = [int(number) for path in children for number in path.read_text().split()]
    return [one for one in numbers if b"confide.ledger.keeper" in Path(f"/proc/{one}/cmdline").read_bytes()]


def until(true: object) -> None:
    deadline = time.monotonic() + 60
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_process_without_ways_out_answers_and_goes_on_with_a_database_that_comes_back(
    database: DatabaseAddress, postgres: "Postgres"
) -> None:
    code = """
import socket, sys, time
from confide.enclave.egress import close_egress
from confide.errors import LedgerUnavailable
from confide.ledger.address import DatabaseAddress
from confide.ledger.keeper import KeptStore
from confide.ledger.ledger import Ledger

ledger = Ledger(KeptStore(DatabaseAddress.parse(sys.argv[1])))
key = ledger.licences.create("reader", tokens=100, disclosure=None)[1]
ways = close_egress(keys=None, upstream=None, ledger=True)
print(ways.stated, flush=True)
try:
    socket.socket()
except PermissionError:
    pass
account = ledger.authenticate(key, bytes(32), "input")
ledger.charge(account, 0, 7, None)
ledger.checkpoint()
print("charged", flush=True)
sys.stdin.readline()
while True:
    try:
        ledger.charge(ledger.authenticate(key, bytes(32), "input"), 0, 80, None)
        break
    except LedgerUnavailable:
        time.sleep(0.2)
print("again", flush=True)
ledger.close()
"""
    words = [sys.executable, "-c", code, str(database)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ledger-only\n"
        assert process.stdout.readline() == "charged\n"
        postgres.kill()
        process.stdin.write("\n")
        process.stdin.flush()
        time.sleep(1.5)  # for longer than what is known of licences lasts
        postgres.start()
        assert process.stdout.readline() == "again\n"
        assert process.wait() == 0
    with closing(Ledger(database)) as ledger:
        assert [usage.tokens for usage in ledger.licences.usage()] == [87]


def test_what_an_ended_process_had_begun_is_not_kept_and_nothing_is_left(database: DatabaseAddress) -> None:
    code = """
import sys, time
from confide.ledger.address import DatabaseAddress
from confide.ledger.keeper import KeptStore
store = KeptStore(DatabaseAddress.parse(sys.argv[1]))
store.put("server", name="seed", value=b"kept")
with store.transaction():
    store.put("server", name="clock", value=b"half")
    print("begun", flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code, str(database)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        (other,) = keepers(process.pid)
        process.kill()
    until(lambda: not Path(f"/proc/{other}").exists())
    with closing(KeptStore(database)) as store, store.transaction():
        assert store.rows("server") == [{"name": "seed", "value": b"kept"}]


def test_a_keeper_ends_with_its_process_alone(store: KeptStore) -> None:
    (pid,) = keepers(os.getpid())
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(pid, number)
    store.put("server", name="clock", value=b"1")
    assert os.getsid(pid) != os.getsid(0)
    store.close()
    assert not Path(f"/proc/{pid}").exists()


def test_the_memory_of_a_keeper_is_closed_to_whoever_started_it(database: DatabaseAddress) -> None:
    code = """
import ctypes, subprocess, sys
from pathlib import Path
from confide.ledger.address import DatabaseAddress
from confide.ledger.keeper import KeptStore
# root without capabilities, also for what it starts (PR_SET_SECUREBITS, SECBIT_NOROOT), is a user like others
ctypes.CDLL(None).prctl(28, 1, 0, 0, 0)
ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
other = subprocess.Popen(["sleep", "600"])
store = KeptStore(DatabaseAddress.parse(sys.argv[1]))
for pid in Path("/proc/self/task").joinpath(Path("/proc/thread-self").resolve().name, "children").read_text().split():
    try:
        open(f"/proc/{pid}/mem", "r+b").close()
        print("open", int(pid) == other.pid)
    except PermissionError:
        print("closed")
other.kill()
store.close()
"""
    done = subprocess.run([sys.executable, "-c", code, str(database)], capture_output=True, text=True)
    assert done.stdout == "open True\nclosed\n", done.stderr


def test_without_its_keeper_a_ledger_answers_for_nothing(database: DatabaseAddress) -> None:
    ledger = Ledger(KeptStore(database))
    key = ledger.licences.create("reader", tokens=100, disclosure=None)[1]
    assert ledger.in_touch
    (pid,) = keepers(os.getpid())
    os.kill(pid, signal.SIGKILL)
    for _ in range(keeper.CHANNELS + 2):
        with pytest.raises(LedgerUnavailable, match="start this server again"):
            ledger.licences.of_key(key)
    until(lambda: not ledger.in_touch)
    with pytest.raises(LedgerUnavailable):
        ledger.authenticate(key, MODEL, INPUT)
    with suppress(LedgerUnavailable):  # it cannot record what was answered
        ledger.close()


def test_a_keeper_that_says_nothing_is_not_waited_for_for_ever(
    store: KeptStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "SILENT_SECONDS", 0.2)
    (pid,) = keepers(os.getpid())
    os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(keeper.CHANNELS):
            with pytest.raises(LedgerUnavailable):
                store.now()
        with pytest.raises(LedgerUnavailable):
            store.wait(0)
    finally:
        os.kill(pid, signal.SIGCONT)


def test_an_answer_that_comes_late_is_nobodys(store: KeptStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel is not used again once its answer was not waited for: the next one would get it."""
    with monkeypatch.context() as patch:
        patch.setattr(keeper, "SILENT_SECONDS", 0.2)
        with pytest.raises(LedgerUnavailable):
            store.query("SELECT 'late' AS it FROM pg_sleep(1)", ())
    for _ in range(3 * keeper.CHANNELS):
        assert store.query("SELECT 'mine' AS it", ()) == [{"it": "mine"}]


def test_what_is_announced_is_heard_and_waking_ends_the_waiting(store: KeptStore, database: DatabaseAddress) -> None:
    heard: list[set[bytes]] = []
    listener = threading.Thread(target=lambda: heard.append(store.wait(60)))
    store.wait(0)  # from here on it listens
    listener.start()
    with closing(KeptStore(database)) as other, other.transaction(()):
        other.announce(b"licence")
    listener.join(60)
    assert heard == [{b"licence"}]
    store.wake()
    assert store.wait(60) == set()


def test_as_many_threads_as_like_ask_at_once(store: KeptStore) -> None:
    def work(number: int) -> None:
        for turn in range(10):
            with store.transaction([b"licence1"]):
                row = store.row("server", name="clock")
                store.put("server", name="clock", value=b"%d" % (int(row["value"]) + 1 if row else 1))
            found.append((number, turn))

    found: list[tuple[int, int]] = []
    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 80
    assert store.row("server", name="clock") == {"name": "clock", "value": b"80"}


def test_why_a_ledger_cannot_be_opened_is_said_here(database: DatabaseAddress, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = DatabaseAddress("127.0.0.1", 1, database.database, database.user)
    with pytest.raises(LedgerUnavailable, match="see that the database runs"):
        KeptStore(nowhere)
    monkeypatch.setenv("PGHOSTADDR", "10.0.0.1")
    with pytest.raises(InvalidSettings, match="PGHOSTADDR"):
        KeptStore(database)
    assert keepers(os.getpid()) == []


def test_a_password_is_not_in_what_others_see(store: KeptStore) -> None:
    (pid,) = keepers(os.getpid())
    assert os.environ["CONFIDE_LEDGER_PASSWORD"].encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert "keeper@" in repr(store)
    with pytest.raises(LedgerUnavailable, match="division by zero") as refused:
        store.query("SELECT 1 / 0", ())
    assert os.environ["CONFIDE_LEDGER_PASSWORD"] not in str(refused.value)

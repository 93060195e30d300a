"""State folders that were damaged on the server's disk."""

import functools
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from confide.ledger.backup import restore
from confide.ledger.identity import file_identity
from confide.ledger.ledger import Ledger
from confide.ledger.sqlite import DATABASE, SqliteStore

from .bench import scratch
from .script import Script

_MODEL = bytes(32)


@functools.cache
def _original() -> Path:
    """The state of a server that was killed: what it answered last is leased only."""
    folder, copy = scratch("ledger-original"), scratch("ledger-killed")
    with closing(Ledger(folder)) as ledger:
        _, key = ledger.licences.create("Example Ltd", tokens=1000, disclosure=None)
        account = ledger.authenticate(key, _MODEL)
        for group in range(2):
            ledger.charge(account, group, 4, None)
        ledger.checkpoint()
        ledger.charge(account, 0, 1, None)
        with closing(SqliteStore(folder / DATABASE)) as store, closing(SqliteStore(copy / DATABASE)) as killed:
            store.copy_to(killed)
    return copy


def state(data: bytes) -> None:
    """Damage a state folder, then start a server on it, or restore it."""
    script = Script(data)
    restoring = bool(script.number() % 2)
    folder = scratch("state-damaged")
    shutil.copytree(_original(), folder, dirs_exist_ok=True)
    _own(folder)
    while script:
        path = folder / script.choice([DATABASE, DATABASE, f"{DATABASE}-wal", "server.key", "journal-0"])
        path.write_bytes(script.damaged(path.read_bytes() if path.exists() else b""))
    if restoring:
        restore(folder)
    with closing(Ledger(folder)) as ledger:
        ledger.charge(ledger.anonymous(_MODEL), 0, 1, None)
        for licence in ledger.licences.all():
            ledger.licences.usage(licence)
            ledger.licences.disclosed(licence.id, _MODEL)
            ledger.licences.lost(licence.id, _MODEL)
        ledger.checkpoint()


def _own(folder: Path) -> None:
    """A copied ledger is refused; this one is to pass for the original."""
    with closing(SqliteStore(folder / DATABASE)) as store, store.transaction():
        store.put("server", name="identity", value=file_identity(folder / DATABASE))


def _seeds_of_state() -> list[bytes]:
    return [
        bytes([0]),
        bytes([1]),
        bytes([0, 0, 0, 1, 0, 0, 1, 9]),
        bytes([0, 0, 8, 16, 0, 0, 3, 1, 2, 3]),
        bytes([0, 1, 10, 64, 0, 0, 1, 9]),
        bytes([0, 2, 10, 0, 0, 0, 1, 9]),
        bytes([0, 3, 10, 0, 0, 2, 32]),
        bytes([0, 4, 0, 0, 0, 2, 4, 1, 2, 3, 4]),
        bytes([1, 0, 0, 4, 0, 3]),
    ]


TARGETS: dict[str, Callable[[bytes], None]] = {"state": state}
SEEDS: dict[str, Callable[[], list[bytes]]] = {"state": _seeds_of_state}

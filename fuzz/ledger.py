"""State folders that were damaged on the server's disk."""

import functools
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from confide.hybrid.server.ledger.journal import Entry, Journal, Position

from confide.hybrid.server.ledger import Ledger
from confide.hybrid.server.ledger.backup import restore
from confide.hybrid.server.ledger.store import DATABASE, Store
from confide.hybrid.server.ledger.usage import Answerable

from .bench import scratch
from .script import Script

PACK = bytes(range(16))


def journal(data: bytes) -> None:
    """The end of a journal: damage is reported, or cut off where a power failure may have left it."""
    script = Script(data)
    forgiving = script.choice([None, Position(0, 0), Position(0, 48), Position(1, 0)])
    folder = scratch("journal")
    (folder / "journal-0").write_bytes(script.chunk(2))
    if script:
        name = script.chunk().decode(errors="replace").translate({0: "_", ord("/"): "_"})[:50]
        (folder / f"journal-{name}").write_bytes(script.chunk(2))
    with closing(Journal(folder)) as opened:
        entries = list(opened.replay(forgiving))
        opened.append(Entry(PACK, 0, 0, 1, bytes(16)))
        if len(list(opened.replay(None))) < min(1, len(entries)):
            raise AssertionError("entries were lost")


def _seeds_of_journal() -> list[bytes]:
    folder = scratch("journal-seed")
    with closing(Journal(folder)) as opened:
        for first in range(3):
            opened.append(Entry(PACK, 1, first, 1, bytes([first]) * 16))
    whole = (folder / "journal-0").read_bytes()
    cut = whole[:-7]
    return [
        bytes([0]) + len(whole).to_bytes(2, "little") + whole,
        bytes([1]) + len(cut).to_bytes(2, "little") + cut,
        bytes([2]) + len(whole).to_bytes(2, "little") + whole[:100] + b"\xff" + whole[101:],
        bytes([0, 0, 0, 1]) + b"1" + len(whole).to_bytes(2, "little") + whole,
    ]


@functools.cache
def _original() -> Path:
    """The state of a server that was killed: what it answered last is in the journal only."""
    folder, copy = scratch("ledger-original"), scratch("ledger-killed")
    with closing(Ledger(folder)) as ledger:
        licence, _ = ledger.licences.create("Example Ltd", tokens=1000)
        account = ledger._account(licence.id)
        for group in range(2):
            ledger.bind_request(account, PACK, group, bytes(32))
        ledger.spend(account, Entry(PACK, 0, 0, 4, bytes(16)), Answerable(4096))
        ledger.checkpoint()
        ledger.spend(account, Entry(PACK, 0, 4, 1, bytes(16)), Answerable(4096))
        with closing(Store(folder / DATABASE)) as store:
            store.copy_to(copy / DATABASE)
        for name in ("server.key", "journal-0"):
            shutil.copy(folder / name, copy / name)
    return copy


def state(data: bytes) -> None:
    """Damage a state folder, then start a server on it, or restore it."""
    script = Script(data)
    restoring = bool(script.number() % 2)
    folder = scratch("state-damaged")
    shutil.copytree(_original(), folder, dirs_exist_ok=True)
    _own(folder)
    while script:
        path = folder / script.choice([DATABASE, DATABASE, "journal-0", "server.key", f"{DATABASE}-wal"])
        path.write_bytes(script.damaged(path.read_bytes() if path.exists() else b""))
    if restoring:
        restore(folder)
    with closing(Ledger(folder)) as ledger:
        account = ledger.anonymous()
        ledger.prepared_groups(account, PACK)
        for licence in ledger.licences.all():
            ledger.licences.usage(licence)
            ledger.mark(ledger._account(licence.id), PACK)


def _own(folder: Path) -> None:
    """A copied ledger is refused; this one is to pass for the original."""
    with closing(Store(folder / DATABASE)) as store:
        inode = str((folder / DATABASE).stat().st_ino).encode()
        with store.transaction():
            store.put("server", name="inode", value=inode)


def _seeds_of_state() -> list[bytes]:
    return [
        bytes([0]),
        bytes([1]),
        bytes([0, 0, 0, 1, 0, 0, 1, 9]),
        bytes([0, 0, 8, 16, 0, 0, 3, 1, 2, 3]),
        bytes([0, 2, 10, 0, 0, 0, 1, 9]),
        bytes([0, 2, 40, 0, 0, 3]),
        bytes([0, 3, 10, 0, 0, 3]),
        bytes([0, 4, 0, 0, 0, 2, 4, 1, 2, 3, 4]),
        bytes([1, 0, 0, 4, 0, 3]),
    ]


TARGETS: dict[str, Callable[[bytes], None]] = {"journal": journal, "state": state}
SEEDS: dict[str, Callable[[], list[bytes]]] = {"journal": _seeds_of_journal, "state": _seeds_of_state}

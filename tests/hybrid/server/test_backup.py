"""Going on from a backup keeps what was paid for, and no server does it by itself."""

import shutil
import sqlite3
import stat
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest

from confide.errors import ConfideError, LedgerCopied, LedgerCorrupted, LedgerInUse
from confide.hybrid.server.ledger import Ledger
from confide.hybrid.server.ledger import backup as module
from confide.hybrid.server.ledger.backup import backup, restore
from confide.hybrid.server.ledger.ledger import LEAST_LEASE
from confide.hybrid.server.ledger.sqlite import DATABASE, SqliteStore

from .world import kill


class Served:
    """A state folder with a licence that has used five tokens."""

    def __init__(self, folder: Path) -> None:
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


def test_a_backup_is_made_while_the_server_goes_on(served: Served, tmp_path: Path) -> None:
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


def test_nothing_is_restored_under_a_running_server(served: Served, tmp_path: Path) -> None:
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
            (SqliteStore, "copy_to"),
            (SqliteStore, "clear"),
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

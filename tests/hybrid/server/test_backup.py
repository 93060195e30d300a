"""Going on from a backup keeps what was paid for, and never answers an index twice under one key."""

import shutil
import sqlite3
import stat
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest

from confide.errors import ConfideError, IndexUsed, LedgerCopied, LedgerCorrupted, LedgerInUse, UnknownPack
from confide.hybrid.server.ledger import Ledger
from confide.hybrid.server.ledger import backup as module
from confide.hybrid.server.ledger.backup import backup, restore
from confide.hybrid.server.ledger.licences import licence_book
from confide.hybrid.server.ledger.store import DATABASE, Store

from .records import OPEN, OTHER, PACK, entry, kill


class Served:
    """A state folder with a licence that has used five tokens, of one layer group twice as many as of the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ledger = Ledger(folder)
        self.licence, self.key = ledger.licences.create("reader", tokens=100)
        self.spend(ledger, 0)
        for group in range(2):
            ledger.bind_request(ledger.authenticate(self.key), PACK, group, b"d" * 32)
        self.spend(ledger, 5)
        self.server_key, self.server_seed = ledger.server_key, ledger.server_seed
        self.ledger = ledger

    def spend(self, ledger: Ledger, tokens: int) -> None:
        account = ledger.authenticate(self.key)
        for index in range(account.used, account.used + tokens):
            ledger.spend(account, entry(index), OPEN)

    def require_fresh(self, ledger: Ledger) -> None:
        """Nothing under the old key means anything here."""
        assert ledger.server_key != self.server_key
        assert ledger.server_seed != self.server_seed
        account = ledger.authenticate(self.key)
        assert ledger.prepared_groups(account, PACK) == 0
        with pytest.raises(UnknownPack):
            ledger.spend(account, entry(0), OPEN)
        with pytest.raises(UnknownPack):
            ledger.request_digest(PACK, 0)


@pytest.fixture
def served(tmp_path: Path) -> Served:
    return Served(tmp_path / "state")


def test_a_backup_is_made_while_the_server_goes_on(served: Served, tmp_path: Path) -> None:
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            served.spend(served.ledger, 1)
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
        with closing(Store(path)) as store:
            store.verify()
            assert store.count("licences") == 1
    assert not list(tmp_path.glob(".backup*"))
    assert not list(tmp_path.glob("backup-*-*"))


def test_a_backup_holds_no_key(served: Served, tmp_path: Path) -> None:
    backup(served.folder, tmp_path / "backup")
    content = (tmp_path / "backup").read_bytes()
    assert served.server_key not in content
    assert served.key.encode() not in content
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
        patch.setattr(Store, "transaction", Interruption(1))
        with pytest.raises(Interrupted):
            backup(served.folder, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()
    backup(served.folder, tmp_path / "backup")


@pytest.mark.parametrize("where", ["in place", "over another ledger", "in a new folder", "by a dead server"])
def test_restoring_keeps_licences_and_usage_and_forgets_packs(served: Served, tmp_path: Path, where: str) -> None:
    served.ledger.checkpoint()
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
    assert (restored.licences, restored.tokens_used) == (1, 5)
    assert restored.known_until > 0
    ledger = Ledger(folder)
    served.require_fresh(ledger)
    account = ledger.authenticate(served.key)
    assert (account.tokens_left, account.disclosed[0], account.licence) == (95, 5, served.licence)
    ledger.bind_request(account, b"n" * 16, 0, b"d" * 32)
    ledger.spend(account, entry(0, pack=b"n" * 16), OPEN)
    ledger.close()
    left = {path.name for path in folder.iterdir()} - {"ledger.sqlite.before-restore"}
    assert left == {"ledger.sqlite", "journal-0", "lock", "server.key"}


def test_restoring_twice_changes_the_key_twice(served: Served) -> None:
    served.ledger.close()
    keys = {served.server_key}
    for _ in range(2):
        restore(served.folder)
        keys.add((served.folder / "server.key").read_bytes())
    assert len(keys) == 3


def test_what_an_older_restore_put_aside_is_not_taken_for_the_ledger(served: Served) -> None:
    served.ledger.close()
    restore(served.folder)
    (served.folder / DATABASE).unlink()
    with pytest.raises(ConfideError, match="does not exist"):
        restore(served.folder)


def test_nothing_is_restored_under_a_running_server(served: Served, tmp_path: Path) -> None:
    backup(served.folder, tmp_path / "backup")
    with pytest.raises(LedgerInUse):
        restore(served.folder, tmp_path / "backup")
    served.spend(served.ledger, 1)
    assert (served.folder / "server.key").read_bytes() == served.server_key
    served.ledger.close()
    Ledger(served.folder).close()


@pytest.mark.parametrize("damage", ["cut", "text", "row", "missing"])
def test_a_damaged_backup_is_refused_and_changes_nothing(served: Served, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "backup"
    served.ledger.checkpoint()
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
    again = Ledger(served.folder)
    assert again.server_key == served.server_key
    with pytest.raises(IndexUsed):
        again.spend(again.authenticate(served.key), entry(0, tag=OTHER), OPEN)
    again.close()


def test_a_backup_put_in_the_ledgers_place_by_hand_is_refused(served: Served, tmp_path: Path) -> None:
    """Even written into the same inode, where it would have forgotten answers under the old key."""
    backup(served.folder, tmp_path / "backup")
    served.spend(served.ledger, 10)
    served.ledger.close()
    for journal in served.folder.glob("journal-*"):
        journal.unlink()
    inode = (served.folder / DATABASE).stat().st_ino
    shutil.copyfile(tmp_path / "backup", served.folder / DATABASE)
    assert (served.folder / DATABASE).stat().st_ino == inode
    with pytest.raises(LedgerCopied, match="confide ledger restore"):
        Ledger(served.folder)
    restore(served.folder)
    ledger = Ledger(served.folder)
    served.require_fresh(ledger)
    ledger.close()


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


LAST_STEP = 12
"""One more than the steps there are."""


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("step", range(1, LAST_STEP + 1))
def test_an_interrupted_restore_never_serves_under_the_old_key_with_answers_forgotten(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, in_place: bool
) -> None:
    served.ledger.checkpoint()
    backup(served.folder, tmp_path / "backup")
    served.spend(served.ledger, 4)  # answered after the backup
    served.ledger.checkpoint()
    served.spend(served.ledger, 1)  # in the journal only
    kill(served.ledger)
    source = None if in_place else tmp_path / "backup"
    interruption = Interruption(step)
    with monkeypatch.context() as patch:
        for owner, name in [
            (Store, "verify"),
            (Store, "copy_to"),
            (Store, "clear"),
            (Path, "unlink"),
            (module.os, "replace"),
            (module, "replace_file"),
            (module, "sync_folder"),
        ]:
            patch.setattr(owner, name, interruption.before(getattr(owner, name)))
        with suppress(Interrupted):
            restore(served.folder, source)
            assert step == LAST_STEP
    with suppress(LedgerCorrupted), licence_book(served.folder) as book:
        book.create(f"made meanwhile {step}")
    with suppress(LedgerCorrupted):
        ledger = Ledger(served.folder)
        if ledger.server_key == served.server_key:
            assert ledger.authenticate(served.key).used == 10
            for index in range(10):
                with pytest.raises(IndexUsed):
                    ledger.spend(ledger.authenticate(served.key), entry(index, tag=OTHER), OPEN)
        else:
            served.require_fresh(ledger)
        ledger.close()
    restore(served.folder, source)  # the same command goes on from there
    ledger = Ledger(served.folder)
    served.require_fresh(ledger)
    assert ledger.authenticate(served.key).used in ((9, 10) if in_place else (5,))
    ledger.close()

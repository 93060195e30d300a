"""In which order files reach the disk: a crash at any point leaves the old file or the whole new one, by its name."""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from confide.broker.log import LOG_NAME, AuditLog, Entry
from confide.broker.store import KeyStore
from confide.client.hint_fetch import fetch_hint
from confide.disk.files import create_file, replace_file
from confide.hybrid.client.refusals import Breach, RefusalList
from confide.ledger.backup import backup, restore
from confide.ledger.licences import licence_book
from confide.ledger.sqlite import DATABASE, SqliteStore
from confide.models.gguf.types import GgufType
from confide.models.gguf.write import write_gguf
from confide.models.source import open_model
from hints import HINT, HINT_FILE, SHELL


@dataclass
class Journal:
    """What happened to files, in order: (what, name), where a folder's own sync is ("sync", its path)."""

    events: list[tuple[str, Path]] = field(default_factory=list)

    def index(self, what: str, path: Path) -> int:
        return self.events.index((what, path))

    def require_durable(self, path: Path) -> None:
        """That the file came by its name whole: its content was synced before, and its folder after."""
        named = next(at for at, (what, where) in enumerate(self.events) if what == "name" and where == path)
        assert ("content", path) in self.events[:named], f"{path} has its name before its content is on the disk"
        assert ("sync", path.parent) in self.events[named:], f"the name of {path} is not made durable"


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch) -> Journal:
    made = Journal()
    synced: set[tuple[int, int]] = set()
    fsync, rename, replace, link, unlink = os.fsync, os.rename, os.replace, os.link, os.unlink

    def identity(path: object) -> tuple[int, int]:
        status = os.stat(path)  # type: ignore[call-overload]
        return status.st_dev, status.st_ino

    def sync(descriptor: int) -> None:
        fsync(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.add(identity(path))
        made.events.append(("sync", path))

    def naming(act: Callable[..., None]) -> Callable[..., None]:
        def name(source: object, target: object, **options: object) -> None:
            if identity(source) in synced:
                made.events.append(("content", Path(str(target))))
            act(source, target, **options)
            made.events.append(("name", Path(str(target))))

        return name

    def remove(path: object, **options: object) -> None:
        unlink(path, **options)  # type: ignore[arg-type]
        made.events.append(("unlink", Path(str(path))))

    monkeypatch.setattr(os, "fsync", sync)
    for called, act in (("rename", rename), ("replace", replace), ("link", link)):
        monkeypatch.setattr(os, called, naming(act))
    monkeypatch.setattr(os, "unlink", remove)
    return made


def ledger(folder: Path) -> Path:
    if (folder / DATABASE).exists():
        return folder
    with licence_book(folder) as book:
        book.create("somebody")
    return folder


def fetch(out: Path) -> None:
    shell = out.parents[1]
    source = shell / "source"
    source.mkdir()
    (source / out.name).write_bytes(HINT)
    fetch_hint(shell, SHELL, str(source))


def back_up_to(out: Path) -> None:
    backup(ledger(out.parent / "state"), out)


WRITERS: dict[str, Callable[[Path], object]] = {
    "replaced": lambda out: replace_file(out, b"new"),
    "created": lambda out: create_file(out, b"new"),
    "gguf": lambda out: write_gguf(open_model("demo"), out, GgufType.F16),
    "hint": fetch,
    "backup": back_up_to,
}
PLACES = {"hint": HINT_FILE}
"""Where they write, if not to any file."""


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_has_its_name_once_it_is_whole(tmp_path: Path, journal: Journal, writer: str) -> None:
    out = tmp_path / PLACES.get(writer, "file")
    WRITERS[writer](out)
    assert out.exists()
    journal.require_durable(out)
    assert [path.name for path in out.parent.iterdir() if path.name not in (out.name, "state")] == []


@pytest.mark.parametrize("writer", WRITERS)
def test_a_disk_that_fails_leaves_no_file_by_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    out = tmp_path / PLACES.get(writer, "file")
    if writer == "backup":
        ledger(tmp_path / "state")

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(Exception, match="Input/output error"):
        WRITERS[writer](out)
    assert not out.exists()


def test_a_file_that_is_replaced_was_the_old_one_until_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "file"
    replace_file(out, b"old")

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="Input/output"):
            replace_file(out, b"new")
    assert out.read_bytes() == b"old"
    replace_file(out, b"new")
    assert out.read_bytes() == b"new"


def test_restoring_a_ledger_is_durable(tmp_path: Path, journal: Journal) -> None:
    state = ledger(tmp_path / "state")
    restore(state)
    journal.require_durable(state / DATABASE)


@pytest.mark.parametrize("remove", ["key", "refusals"])
def test_what_is_forgotten_stays_forgotten(tmp_path: Path, journal: Journal, remove: str) -> None:
    """After a power failure no key is back that its owner has removed, and no list that was cleared."""
    if remove == "refusals":
        listed = RefusalList(tmp_path)
        listed.add("ws://127.0.0.1:1", "ab" * 32, Breach("group", ("layer",), 0))
        path = tmp_path / "distrusted.json"
        listed.clear()
    else:
        path = tmp_path / f"{'ab' * 16}.key"
        path.write_bytes(b"any")
        KeyStore(tmp_path, None).remove("ab" * 16)  # type: ignore[arg-type]
    assert journal.index("unlink", path) < len(journal.events) - 1
    assert journal.events[-1] == ("sync", tmp_path)


def test_a_line_of_the_audit_log_is_on_the_disk_before_its_answer(tmp_path: Path, journal: Journal) -> None:
    with closing(AuditLog(tmp_path, datetime.now(UTC))) as log:
        assert ("sync", tmp_path) in journal.events  # the name of the file
        journal.events.clear()
        log.append(Entry(datetime.now(UTC), "refused", key="ab" * 16))
        assert journal.events == [("sync", tmp_path / LOG_NAME)]


def test_a_ledger_waits_for_the_disk(databases: list[sqlite3.Connection], tmp_path: Path) -> None:
    """2 is FULL: a transaction in the write-ahead log is synced before it ends; NORMAL would lose the last ones."""
    with closing(SqliteStore(tmp_path / DATABASE)) as store:
        (database,) = databases
        assert database.execute("PRAGMA synchronous").fetchone()[0] == 2
        assert database.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert store.durable
        for weaker in ("NORMAL", "OFF"):
            database.execute(f"PRAGMA synchronous={weaker}")
            assert not store.durable

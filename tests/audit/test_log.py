"""The client's audit log: what is found of whoever changes it, and what is left of it by a crash or a full disk."""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from confide.attest.check import Outcome
from confide.audit.entries import Entry, segment_name
from confide.audit.log import CHECKPOINT, FOLDER, RETIRED, AuditLog, note, start_log
from confide.audit.verify import AuditResult, entries, verify_log
from confide.disk.home import home
from confide.errors import AuditLogCorrupted, AuditLogInUse, AuditLogUnavailable
from confide.receipts.client_key import ClientKey


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log that was just begun, in a Confide folder of its own."""
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path / "home"))
    return start_log()


def written(count: int) -> None:
    for number in range(count):
        note("receipt", mode="enclave", made_by="workload", receipt=f"sha256:{number:064x}")


def verdict(folder: Path, **given: Any) -> AuditResult:
    return verify_log(folder, **{"key": ClientKey.open().public, **given})


def failed(result: AuditResult) -> set[str]:
    return {one.code for one in result.failures}


def lines(folder: Path, number: int = 1) -> list[bytes]:
    return (folder / segment_name(number)).read_bytes().splitlines(keepends=True)


def put(folder: Path, content: list[bytes], number: int = 1) -> None:
    (folder / segment_name(number)).write_bytes(b"".join(content))


def test_nothing_is_written_before_it_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path / "home"))
    written(1)
    assert not (home() / FOLDER).exists()
    assert start_log() == home() / FOLDER
    with pytest.raises(AuditLogInUse, match="already"):
        start_log()
    with pytest.raises(AuditLogUnavailable, match="audit start"):
        verify_log(tmp_path / "nothing")


def test_entries_come_back_in_order_and_are_verified(folder: Path) -> None:
    written(3)
    found = list(entries(folder))
    assert [entry.event for entry in found] == ["started", "receipt", "receipt", "receipt"]
    assert [entry.receipt[-1:] for entry in found] == ["", "0", "1", "2"]
    result = verdict(folder)
    assert result.verified
    assert result.entries == 4
    assert {one.code for one in result.checks if one.outcome is Outcome.SKIPPED} == {"audit-kept"}
    assert all(one.clause for one in result.checks)
    assert all(path.stat().st_mode & 0o077 == 0 for path in [folder, *folder.iterdir()])
    nobodys = verify_log(folder)
    assert not nobodys.verified
    assert not nobodys.failures
    assert failed(verify_log(folder, "00" * 32)) == {"audit-key"}


def _changed(content: list[bytes]) -> None:
    content[2] = content[2].replace(b"workload", b"nobody00")


def _gone(content: list[bytes]) -> None:
    del content[2]


def _moved(content: list[bytes]) -> None:
    content[1], content[2] = content[2], content[1]


def _twice(content: list[bytes]) -> None:
    content.insert(2, content[2])


def _between(content: list[bytes]) -> None:
    content.insert(2, b"\n")


def _spaced(content: list[bytes]) -> None:
    content[2] = content[2].replace(b",", b", ", 1)


@pytest.mark.parametrize("change", [_changed, _gone, _moved, _twice, _between, _spaced])
def test_a_line_that_is_tampered_with_is_found(folder: Path, change: Callable[[list[bytes]], None]) -> None:
    written(4)
    content = lines(folder)
    change(content)
    put(folder, content)
    result = verdict(folder)
    assert {"audit-chain", "audit-checkpoint"} <= failed(result)
    assert not result.verified
    with pytest.raises(AuditLogCorrupted):
        list(entries(folder))


def test_a_cut_tail_is_found_by_the_checkpoint_and_nothing_is_added_to_it(folder: Path) -> None:
    written(4)
    content = lines(folder)
    for cut in range(5):
        put(folder, content[:cut])
        assert "audit-checkpoint" in failed(verdict(folder))
        with pytest.raises(AuditLogCorrupted, match="move it away"):
            written(1)
        assert lines(folder) == content[:cut]
    (folder / segment_name(1)).unlink()
    assert {"audit-segments", "audit-checkpoint"} <= failed(verdict(folder))
    with pytest.raises(AuditLogCorrupted):
        written(1)


def test_an_older_state_of_everything_is_found_by_a_checkpoint_from_elsewhere(folder: Path, tmp_path: Path) -> None:
    written(2)
    older = tmp_path / "older"
    shutil.copytree(folder, older)
    written(2)
    kept = (folder / CHECKPOINT).read_bytes()
    assert verdict(folder, kept=kept).verified
    assert verdict(older).verified  # by itself it is whole
    assert failed(verdict(older, kept=kept)) == {"audit-kept"}
    assert verdict(folder, kept=(older / CHECKPOINT).read_bytes()).verified  # it has grown since
    assert "audit-kept" in failed(verdict(folder, kept=b"{}"))


def test_a_log_written_anew_has_another_key_or_no_signature(folder: Path, tmp_path: Path) -> None:
    written(3)
    mine, kept = ClientKey.open().public, (folder / CHECKPOINT).read_bytes()
    checkpoint = json.loads(kept)
    for name, value in {"entries": 3, "head": "00" * 32, "segment": 2, "log": "11" * 32, "bytes": 1}.items():
        (folder / CHECKPOINT).write_text(json.dumps(checkpoint | {name: value}))
        assert "audit-signature" in failed(verdict(folder))
        with pytest.raises(AuditLogCorrupted):
            written(1)
    (folder / CHECKPOINT).unlink()
    assert {"audit-signature", "audit-checkpoint"} <= failed(verdict(folder))
    with pytest.raises(AuditLogCorrupted):
        written(1)
    (folder / CHECKPOINT).write_bytes(kept)
    folder.rename(tmp_path / "before")
    (home() / "client.key").unlink()
    other = start_log()
    written(3)
    assert failed(verify_log(other, mine, kept)) >= {"audit-key", "audit-kept"}


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_a_torn_last_line_is_cut_off_and_said(folder: Path, kept: int) -> None:
    written(2)
    torn = lines(folder)[-1][:kept]
    with (folder / segment_name(1)).open("ab") as file:
        file.write(torn)
    result = verdict(folder)
    assert result.verified
    assert next(one.outcome for one in result.checks if one.code == "audit-end") is Outcome.SKIPPED
    written(1)
    assert [entry.event for entry in entries(folder)] == ["started", "receipt", "receipt", "recovered", "receipt"]
    assert next(entry.recovered for entry in entries(folder) if entry.recovered) == len(torn)
    assert verdict(folder).verified


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_a_torn_line_that_was_counted_is_no_crashs_work(folder: Path, kept: int) -> None:
    written(2)
    content = lines(folder)
    put(folder, [*content[:-1], content[-1][:kept]])
    assert "audit-checkpoint" in failed(verdict(folder))
    with pytest.raises(AuditLogCorrupted):
        written(1)
    put(folder, [*content, b"x" * (1 << 15)])  # nobody's line
    with pytest.raises(AuditLogCorrupted):
        written(1)


def test_a_line_that_a_crash_left_uncounted_is_counted(folder: Path) -> None:
    written(1)
    before = (folder / CHECKPOINT).read_bytes()
    written(1)
    (folder / CHECKPOINT).write_bytes(before)
    result = verdict(folder)
    assert result.verified
    assert "1 after it" in next(one.seen for one in result.checks if one.code == "audit-checkpoint")
    written(1)
    assert verdict(folder).entries == 4


@pytest.mark.parametrize("failing", ["write", "fsync"])
def test_a_full_disk_leaves_no_trace_and_nothing_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    written(1)
    before = lines(folder)

    def full(file: int, data: bytes = b"") -> int:
        if data:
            os.pwrite(file, data[:10], 0)  # some of it arrives: at the end, for the file is open for appending
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"confide.audit.log.os.{failing}", full)
        with pytest.raises(AuditLogUnavailable, match="No space"):
            written(1)
    assert lines(folder) == before
    written(1)
    assert verdict(folder).entries == 3


def test_the_line_is_on_the_disk_before_the_checkpoint_that_counts_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, replace = os.fsync, os.replace

    def fsync(file: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{file}")).name)
        sync(file)

    def replaced(source: Any, target: Any) -> None:
        done.append(f"-> {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replaced)
    written(1)
    assert done == [segment_name(1), f"{CHECKPOINT}.draft", f"-> {CHECKPOINT}", FOLDER]


def test_where_the_checkpoint_cannot_be_written_nothing_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(AuditLogUnavailable, match="No space"):
            written(1)
    assert verdict(folder).verified  # a line more than was counted
    written(1)
    assert verdict(folder).entries == 3


def test_rotation_keeps_the_chain(folder: Path) -> None:
    written(2)
    assert AuditLog(folder).rotate() == 2
    written(2)
    assert AuditLog(folder).rotate() == 3
    result = verdict(folder)
    assert result.verified
    assert result.entries == 7
    assert [entry.event for entry in entries(folder)] == [
        "started", "receipt", "receipt", "rotated", "receipt", "receipt", "rotated",
    ]  # fmt: skip
    middle = lines(folder, 2)
    put(folder, middle[:-1], 2)
    assert "audit-chain" in failed(verdict(folder))
    (folder / segment_name(2)).unlink()
    assert "audit-segments" in failed(verdict(folder))
    with pytest.raises(AuditLogCorrupted):
        list(entries(folder))
    put(folder, middle, 2)
    (folder / segment_name(1)).unlink()
    assert "audit-segments" in failed(verdict(folder))  # nobody signed that it may be gone


def test_a_crash_amid_rotation_is_recovered_from(folder: Path) -> None:
    written(1)
    before = (folder / CHECKPOINT).read_bytes()
    AuditLog(folder).rotate()
    (folder / CHECKPOINT).write_bytes(before)
    assert verdict(folder).verified
    written(1)
    assert verdict(folder).entries == 4
    assert len(lines(folder, 2)) == 2


def rotated(folder: Path, count: int) -> None:
    for _ in range(count):
        written(1)
        AuditLog(folder).rotate()


def test_what_is_retired_leaves_a_signed_statement(folder: Path) -> None:
    rotated(folder, 4)
    early = (folder / CHECKPOINT).read_bytes()
    assert AuditLog(folder).retain(3) == [1, 2]
    assert {path.name for path in folder.glob("segment-*")} == {segment_name(number) for number in (3, 4, 5)}
    result = verdict(folder, kept=early)
    assert result.verified
    assert result.entries == 10  # those that are gone are counted
    assert list(entries(folder))[-1].event == "retired"
    assert AuditLog(folder).retain(3) == []
    written(1)
    assert AuditLog(folder).retain(2) == [3]
    assert verdict(folder).verified
    assert verdict(folder).entries == 12
    statement = json.loads((folder / RETIRED).read_text())
    for change in ({"entries": 1}, {"head": "00" * 32}, {"segment": 4}, {"log": "00" * 32}):
        (folder / RETIRED).write_text(json.dumps(statement | change))
        assert "audit-retired" in failed(verdict(folder))
    (folder / RETIRED).unlink()
    assert "audit-segments" in failed(verdict(folder))


def test_a_checkpoint_of_what_is_retired_is_skipped_with_the_reason(folder: Path) -> None:
    written(1)
    early = (folder / CHECKPOINT).read_bytes()
    rotated(folder, 2)
    AuditLog(folder).retain(1)
    result = verdict(folder, kept=early)
    assert result.verified
    assert "retired" in next(one.seen for one in result.checks if one.code == "audit-kept")


def test_a_crash_amid_retiring_is_gone_on_with(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rotated(folder, 3)
    unlink = Path.unlink

    def crash(self: Path, missing_ok: bool = False) -> None:
        if self.name == segment_name(2):
            raise KeyboardInterrupt
        unlink(self, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", crash)
        with pytest.raises(KeyboardInterrupt):
            AuditLog(folder).retain(1)
    assert (folder / segment_name(2)).exists()
    assert verdict(folder).verified
    assert AuditLog(folder).retain(1) == [2, 3]
    assert verdict(folder).verified


def test_young_segments_are_kept_and_damaged_ones_never_dropped(folder: Path) -> None:
    rotated(folder, 3)
    assert AuditLog(folder).retain(1, datetime.now(UTC) - timedelta(days=1)) == []
    content = lines(folder, 2)
    put(folder, content[1:], 2)
    with pytest.raises(AuditLogCorrupted):
        AuditLog(folder).retain(1)
    assert (folder / segment_name(1)).exists()


def test_an_export_is_verified_elsewhere(folder: Path, tmp_path: Path) -> None:
    rotated(folder, 2)
    key = ClientKey.open().public
    AuditLog(folder).export(tmp_path / "out")
    written(1)
    result = verify_log(tmp_path / "out", key)
    assert result.verified
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "out").iterdir())
    with pytest.raises(FileExistsError):
        AuditLog(folder).export(tmp_path / "out")


def test_several_writers_make_one_chain(folder: Path) -> None:
    with ThreadPoolExecutor(3) as pool:  # whose locks are those of as many processes: each opens the file anew
        list(pool.map(written, [10, 10, 10]))
    result = verdict(folder)
    assert result.verified
    assert result.entries == 31


def test_a_file_system_without_locks_keeps_no_log(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_file: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(AuditLogUnavailable, match="No locks available"):
        written(1)


def test_whoever_holds_it_too_long_is_not_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("confide.audit.log.LOCK_SECONDS", 0.05)
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(AuditLogInUse, match="find it"):
            AuditLog(folder).rotate()
    assert AuditLog(folder).rotate() == 2


@pytest.mark.parametrize("name", [segment_name(1), CHECKPOINT, "lock"])
def test_links_are_not_followed_to_others_files(folder: Path, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes((folder / name).read_bytes() if name != "lock" else b"theirs")
    before = victim.read_bytes()
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(victim)
    if name == CHECKPOINT:
        written(1)  # a name is replaced, and what it led to stays
        assert not (folder / name).is_symlink()
    else:
        with pytest.raises(AuditLogUnavailable):
            written(1)
    assert victim.read_bytes() == before


def test_what_a_peer_chose_is_made_to_fit(folder: Path) -> None:
    note("refused", mode="enclave", peer="https://\x1b[2J" + "x" * 9999, model="no digest", failed=["fine", "N\n"] * 99)
    written(1)
    entry = list(entries(folder))[1]
    assert len(entry.peer) == 512
    assert "\x1b" not in entry.peer
    assert (entry.model, set(entry.failed), len(entry.failed)) == ("", {"fine"}, 64)
    assert verdict(folder).verified
    with pytest.raises(ValueError, match="no entry"):
        note("receipt", mode="hybrid", receipt="text of an answer")


def test_every_field_is_a_digest_a_code_or_an_address() -> None:
    """So that no text of a conversation has a place in the log."""
    texts = {field.name for field in msgspec.structs.fields(Entry) if field.type is str}
    assert texts == set()

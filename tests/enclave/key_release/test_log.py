"""The log: whatever is done to a line is found, and what a crash leaves is told from it."""

import errno
import fcntl
import hashlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread

import msgspec
import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.enclave.key_release.scene import NOW

from confide.attest.check import check
from confide.broker.log import LOG_NAME, AuditLog, Entry, LogReader, verify
from confide.disk.chained import GENESIS
from confide.errors import AuditLogCorrupted, AuditLogInUse, AuditLogUnavailable


def entry(number: int) -> Entry:
    failed = (check("debug", "off", "on: tdx", ok=False),)
    return Entry(NOW + timedelta(seconds=number), "refused", key=f"{number:032x}", peer="192.0.2.1", failed=failed)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The lines of a log."""
    folder = tmp_path_factory.mktemp("log")
    log = AuditLog(folder, NOW)
    for number in range(6):
        log.append(entry(number))
    log.close()
    return (folder / LOG_NAME).read_bytes().splitlines(keepends=True)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("changed") / LOG_NAME


def test_entries_come_back_in_order(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, NOW)
    assert log.head == GENESIS.hex()
    log.append(entry(1))
    log.close()
    log = AuditLog(tmp_path, NOW)
    log.append(entry(2))
    log.close()
    reader = LogReader(tmp_path / LOG_NAME)
    assert [line.entry for line in reader] == [entry(1), entry(2)]
    assert (reader.head, reader.entries, reader.torn) == (log.head, 2, 0)
    assert (tmp_path / LOG_NAME).stat().st_mode & 0o777 == 0o600


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_changed_byte_is_found(whole: list[bytes], path: Path, data: st.DataObject) -> None:
    content = b"".join(whole)
    at = data.draw(st.integers(0, len(content) - 1))
    changed = bytes([content[at] ^ data.draw(st.integers(1, 255))])
    path.write_bytes(content[:at] + changed + content[at + 1 :])
    if at == len(content) - 1:  # the last line's end: that is as good as cutting the line off
        assert verify(path).torn == len(whole[-1])
        with pytest.raises(AuditLogCorrupted, match="cut off"):
            verify(path, _head(whole))
    else:
        with pytest.raises(AuditLogCorrupted):
            verify(path)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_removed_moved_repeated_and_inserted_lines_are_found(
    whole: list[bytes], path: Path, data: st.DataObject
) -> None:
    lines, at = list(whole), data.draw(st.integers(0, len(whole) - 2))
    match data.draw(st.sampled_from(["remove", "move", "repeat", "blank", "space"])):
        case "remove":
            del lines[at]
        case "move":
            lines.insert(data.draw(st.integers(at + 1, len(lines) - 1)), lines.pop(at))
        case "repeat":
            lines.insert(at, lines[at])
        case "blank":
            lines.insert(at, b"\n")
        case _:
            lines[at] = b" " + lines[at]
    path.write_bytes(b"".join(lines))
    with pytest.raises(AuditLogCorrupted):
        verify(path)


def test_a_line_of_the_middle_cannot_be_replaced_with_a_valid_hash(whole: list[bytes], path: Path) -> None:
    path.unlink(missing_ok=True)
    other = AuditLog(path.parent, NOW)
    for number in (0, 99):
        other.append(entry(number))
    other.close()
    forged = path.read_bytes().splitlines(keepends=True)[1]
    path.write_bytes(b"".join([whole[0], forged, *whole[2:]]))
    with pytest.raises(AuditLogCorrupted, match="Line 3"):
        verify(path)


@pytest.mark.parametrize("kept", range(6))
def test_a_cut_tail_is_found_with_a_head_only(whole: list[bytes], path: Path, kept: int) -> None:
    path.write_bytes(b"".join(whole[:kept]))
    assert verify(path).entries == kept
    with pytest.raises(AuditLogCorrupted, match="cut off"):
        verify(path, _head(whole))
    earlier = _head(whole[:kept])
    assert verify(path, earlier).head == earlier
    path.write_bytes(b"".join(whole))
    assert verify(path, earlier).entries == 6  # it has grown since


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_torn_last_line_is_recovered_from(whole: list[bytes], path: Path, data: st.DataObject) -> None:
    kept = data.draw(st.integers(0, len(whole) - 1))
    torn = whole[kept][: data.draw(st.integers(1, len(whole[kept]) - 1))]
    path.write_bytes(b"".join(whole[:kept]) + torn)
    assert verify(path).torn == len(torn)
    log = AuditLog(path.parent, NOW)
    log.append(entry(50))
    log.close()
    *before, note, last = (line.entry for line in LogReader(path))
    assert before == [entry(number) for number in range(kept)]
    assert note == Entry(NOW, "recovered", recovered=len(torn))
    assert last == entry(50)


def test_a_damaged_log_is_not_written_to(whole: list[bytes], path: Path) -> None:
    damaged = b"".join(whole[1:])
    path.write_bytes(damaged)
    with pytest.raises(AuditLogCorrupted):
        AuditLog(path.parent, NOW)
    assert path.read_bytes() == damaged
    path.write_bytes(b"".join(whole))
    AuditLog(path.parent, NOW).close()  # nothing holds the folder any more


def test_two_that_write_one_log_follow_each_other(tmp_path: Path) -> None:
    first, second = AuditLog(tmp_path, NOW), AuditLog(tmp_path, NOW)
    for number, log in enumerate([first, first, second, first, second, second]):
        log.append(entry(number))
        assert verify(tmp_path / LOG_NAME).head == log.head
    assert [line.entry for line in LogReader(tmp_path / LOG_NAME)] == [entry(number) for number in range(6)]
    first.close()
    second.close()


@pytest.mark.parametrize("count", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_two_processes_write_one_chain(tmp_path: Path, count: int) -> None:
    """At once, and each its own in order."""
    together = multiprocessing.get_context("fork").Barrier(2, timeout=60)
    processes = [writing(tmp_path, first, count, wait=together.wait) for first in (0, 5000)]
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    numbers = [int(line.entry.key, 16) for line in LogReader(tmp_path / LOG_NAME)]
    assert [number for number in numbers if number < 5000] == list(range(count))
    assert [number for number in numbers if number >= 5000] == list(range(5000, 5000 + count))


@pytest.mark.parametrize("dies", ["write", "fsync"])
def test_one_that_is_killed_while_it_writes_loses_nothing_that_was_answered(tmp_path: Path, dies: str) -> None:
    other = AuditLog(tmp_path, NOW)
    other.append(entry(50))
    killed = writing(tmp_path, 0, 3, dies)
    killed.join(60)
    assert killed.exitcode == -signal.SIGKILL
    other.append(entry(51))  # by a process that ran all the while
    other.close()
    left = entry(3) if dies == "fsync" else Entry(entry(51).at, "recovered", recovered=10)
    entries = [line.entry for line in LogReader(tmp_path / LOG_NAME)]
    assert entries == [entry(50), *map(entry, range(3)), left, entry(51)]
    verify(tmp_path / LOG_NAME, other.head)


def writing(
    folder: Path, first: int, count: int, dies: str = "", wait: Callable[[], object] = lambda: None
) -> BaseProcess:
    """A process that writes entries from a number on, once `wait` returns.

    dies: at which call it is killed, at one entry more. A `write` has written ten bytes by then, and before an `fsync`
    all are written.
    """

    def write() -> None:
        log, real = AuditLog(folder, NOW), os.write
        wait()
        for number in range(first, first + count):
            log.append(entry(number))

        def die(file: int, data: bytes = b"") -> None:
            real(file, data[:10])
            os.kill(os.getpid(), signal.SIGKILL)

        if dies:
            setattr(os, dies, die)
            log.append(entry(first + count))

    process = multiprocessing.get_context("fork").Process(target=write)
    process.start()
    return process


def test_a_log_that_another_process_does_not_let_go_of_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AuditLog(tmp_path, NOW)
    monkeypatch.setattr("confide.broker.log.LOCK_SECONDS", 0.05)
    with (tmp_path / LOG_NAME).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(AuditLogInUse, match="find it"):
            log.append(entry(1))
        with pytest.raises(AuditLogInUse):
            AuditLog(tmp_path, NOW)
    log.append(entry(2))
    log.close()
    assert [line.entry for line in LogReader(tmp_path / LOG_NAME)] == [entry(2)]


def test_a_file_system_without_locks_lets_no_key_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one over the network can be."""
    log = AuditLog(tmp_path, NOW)

    def refuse(_file: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse)
        for use in (lambda: log.append(entry(1)), lambda: AuditLog(tmp_path, NOW)):
            with pytest.raises(AuditLogUnavailable, match="No locks available"):
                use()
    log.close()
    with pytest.raises(AuditLogUnavailable):
        log.append(entry(2))
    assert not list(LogReader(tmp_path / LOG_NAME))


def test_it_is_not_closed_under_a_line_that_is_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its descriptor could be another file's by then."""
    log, real = AuditLog(tmp_path, NOW), os.write
    closing = Thread(target=log.close)

    def write(file: int, data: bytes) -> int:
        closing.start()
        closing.join(0.2)
        return real(file, data)

    monkeypatch.setattr("confide.broker.log.os.write", write)
    log.append(entry(1))
    closing.join(60)
    assert [line.entry for line in LogReader(tmp_path / LOG_NAME)] == [entry(1)]


@pytest.mark.parametrize("failing", ["write", "fsync"])
def test_a_full_disk_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    log = AuditLog(tmp_path, NOW)
    log.append(entry(1))

    def full(file: int, data: bytes = b"") -> int:
        if data:
            os.pwrite(file, data[:10], 0)  # some of it arrives
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"confide.broker.log.os.{failing}", full)
        with pytest.raises(AuditLogUnavailable, match="No space"):
            log.append(entry(2))
    log.append(entry(3))
    log.close()
    assert [line.entry for line in LogReader(tmp_path / LOG_NAME)] == [entry(1), entry(3)]


@pytest.mark.parametrize("how", ["removed", "appended", "replaced", "cut"])
def test_a_log_that_is_meddled_with_takes_no_more(tmp_path: Path, how: str) -> None:
    log, path = AuditLog(tmp_path, NOW), tmp_path / LOG_NAME
    log.append(entry(1))
    content = path.read_bytes()
    match how:
        case "removed":
            path.unlink()
        case "appended":
            path.write_bytes(content + content)
        case "cut":
            path.write_bytes(content[:-10])
        case _:
            path.unlink()
            path.write_bytes(content)
    for _ in range(2):
        with pytest.raises(AuditLogCorrupted, match="Line 2 of" if how == "appended" else "start again"):
            log.append(entry(2))
    log.close()


def test_no_log_is_not_an_intact_one(tmp_path: Path) -> None:
    with pytest.raises(AuditLogUnavailable, match="no log"):
        verify(tmp_path / LOG_NAME)


def _head(lines: list[bytes]) -> str:
    return lines[-1][-67:-3].decode() if lines else GENESIS.hex()


def test_entries_are_hashed_as_they_stand_in_the_file(tmp_path: Path) -> None:
    """By anybody's SHA-256, without an encoder; also those of a version that wrote them in another order."""
    head, lines = GENESIS, []
    for number in range(2):
        written = msgspec.json.encode(entry(number))  # not RFC 8785: members in the order of the class
        head = hashlib.sha256(b"confide audit log 1\0" + head + written).digest()
        lines.append(b'{"entry":' + written + b',"hash":"' + head.hex().encode() + b'"}\n')
    (tmp_path / LOG_NAME).write_bytes(b"".join(lines))
    assert [line.entry for line in LogReader(tmp_path / LOG_NAME)] == [entry(0), entry(1)]
    log = AuditLog(tmp_path, NOW)
    log.append(entry(2))
    log.close()
    last = (tmp_path / LOG_NAME).read_bytes().splitlines()[-1]
    written = last.removeprefix(b'{"entry":').rpartition(b',"hash":"')[0]
    assert written == rfc8785.dumps(msgspec.to_builtins(entry(2)))
    assert log.head == hashlib.sha256(b"confide audit log 1\0" + head + written).hexdigest()
    verify(tmp_path / LOG_NAME, log.head)

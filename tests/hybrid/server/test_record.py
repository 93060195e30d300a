"""A record for audits on a disk that fills up, and after a crash: whole, or not answered."""

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from confide.errors import LedgerUnavailable
from confide.hybrid import wire
from confide.hybrid.server.record import Recorder, read_record

from .world import Tokens, model, service


def message(block: int) -> wire.Online:
    return wire.Online(0, block, 0, 1, memoryview(bytes(500)))


def blocks(path: Path) -> list[int]:
    return [one.block for one in read_record(path)]


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """Files of this process may have so many bytes, and a write beyond fails as on a full disk."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_whole_messages_and_the_record_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "record"
    with Recorder(path) as record:
        record(message(0))
        with disk_of(800), pytest.raises(LedgerUnavailable, match="make room"):
            record(message(1))
        assert blocks(path) == [0]
        record(message(2))
    assert blocks(path) == [0, 2]


def test_what_a_crash_left_unfinished_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "record"
    with Recorder(path) as record:
        record(message(0))
        record(message(1))
    whole = path.read_bytes()
    for cut in (1, 3, 100, len(whole) // 2 - 1):
        path.write_bytes(whole[:-cut])
        with Recorder(path) as record:
            record(message(7))
        assert blocks(path) == [0, 7]
    path.write_bytes(whole + b"\x01")
    Recorder(path).close()
    assert path.read_bytes() == whole


def descriptor_of(path: Path) -> int:
    """Of the file that this process has open."""
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{number}") == str(path):
                return int(number)
    raise AssertionError(f"{path} is not open")


def test_what_cannot_be_recorded_is_neither_answered_nor_billed(tmp_path: Path) -> None:
    record = Recorder(tmp_path / "record")
    made = service(tmp_path / "state", record)
    account = made.ledger.anonymous(model().signed.release.model_digest)
    os.close(descriptor_of(tmp_path / "record"))  # no descriptor, no record
    with pytest.raises(LedgerUnavailable):
        made.admit(account, Tokens(1).request(0))
    assert account.used == 0
    made.ledger.close()


def test_a_record_that_cannot_be_opened_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnavailable):
        Recorder(tmp_path)

"""What was answered is never forgotten: not by a crash, a power failure, a full disk, a copy or a wrong clock."""

import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.errors import (
    ClockWentBackwards,
    ConfideError,
    IndexUsed,
    InvalidPackage,
    LedgerCopied,
    LedgerCorrupted,
    LedgerInUse,
    LedgerUnavailable,
    RequestConflict,
    UnknownPack,
)
from confide.hybrid.server.ledger import Ledger, journal
from confide.hybrid.server.ledger import ledger as module
from confide.hybrid.server.ledger.backup import accept_clock
from confide.hybrid.server.ledger.ledger import LEASE_TOKENS, PACKS_IN_MEMORY

from .records import LIMIT, OTHER, PACK, TAG, bind, kill, spend


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    made = Ledger(tmp_path)
    bind(made)
    return made


@pytest.fixture
def power_failure(monkeypatch: pytest.MonkeyPatch) -> Callable[[Ledger], None]:
    """Kill a ledger, and let the machine have restarted since."""

    def fail(ledger: Ledger) -> None:
        kill(ledger)
        monkeypatch.setattr(module, "_boot_id", lambda: b"another boot")

    return fail


def mark(ledger: Ledger) -> int:
    return ledger.mark(ledger.anonymous(), PACK)


def billed(ledger: Ledger) -> int:
    return ledger.anonymous().used


def test_the_first_digest_of_a_request_stays(ledger: Ledger) -> None:
    bind(ledger)
    with pytest.raises(RequestConflict):
        bind(ledger, digest=b"e" * 32)
    bind(ledger, group=1, digest=b"e" * 32)
    assert ledger.request_digest(PACK, 0) == b"d" * 32
    assert ledger.prepared_groups(ledger.anonymous(), PACK) == 2


def test_keys_and_digests_survive_a_crash(ledger: Ledger, tmp_path: Path) -> None:
    before = ledger.server_key, ledger.server_seed
    kill(ledger)
    again = Ledger(tmp_path)
    assert (again.server_key, again.server_seed) == before
    with pytest.raises(RequestConflict):
        bind(again, digest=b"e" * 32)


def test_an_index_is_answered_for_one_value_only(ledger: Ledger) -> None:
    spend(ledger, 7)
    spend(ledger, 7)  # a retry
    with pytest.raises(IndexUsed):
        spend(ledger, 7, tag=OTHER)
    spend(ledger, 7, tag=OTHER, group=1)  # another group's mask


@pytest.mark.parametrize(("first", "count"), [(10, 5), (8, 3), (12, 1), (14, 4), (10, 4), (11, 4)])
def test_overlapping_ranges_are_refused(ledger: Ledger, first: int, count: int) -> None:
    spend(ledger, 10, 5)
    with pytest.raises(IndexUsed):
        spend(ledger, first, count, OTHER)


def test_a_token_is_billed_once_however_many_layers_and_retries_it_takes(ledger: Ledger) -> None:
    for group in range(3):
        for _ in range(2):
            spend(ledger, 0, 5, group=group)
            spend(ledger, 5, group=group)
    assert billed(ledger) == 6


def test_a_killed_server_forgets_nothing_and_burns_nothing(ledger: Ledger, tmp_path: Path) -> None:
    for index in range(300):
        spend(ledger, index)
    kill(ledger)
    again = Ledger(tmp_path)
    assert (mark(again), billed(again)) == (300, 300)
    spend(again, 299)  # the retry of an answer that was lost on its way
    with pytest.raises(IndexUsed):
        spend(again, 299, tag=OTHER)
    spend(again, 300)
    assert billed(again) == 301


def test_a_power_failure_burns_the_lease_and_bills_nobody_for_it(
    ledger: Ledger, tmp_path: Path, power_failure: Callable[[Ledger], None]
) -> None:
    spend(ledger, 0)
    power_failure(ledger)
    (tmp_path / "journal-0").write_bytes(b"")  # what had not reached the disk
    again = Ledger(tmp_path)
    assert mark(again) == 1 + LEASE_TOKENS
    assert billed(again) == 0
    for index in (0, 1, LEASE_TOKENS):
        with pytest.raises(IndexUsed, match="burned"):
            spend(again, index)
    spend(again, 1 + LEASE_TOKENS)


def test_half_a_journal_after_a_power_failure_is_enough(
    ledger: Ledger, tmp_path: Path, power_failure: Callable[[Ledger], None]
) -> None:
    for index in range(3):
        spend(ledger, index)
    power_failure(ledger)
    path = tmp_path / "journal-0"
    content = path.read_bytes()
    path.write_bytes(content[:48] + bytes(48) + content[96:])
    again = Ledger(tmp_path)
    assert billed(again) == 1
    with pytest.raises(IndexUsed):
        spend(again, 2, tag=OTHER)


def test_a_power_failure_bills_a_token_once_for_all_its_layers(
    ledger: Ledger, tmp_path: Path, power_failure: Callable[[Ledger], None]
) -> None:
    for index in range(3):
        for group in range(4):
            spend(ledger, index, group=group)
    power_failure(ledger)
    again = Ledger(tmp_path)
    assert billed(again) == 3
    with pytest.raises(IndexUsed):
        spend(again, 2, tag=OTHER)
    spend(again, 2)  # the retry of an answer that was lost on its way
    assert billed(again) == 3


def test_a_checkpoint_that_comes_after_the_end_does_nothing(ledger: Ledger) -> None:
    ledger.close()
    ledger.checkpoint()
    ledger.close()


def test_a_clean_stop_burns_nothing(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spend(ledger, 0, 3)
    ledger.close()
    monkeypatch.setattr(module, "_boot_id", lambda: b"another boot")
    again = Ledger(tmp_path)
    assert (mark(again), billed(again)) == (3, 3)
    with pytest.raises(IndexUsed):
        spend(again, 2)
    spend(again, 3)


def test_the_lease_is_durable_before_the_index_is_spent(
    ledger: Ledger, tmp_path: Path, power_failure: Callable[[Ledger], None]
) -> None:
    spend(ledger, 1000)
    power_failure(ledger)
    assert mark(Ledger(tmp_path)) >= 1001


def test_unknown_packs_are_refused(ledger: Ledger) -> None:
    with pytest.raises(UnknownPack):
        spend(ledger, 0, pack=b"x" * 16)
    with pytest.raises(UnknownPack):
        ledger.request_digest(PACK, 9)


def test_forgotten_packs_keep_their_mark(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACK_IDLE_SECONDS", 0.0)
    spend(ledger, 5)
    for number in range(PACKS_IN_MEMORY + 1):
        pack = number.to_bytes(16, "big")
        bind(ledger, pack=pack)
        spend(ledger, 0, pack=pack)
    assert PACK not in ledger._packs
    with pytest.raises(IndexUsed):
        spend(ledger, 5, tag=OTHER)


def test_old_journal_segments_become_a_floor(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "SEGMENT_BYTES", 480)
    for index in range(45):
        spend(ledger, index)
    assert len(list(tmp_path.glob("journal-*"))) == 2
    spend(ledger, 3)  # known to this process, though not to the journal any more
    kill(ledger)
    again = Ledger(tmp_path)
    assert (mark(again), billed(again)) == (45, 45)
    for index in range(45):
        with pytest.raises(IndexUsed):
            spend(again, index, tag=OTHER)
    spend(again, 44)
    spend(again, 45)


def test_threads_cannot_spend_one_index_twice(ledger: Ledger) -> None:
    def attempt(number: int) -> bool:
        try:
            spend(ledger, number % 20, tag=number.to_bytes(16, "big"))
        except IndexUsed:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(400))) == 20
    assert billed(ledger) == 20


def test_one_process_at_a_time(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(LedgerInUse, match="--state"):
        Ledger(tmp_path)
    code = f"from pathlib import Path; from confide.hybrid.server.ledger import Ledger; Ledger(Path({str(tmp_path)!r}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "LedgerInUse" in run.stderr


def test_the_server_key_is_its_owners_alone(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "server.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    kill(ledger)
    path.write_bytes(b"short")
    with pytest.raises(InvalidPackage):
        Ledger(tmp_path)


def test_a_full_disk_answers_nothing_and_bills_nothing(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    spend(ledger, 0)

    def full(file: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(journal.os, "write", full)
        with pytest.raises(LedgerUnavailable, match="No space left"):
            spend(ledger, 1)
    assert (mark(ledger), billed(ledger)) == (1, 1)
    spend(ledger, 1)
    assert billed(ledger) == 2


def test_a_record_that_did_not_fit_leaves_no_trace(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(journal.os, "write", lambda file, data: write(file, data[:10]))
        with pytest.raises(LedgerUnavailable):
            spend(ledger, 0)
    spend(ledger, 1)
    kill(ledger)
    assert billed(Ledger(tmp_path)) == 1


def test_a_database_that_cannot_grow_is_a_clear_error(ledger: Ledger) -> None:
    size = ledger._store._database.execute("PRAGMA page_count").fetchone()[0]
    ledger._store._database.execute(f"PRAGMA max_page_count = {size}")
    packs = (number.to_bytes(16, "big") for number in range(1000))
    with pytest.raises(LedgerUnavailable, match="make room"):
        [bind(ledger, pack=pack) for pack in packs]
    spend(ledger, 0)
    assert billed(ledger) == 1


def test_a_copied_state_folder_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    import shutil

    ledger.close()
    shutil.copytree(tmp_path, tmp_path / "copy", ignore=shutil.ignore_patterns("copy"))
    with pytest.raises(LedgerCopied, match="confide ledger restore"):
        Ledger(tmp_path / "copy")


def test_a_lost_database_is_not_taken_for_a_new_one(ledger: Ledger, tmp_path: Path) -> None:
    ledger.close()
    (tmp_path / "ledger.sqlite").unlink()
    with pytest.raises(LedgerCorrupted, match="server key but no"):
        Ledger(tmp_path)


def test_a_clock_that_went_back_is_refused_until_accepted(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.close()
    earlier = time.time() - 86_400
    monkeypatch.setattr(time, "time", lambda: earlier)
    with pytest.raises(ClockWentBackwards, match="accept-clock"):
        Ledger(tmp_path)
    accept_clock(tmp_path)
    Ledger(tmp_path).close()


def test_a_jump_of_the_clock_while_serving_changes_nothing(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ledger.now()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert abs(ledger.now() - before) < 10


def snapshot(ledger: Ledger) -> object:
    return mark(ledger), billed(ledger), ledger.server_seed, ledger.request_digest(PACK, 0)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_found_or_harmless(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever byte of the database or the journal changes: an error, or the very same record."""
    folder = tmp_path_factory.mktemp("damaged")
    made = Ledger(folder)
    bind(made)
    for index in range(5):
        spend(made, index)
    expected = snapshot(made)
    made.close()
    name = data.draw(st.sampled_from(["ledger.sqlite", "journal-0"]))
    content = bytearray((folder / name).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    with (folder / name).open("r+b") as file:  # the same inode
        file.write(content)
    try:
        again = Ledger(folder)
    except ConfideError:
        return
    assert snapshot(again) == expected
    with pytest.raises(IndexUsed):
        spend(again, 4, tag=OTHER)
    again.close()


@pytest.mark.parametrize("name", ["journal-", "journal-x", "journal-0.bak", "journal--1", "journal-" + "9" * 99])
def test_a_stray_file_among_the_journal_is_named(ledger: Ledger, tmp_path: Path, name: str) -> None:
    ledger.close()
    (ledger._store.path.parent / name).touch()
    with pytest.raises(LedgerCorrupted, match=name):
        Ledger(ledger._store.path.parent)


@pytest.mark.parametrize("name", [b"summ", b"s\xffm"])
def test_a_table_without_its_sums_is_damaged(ledger: Ledger, name: bytes) -> None:
    ledger.close()
    path = ledger._store.path
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("ALTER TABLE server RENAME COLUMN sum TO s0" + "m" * (len(name) - 2))
    path.write_bytes(path.read_bytes().replace(b"s0" + b"m" * (len(name) - 2), name))
    with pytest.raises(LedgerCorrupted):
        Ledger(path.parent)


def test_a_renamed_column_is_found_although_it_is_empty(ledger: Ledger) -> None:
    ledger.licences.create("Example Ltd")
    with closing(sqlite3.connect(ledger._store.path, isolation_level=None)) as database:
        database.execute("ALTER TABLE licences RENAME COLUMN revoked TO fevoked")
    with pytest.raises(LedgerCorrupted):
        ledger.licences.all()


def test_limits_of_the_pack_hold(ledger: Ledger) -> None:
    spend(ledger, LIMIT - 1, tag=TAG)
    assert ledger.usage(PACK).leased_to == LIMIT


def test_a_copy_that_got_the_same_inode_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    """File systems give the numbers of deleted files to new ones."""
    import shutil

    ledger.close()
    path = tmp_path / "ledger.sqlite"
    for _ in range(20):
        shutil.copy2(path, tmp_path / "copy")
        path.unlink()
        shutil.copy2(tmp_path / "copy", path)
        (tmp_path / "copy").unlink()
        with pytest.raises(LedgerCopied):
            Ledger(tmp_path)


def test_more_clients_than_packs_at_hand_are_all_answered(ledger: Ledger, tmp_path: Path) -> None:
    """Each token goes through one layer after the other, and those of all clients interleave."""
    packs = [number.to_bytes(16, "big") for number in range(PACKS_IN_MEMORY + 10)]
    for pack in packs:
        for group in range(3):
            bind(ledger, group, pack=pack)
    for index in range(2):
        for group in range(3):
            for pack in packs:
                spend(ledger, index, group=group, pack=pack)
    assert billed(ledger) == 2 * len(packs)
    kill(ledger)
    again = Ledger(tmp_path)
    assert billed(again) == 2 * len(packs)
    for pack in packs:
        spend(again, 1, group=2, pack=pack)
    assert billed(again) == 2 * len(packs)

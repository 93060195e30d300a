import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from confide.errors import IndexUsed, InvalidPackage, LedgerInUse, RequestConflict, UnknownPack
from confide.hybrid.ledger import LEASE_TOKENS, PACKS_IN_MEMORY, Ledger

PACK, TAG, OTHER = b"p" * 16, b"t" * 16, b"o" * 16
LIMIT = 4096


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    made = Ledger(tmp_path)
    made.bind_request(PACK, 0, b"d" * 32)
    return made


def crash(ledger: Ledger) -> None:
    """What SIGKILL leaves: the lock gone and nothing settled."""
    ledger._database.close()
    ledger._lock.close()


def test_the_first_digest_of_a_request_stays(ledger: Ledger) -> None:
    ledger.bind_request(PACK, 0, b"d" * 32)
    with pytest.raises(RequestConflict):
        ledger.bind_request(PACK, 0, b"e" * 32)
    ledger.bind_request(PACK, 1, b"e" * 32)
    assert ledger.request_digest(PACK, 0) == b"d" * 32
    assert ledger.prepared_groups(PACK) == 2


def test_keys_and_digests_survive_a_crash(ledger: Ledger, tmp_path: Path) -> None:
    before = ledger.server_key, ledger.server_seed
    crash(ledger)
    again = Ledger(tmp_path)
    assert (again.server_key, again.server_seed) == before
    with pytest.raises(RequestConflict):
        again.bind_request(PACK, 0, b"e" * 32)


def test_an_index_is_answered_for_one_value_only(ledger: Ledger) -> None:
    ledger.spend(PACK, 0, 7, 1, TAG, LIMIT)
    ledger.spend(PACK, 0, 7, 1, TAG, LIMIT)  # a retry
    with pytest.raises(IndexUsed):
        ledger.spend(PACK, 0, 7, 1, OTHER, LIMIT)
    ledger.spend(PACK, 1, 7, 1, OTHER, LIMIT)  # another group's mask


@pytest.mark.parametrize(("first", "count"), [(10, 5), (8, 3), (12, 1), (14, 4), (10, 4), (11, 4)])
def test_overlapping_ranges_are_refused(ledger: Ledger, first: int, count: int) -> None:
    ledger.spend(PACK, 0, 10, 5, TAG, LIMIT)
    with pytest.raises(IndexUsed):
        ledger.spend(PACK, 0, first, count, OTHER, LIMIT)


def test_a_crash_burns_the_lease(ledger: Ledger, tmp_path: Path) -> None:
    ledger.spend(PACK, 0, 0, 1, TAG, LIMIT)
    crash(ledger)
    again = Ledger(tmp_path)
    assert again.usage(PACK).mark == 1 + LEASE_TOKENS
    for index in (0, 1, LEASE_TOKENS):
        with pytest.raises(IndexUsed, match="burned"):
            again.spend(PACK, 0, index, 1, TAG, LIMIT)
    again.spend(PACK, 0, 1 + LEASE_TOKENS, 1, TAG, LIMIT)


def test_a_clean_stop_burns_nothing_more(ledger: Ledger, tmp_path: Path) -> None:
    ledger.spend(PACK, 0, 0, 3, TAG, LIMIT)
    ledger.close()
    again = Ledger(tmp_path)
    assert again.usage(PACK).mark == 3
    with pytest.raises(IndexUsed):
        again.spend(PACK, 0, 2, 1, TAG, LIMIT)
    again.spend(PACK, 0, 3, 1, TAG, LIMIT)


def test_the_lease_is_durable_before_the_index_is_spent(ledger: Ledger, tmp_path: Path) -> None:
    ledger.spend(PACK, 0, 1000, 1, TAG, LIMIT)
    crash(ledger)
    assert Ledger(tmp_path).usage(PACK).mark >= 1001


def test_unknown_packs_are_refused(ledger: Ledger) -> None:
    with pytest.raises(UnknownPack):
        ledger.spend(b"x" * 16, 0, 0, 1, TAG, LIMIT)
    with pytest.raises(UnknownPack):
        ledger.request_digest(PACK, 9)


def test_forgotten_packs_keep_their_mark(ledger: Ledger) -> None:
    ledger.spend(PACK, 0, 5, 1, TAG, LIMIT)
    for number in range(PACKS_IN_MEMORY + 1):
        pack = number.to_bytes(16, "big")
        ledger.bind_request(pack, 0, TAG * 2)
        ledger.usage(pack)
    assert PACK not in ledger._packs
    with pytest.raises(IndexUsed):
        ledger.spend(PACK, 0, 5, 1, OTHER, LIMIT)


def test_threads_cannot_spend_one_index_twice(ledger: Ledger) -> None:
    def spend(number: int) -> bool:
        try:
            ledger.spend(PACK, 0, number % 20, 1, number.to_bytes(16, "big"), LIMIT)
        except IndexUsed:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(spend, range(400))) == 20


def test_one_process_at_a_time(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(LedgerInUse, match="--state"):
        Ledger(tmp_path)
    code = f"from pathlib import Path; from confide.hybrid.ledger import Ledger; Ledger(Path({str(tmp_path)!r}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "LedgerInUse" in run.stderr


def test_the_server_key_is_its_owners_alone(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "server.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    crash(ledger)
    path.write_bytes(b"short")
    with pytest.raises(InvalidPackage):
        Ledger(tmp_path)

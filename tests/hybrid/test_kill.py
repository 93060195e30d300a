"""No mask ever carries two values and no token is billed twice, whatever dies when: SIGKILL at random moments."""

import hashlib
import random
import time
from collections import defaultdict
from contextlib import closing
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import pytest

from confide.hybrid import wire
from confide.hybrid.server.ledger import Ledger
from confide.hybrid.server.ledger.journal import Journal
from confide.hybrid.server.ledger.licences import licence_book

from .crashing import MOST_TOKENS, Evidence, Index, Witness, World, processes

CLIENTS = 3


class Log:
    """Every (pack, group, index) the server saw, with the hashes of d that came under it."""

    def __init__(self) -> None:
        self.seen: dict[Index, set[bytes]] = defaultdict(set)

    def __call__(self, message: wire.Online) -> None:
        rows = np.frombuffer(message.masked, np.int32).reshape(message.count, -1)
        for offset, row in enumerate(rows):
            key = (message.pack, message.group, message.first + offset)
            self.seen[key].add(hashlib.sha256(row.tobytes()).digest())

    def keys_with_two_values(self) -> list[Index]:
        return [key for key, hashes in self.seen.items() if len(hashes) > 1]


@pytest.fixture(scope="module")
def warm() -> ForkServerContext:
    return processes()


def spent(state: Path) -> set[Index]:
    """Every index in the journal: what the ledger takes for answered."""
    journal = Journal(state)
    entries = [entry for _, entry in journal.replay()]
    journal.close()
    return {(entry.pack, entry.group, entry.first + place) for entry in entries for place in range(entry.count)}


def tokens(indexes: set[Index]) -> set[tuple[bytes, int]]:
    return {(pack, index) for pack, _, index in indexes}


def kill_repeatedly(warm: ForkServerContext, shell: Path, folder: Path, times: int) -> None:
    with licence_book(folder / "state") as book:
        _, key = book.create("kills", disclosure=None)
    world = World(warm, shell, folder, key, CLIENTS)
    try:
        world.wait_for_progress()
        for _ in range(times):
            time.sleep(random.uniform(0, 0.1))
            world.kill_something()
        world.wait_for_progress()
        world.stop()
    finally:
        world.kill_all()
    require_consistent(folder, world.server_kills + 1)


def require_consistent(folder: Path, server_kills: int) -> None:
    """The order is: seen, then billed, then noted as answered, then sent. So each is a part of the one before."""
    evidence = Evidence.read(folder / "witness")
    assert evidence.with_two_values() == []
    seen, answered, billed = set(evidence.seen), set(evidence.answered), spent(folder / "state")
    assert answered <= billed, "something was answered that was not billed"
    assert billed <= seen, "something was billed that nobody asked for"
    assert len(tokens(answered)) > 10 * server_kills, "there was no load to speak of"
    # A server that is killed has billed at most the one request of each client that it was about to answer.
    assert len(tokens(billed) - tokens(answered)) <= server_kills * CLIENTS * MOST_TOKENS
    with closing(Ledger(folder / "state")) as ledger:
        (licence,) = ledger.licences.all()
        assert ledger._account(licence.id).used == len(tokens(billed)), "a token was billed twice, or not at all"


def test_twenty_kills_of_server_and_clients(warm: ForkServerContext, shell: Path, tmp_path: Path) -> None:
    kill_repeatedly(warm, shell, tmp_path, 20)


@pytest.mark.slow
def test_five_hundred_kills_of_server_and_clients(warm: ForkServerContext, shell: Path, tmp_path: Path) -> None:
    kill_repeatedly(warm, shell, tmp_path, 500)


def test_the_witness_would_show_a_second_value(tmp_path: Path) -> None:
    witness = Witness(tmp_path / "witness")
    for value in (1, 1, 2):
        payload = np.full((2, 8), value, np.int32)
        witness.saw(wire.Online(b"p" * 16, 0, 7, 2, memoryview(payload.tobytes())))
    assert Evidence.read(tmp_path / "witness").with_two_values() == [(b"p" * 16, 0, 7), (b"p" * 16, 0, 8)]


def test_the_log_would_show_a_reused_mask() -> None:
    log = Log()
    for value in (1, 2):
        payload = np.full(8, value, np.int32).tobytes()
        log(wire.Online(b"p" * 16, 0, 7, 1, memoryview(payload)))
    assert len(log.keys_with_two_values()) == 1

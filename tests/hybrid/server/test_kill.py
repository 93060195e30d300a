"""SIGKILL at any moment: no answer is unbilled, nothing is wrong, and clients go on with at most a retry."""

import random
import time
from contextlib import closing
from pathlib import Path

import pytest

from confide.hybrid.server.ledger import Ledger
from confide.hybrid.server.ledger.ledger import MOST_LEASE
from confide.hybrid.server.ledger.licences import licence_book

from .killing import Servers, Traffic, answered, processes
from .world import model

SEED = 11


@pytest.mark.parametrize("kills", [4, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_answer_is_unbilled_whenever_the_server_is_killed(tmp_path: Path, kills: int) -> None:
    with licence_book(tmp_path / "state") as book:
        licence, key = book.create("Example Ltd", disclosure=None)
    randomly = random.Random(SEED)
    servers = Servers(processes(), tmp_path)
    traffic = Traffic(f"ws://127.0.0.1:{servers.port}", key, clients=2)
    witness = tmp_path / "witness"
    try:
        for _ in range(kills):
            before, deadline = traffic.exact, time.monotonic() + 60
            while traffic.exact == before:  # it is up again, and clients have gone on
                assert time.monotonic() < deadline, "the clients are stuck"
                assert not traffic.trouble, traffic.trouble
                time.sleep(0.005)
            time.sleep(randomly.uniform(0, 0.05))
            servers.replace()
    finally:
        traffic.stop()
        servers.kill()
    noted = answered(witness)
    assert sum(noted.values()) > kills
    with closing(Ledger(tmp_path / "state")) as ledger, licence_book(tmp_path / "state") as book:
        account = ledger.authenticate(key, model().signed.release.model_digest)
        for group, tokens in noted.items():
            assert tokens <= account.answered[group] + account.lost
        billed = sum(usage.tokens for usage in book.usage(licence))
        assert max(noted.values()) <= billed == account.used
        # And not much more is billed than was answered: a lease for each kill at most.
        assert billed <= max(noted.values()) + (kills + 1) * (MOST_LEASE + 9)

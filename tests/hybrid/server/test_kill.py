"""SIGKILL at any moment: no answer is unbilled, nothing is wrong, and clients go on with at most a retry."""

import random
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from confide.ledger.address import DatabaseAddress, Place
from confide.ledger.ledger import MOST_LEASE, Ledger
from confide.ledger.licences import licence_book

from .killing import Servers, Traffic, answered, processes
from .world import model, outlast_the_dead

if TYPE_CHECKING:
    from postgres import Postgres

SEED = 11


@pytest.mark.parametrize("kills", [4, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_answer_is_unbilled_whenever_the_server_is_killed(tmp_path: Path, kills: int) -> None:
    with Scene(tmp_path / "state", tmp_path / "witness", servers=1) as scene:
        for _ in range(kills):
            scene.go_on()
            scene.servers[0].replace()
    scene.require_all_billed(kills)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1000])
def test_no_answer_is_unbilled_whichever_of_several_servers_or_their_database_is_killed(
    postgres: "Postgres", database: DatabaseAddress, tmp_path: Path, kills: int
) -> None:
    randomly = random.Random(SEED)
    with Scene(database, tmp_path / "witness", servers=2) as scene:
        for number in range(kills):
            scene.go_on()
            victim = number if number < 3 else randomly.choices((0, 1, 2), (9, 9, 2))[0]
            if victim == 2:
                postgres.kill()
                postgres.start()
            else:
                scene.servers[victim].replace()
    outlast_the_dead(database)
    scene.require_all_billed(kills)


class Scene:
    """Servers of one ledger that are killed, and clients who go on."""

    def __init__(self, place: Place, witness: Path, *, servers: int) -> None:
        self._place, self._witness = place, witness
        self._randomly = random.Random(SEED)
        with licence_book(place) as book:
            self._licence, self._key = book.create("Example Ltd", disclosure=None)
        context = processes()
        self.servers = [Servers(context, place, witness) for _ in range(servers)]
        self._traffic: list[Traffic] = []

    def __enter__(self) -> Self:
        urls = [f"ws://127.0.0.1:{server.port}" for server in self.servers]
        self._traffic = [Traffic(url, self._key, clients=2 // len(urls)) for url in urls]
        return self

    def go_on(self) -> None:
        """Until all servers are up and their clients have gone on, and for a moment."""
        for traffic in self._traffic:
            before, deadline = traffic.exact, time.monotonic() + 60
            while traffic.exact == before:
                assert time.monotonic() < deadline, "the clients are stuck"
                assert not traffic.trouble, traffic.trouble
                time.sleep(0.005)
        time.sleep(self._randomly.uniform(0, 0.05))

    def __exit__(self, *_: object) -> None:
        try:
            for traffic in self._traffic:
                traffic.stop()
        finally:
            for server in self.servers:
                server.kill()

    def require_all_billed(self, kills: int) -> None:
        noted = answered(self._witness)
        assert sum(noted.values()) > kills
        with closing(Ledger(self._place)) as ledger, licence_book(self._place) as book:
            account = ledger.authenticate(self._key, model().signed.release.model_digest)
            assert account.leased_elsewhere == 0
            for group, tokens in noted.items():
                assert tokens <= account.answered[group] + account.lost
            billed = sum(usage.tokens for usage in book.usage(self._licence))
            assert max(noted.values()) <= billed == account.used
            # And not much more is billed than was answered: a lease for each kill at most.
            ends = kills + len(self.servers)
            assert billed <= max(noted.values()) + ends * (MOST_LEASE + 9)

"""Two servers behind a real balancer: what a session sends, to whom, and how often it verifies."""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from confide.attest.policy import SimulatedPolicy
from confide.attest.simulated import SimulatedTee
from confide.client.enclave import EnclaveSession
from confide.enclave.api.answer import Serving
from confide.enclave.api.public import public_app
from confide.enclave.workload import Workload

from ..fake_engine import FakeEngine
from ..nginx import balanced
from ..serving import eventually, serving

COUNT = 6
PAGE = Path(__file__).parents[3] / "docs" / "serving.md"
KEPT = re.findall(r"^upstream replicas {\n(.*?)^ +server ", PAGE.read_text(), re.DOTALL | re.MULTILINE)[0]
"""How the documentation has nginx pick."""


@dataclass
class Balanced:
    """url: nginx's. engines: of the servers behind it. stops: each stops one of these."""

    url: str
    folder: Path
    engines: list[FakeEngine]
    stops: list[ExitStack]

    def session(self) -> EnclaveSession:
        root = self.folder / "tee" / "root.pem"
        return EnclaveSession(self.url, policy=SimulatedPolicy(), simulated_root=root, replicas=2)

    def requests(self, answered: int) -> Counter[str]:
        """What nginx passed on, by its log, once that has so many answers: a line comes after its answer has left."""
        eventually(lambda: self._logged()["/encrypted 200"] >= answered)
        return self._logged()

    def _logged(self) -> Counter[str]:
        lines = (self.folder / "nginx" / "access.log").read_text().splitlines()
        return Counter(" ".join([line.split('"')[1].partition("?")[0].split()[1], line.split()[8]]) for line in lines)


@contextmanager
def behind_nginx(folder: Path, method: str = "") -> Iterator[Balanced]:
    tee = SimulatedTee.create(folder / "tee")
    engines = [FakeEngine(), FakeEngine()]
    with ExitStack() as first, ExitStack() as second:
        stops = [first, second]
        urls = [
            stop.enter_context(serving(public_app(Workload(tee, tee.collateral), Serving(engine))))
            for stop, engine in zip(stops, engines, strict=True)
        ]
        with balanced(folder / "nginx", [urlsplit(url).port or 0 for url in urls], method) as url:
            yield Balanced(url, folder, engines, stops)


def asked(engine: FakeEngine) -> int:
    return len(engine.asked)


def test_in_turns_each_replica_is_verified_once_and_one_of_them_answers(tmp_path: Path) -> None:
    with behind_nginx(tmp_path) as behind, behind.session() as session:
        for index in range(COUNT):
            assert session.chat(f"word {index}") == f"You said: user: word {index}"
            assert session.receipt().verified
        assert len(session.replicas) == 2
        requests = behind.requests(1 + COUNT)
        assert 0 < requests["/attestation 200"] <= 4  # none of it for a request: two would do, in another order
        assert requests["/encrypted 200"] == 1 + COUNT  # the model's name; receipts come with their answers
        assert requests["/encrypted 409"] <= 1 + COUNT
        assert sorted(map(asked, behind.engines)) == [0, COUNT]  # whose cache has the conversation


@pytest.mark.parametrize("method", ["", KEPT], ids=["in turns", "kept"])
def test_the_receipt_of_a_stream_is_fetched_from_whoever_made_it(tmp_path: Path, method: str) -> None:
    with behind_nginx(tmp_path, method) as behind, behind.session() as session:
        model = session.model
        for index in range(COUNT):
            with session.openai.completions.create(model=model, prompt=f"word {index}", stream=True) as stream:
                assert list(stream)
            assert session.receipt().verified
        assert behind.requests(1 + 2 * COUNT)["/encrypted 200"] == 1 + 2 * COUNT  # the model's name, and each receipt


def test_a_balancer_that_keeps_a_client_has_nothing_sent_twice(tmp_path: Path) -> None:
    with behind_nginx(tmp_path, KEPT) as behind, behind.session() as session:
        for index in range(COUNT):
            assert session.chat(f"word {index}") == f"You said: user: word {index}"
        assert behind.requests(1 + COUNT) == {"/attestation 200": 1, "/encrypted 200": 1 + COUNT}


@pytest.mark.parametrize("method", ["", KEPT], ids=["in turns", "kept"])
def test_one_that_stops_is_replaced_without_an_error(tmp_path: Path, method: str) -> None:
    with behind_nginx(tmp_path, method) as behind, behind.session() as session:
        for index in range(2 * COUNT):
            if index == COUNT:
                (answering,) = (number for number, engine in enumerate(behind.engines) if asked(engine))
                behind.stops[answering].close()
            assert session.chat(f"word {index}") == f"You said: user: word {index}"
        assert [asked(engine) for engine in behind.engines] == [COUNT, COUNT]

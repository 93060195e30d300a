"""Several workloads behind one address: a balancer, who may be hostile, picks who gets each request."""

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send
from tests.client.workload import MODEL, FakeWorkload, serving, simulated

from confide.attest.policy import SimulatedPolicy
from confide.attest.requirements import Model
from confide.attest.simulated import SimulatedTee
from confide.channel.keys import ChannelKey
from confide.client.enclave import EnclaveSession
from confide.client.standing import MAX_REPLICAS
from confide.enclave.workload import Workload
from confide.errors import AttestationRefused, KeyChanged, WrongMode

GOOD, BAD = "ab" * 32, "cd" * 32
POLICY = SimulatedPolicy.all_of(Model(GOOD))


@dataclass
class Balanced(FakeWorkload):
    """Takes turns among replicas. pick: whose turn it is, by how many requests came before."""

    replicas: list[FakeWorkload] = field(default_factory=list)
    pick: Callable[[int], int] = lambda count: count
    count: int = 0

    def app(self) -> Starlette:
        apps: dict[int, Starlette] = {}

        async def balance(scope: Scope, receive: Receive, send: Send) -> None:
            one = self.replicas[self.pick(self.count) % len(self.replicas)]
            self.count += 1
            await apps.setdefault(id(one), one.app())(scope, receive, send)

        return balance  # type: ignore[return-value]


def another(folder: Path, digest: str = GOOD) -> FakeWorkload:
    tee = SimulatedTee.open(folder)
    return FakeWorkload(Workload(tee, tee.collateral, model_digest=digest))


@pytest.fixture
def balanced(tmp_path: Path) -> Iterator[Balanced]:
    first = simulated(tmp_path / "tee", model_digest=GOOD)
    fake = Balanced(first.workload, replicas=[first, another(tmp_path / "tee")])
    with serving(fake):
        yield fake


def session(fake: FakeWorkload, folder: Path, replicas: int = 2, **options: Any) -> EnclaveSession:
    root = folder / "tee" / "root.pem"
    return EnclaveSession(fake.url, policy=POLICY, simulated_root=root, replicas=replicas, **options)


@pytest.mark.parametrize("count", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_requests_that_take_turns_are_all_answered(balanced: Balanced, tmp_path: Path, count: int) -> None:
    with session(balanced, tmp_path) as opened:
        for index in range(count):
            assert opened.generate(f"{index} x") == f"{index} x"[::-1]
            assert opened.receipt().verified
        assert len(opened.replicas) == 2
        assert "2 of at most 2 replicas" in str(opened.trust) or opened.result.simulated
    assert sum(len(one.prompts) for one in balanced.replicas) == count + 1  # and its names, once


def test_with_asyncio_too(balanced: Balanced, tmp_path: Path) -> None:
    async def ask() -> list[str]:
        async with session(balanced, tmp_path) as opened:
            made = opened.async_openai.completions
            answers = await asyncio.gather(*(made.create(model=MODEL, prompt=f"{n} x") for n in range(12)))
            return [one.choices[0].text for one in answers]

    assert asyncio.run(ask()) == [f"{n} x"[::-1] for n in range(12)]


def test_a_replica_that_the_policy_refuses_can_read_nothing(balanced: Balanced, tmp_path: Path) -> None:
    balanced.replicas[1] = bad = another(tmp_path / "tee", BAD)
    balanced.count = 1  # it is asked first
    with session(balanced, tmp_path) as opened:
        for index in range(10):
            assert opened.generate(f"{index} x") == f"{index} x"[::-1]
        assert [one.statement.model_digest for one in opened.replicas] == [GOOD]
    assert "/encrypted" in bad.seen
    assert bad.prompts == []
    assert bad.heads == []


def test_with_none_but_that_one_left_the_error_says_why(balanced: Balanced, tmp_path: Path) -> None:
    balanced.replicas[1] = bad = another(tmp_path / "tee", BAD)
    with session(balanced, tmp_path) as opened:
        balanced.pick = lambda count: 1
        with pytest.raises(AttestationRefused, match="model: expected"):
            opened.generate("a secret")
    assert bad.heads == []


@pytest.mark.parametrize("pick", [lambda count: 0, lambda count: 1], ids=["the first", "the second"])
def test_one_that_is_away_is_replaced(balanced: Balanced, tmp_path: Path, pick: Callable[[int], int]) -> None:
    with session(balanced, tmp_path) as opened:
        assert opened.generate("abc") == "cba"
        balanced.pick = pick
        assert [opened.generate("abc") for _ in range(3)] == ["cba"] * 3


def test_one_that_starts_anew_is_verified_anew(balanced: Balanced, tmp_path: Path) -> None:
    with session(balanced, tmp_path) as opened:
        for one in (*balanced.replicas, *balanced.replicas):
            assert opened.generate("abc") == "cba"
            one.restart()
        assert opened.generate("abc") == "cba"
        assert len(opened.replicas) == 2


def test_no_more_are_relied_on_than_were_allowed(balanced: Balanced, tmp_path: Path) -> None:
    balanced.replicas += [another(tmp_path / "tee"), another(tmp_path / "tee")]
    with session(balanced, tmp_path) as opened:
        for _ in range(6):
            with contextlib.suppress(KeyChanged):  # the receipt's replica may be the one too many
                opened.openai.models.list()
            assert len(opened.replicas) <= 2


def test_whoever_names_new_keys_for_ever_is_given_up(balanced: Balanced, tmp_path: Path) -> None:
    """The balancer itself answers: it can deny, at a bounded price."""

    def lie() -> Response:
        return JSONResponse({"error": {"code": "key-changed", "key": secrets.token_hex(32)}}, 409)

    with session(balanced, tmp_path) as opened:
        for one in balanced.replicas:
            one.outer = lie
        with pytest.raises(KeyChanged, match="again and again"):
            opened.generate("a secret")
        seen = [entry for one in balanced.replicas for entry in one.seen]
        assert seen.count("/encrypted") == 24
        assert seen.count("/attestation") <= 1 + 2 * 4
        for one in balanced.replicas:
            one.outer = None
        assert opened.generate("abc") == "cba"


def test_a_key_that_is_named_and_not_attested_is_encrypted_to_by_nobody(balanced: Balanced, tmp_path: Path) -> None:
    """A listener beside the workload names its own key; evidence for it there is none."""
    own = ChannelKey()
    listener = another(tmp_path / "tee", BAD)
    listener.workload.key = own
    balanced.replicas[1] = listener
    with session(balanced, tmp_path) as opened:
        assert [opened.generate("abc") for _ in range(5)] == ["cba"] * 5
        assert own.public.id not in [one.key.id for one in opened.replicas]
    assert listener.heads == []


@pytest.mark.parametrize("replicas", [0, -1, MAX_REPLICAS + 1])
def test_a_number_that_cannot_be(balanced: Balanced, tmp_path: Path, replicas: int) -> None:
    with pytest.raises(ValueError, match="replicas"):
        session(balanced, tmp_path, replicas)


def test_tls_in_the_workload_has_one_end() -> None:
    with pytest.raises(WrongMode, match="replicas"):
        EnclaveSession("https://127.0.0.1:9", ra_tls=True, replicas=2)

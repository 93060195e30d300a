"""A graph that its owners do not show: a coordinator vouches for a promise, and the user learns nothing else."""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

import confide
from confide.attest.chain import read_certificate
from confide.attest.policy import SimulatedPolicy
from confide.attest.policy_toml import to_toml
from confide.attest.requirements import ConfideVersion, Graph, Model
from confide.attest.simulated import SimulatedTee
from confide.client.coordinating import Coordinator
from confide.client.enclave import EnclaveSession
from confide.client.graph import Coordinated, CoordinatedParty, require_met
from confide.client.relying_party import RelyingParty
from confide.enclave.workload import Workload
from confide.errors import (
    AttestationRefused,
    GraphRefused,
    InvalidGraph,
    InvalidSignature,
    MalformedEvidence,
    NeighbourRefused,
)
from confide.graph.history import History
from confide.graph.manifest import Draft
from confide.graph.verdict import SignedVerdict, Verdict, VerdictKey
from confide.version import VERSION

from .graphs import DRAFT, NOW, POLICY, begun, signed, with_digests
from .scene import Packages, Running, running

PROMISE = SimulatedPolicy.all_of(ConfideVersion(versions=(VERSION,)))
HIDDEN = (
    DRAFT.replace('entry = "guard"', 'entry = "guard"\ncoordinator = "clerk"\npromise = "promise.toml"')
    + '\n[services.clerk]\npolicy = "policy.toml"\n'
)


def hidden(digests: dict[str, str], promise: SimulatedPolicy = PROMISE) -> History:
    made = Draft.parse(with_digests(digests, HIDDEN)).version({"policy.toml": POLICY, "promise.toml": to_toml(promise)})
    return History.begin(signed(made), NOW)


@pytest.fixture(scope="module")
def history(packages: Packages) -> History:
    return hidden(dict(packages.digests))


@pytest.fixture(scope="module")
def scene(machine: Path, root_der: bytes, history: History, packages: Packages) -> Iterator[Running]:
    with running(SimulatedTee.open(machine), root_der, history, packages) as scene:
        yield scene


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path / "home"))


def connect(scene: Running, history: History, root: Path, **options: object) -> EnclaveSession:
    given = {"graph": history.id, "coordinator": scene.urls["clerk"], "simulated_root": root, **options}
    session = confide.connect(scene.urls["guard"], **given)  # type: ignore[arg-type]
    assert isinstance(session, EnclaveSession)
    return session


def test_a_user_learns_what_is_promised_and_not_the_graph(scene: Running, history: History, root: Path) -> None:
    with connect(scene, history, root, promise=PROMISE) as session:
        assert session.generate("hello", max_tokens=5) == "You said: hello"
        assert isinstance(session.graph, Coordinated)
        assert session.graph.promise == PROMISE
        assert abs(session.graph.verdict.verdict.checked - datetime.now(UTC)).total_seconds() < 120
        said = str(session.trust) + repr(session.graph.verdict)
        for name in ("model", "retrieval"):
            assert f"workload {name}" not in said
            assert scene.workloads[name].model_digest not in said
        assert "services that are not shown" in said
        assert f"a given Confide: {VERSION}" in said
    for url in scene.urls.values():
        assert httpx.get(f"{url}/graph").status_code in (403, 404)
        assert httpx.get(f"{url}/graph/evidence", params={"nonce": "ab" * 32}).status_code in (403, 404)


def test_what_is_not_shown_is_not_asked_for_in_vain(scene: Running, history: History, root: Path) -> None:
    with pytest.raises(confide.errors.ConfideError):
        connect(scene, history, root, coordinator="")


def test_nobody_vouches_for_a_graph_with_a_service_that_breaks_the_promise(
    scene: Running, history: History, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = scene.workloads["retrieval"].configuration
    odd = msgspec.structs.replace(before.confide, version="0.0.0")
    scene.workloads["retrieval"].configuration = msgspec.structs.replace(before, confide=odd)
    try:
        with pytest.raises(NeighbourRefused) as raised:
            connect(scene, history, root)
    finally:
        scene.workloads["retrieval"].configuration = before
    assert "retrieval" not in str(raised.value)
    assert "retrieval is refused" in caplog.text


def test_nobody_vouches_for_what_its_owners_did_not_sign(
    scene: Running, history: History, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    before, scene.workloads["model"].model_digest = scene.workloads["model"].model_digest, "23" * 32
    try:
        with pytest.raises(NeighbourRefused):
            connect(scene, history, root)
    finally:
        scene.workloads["model"].model_digest = before
    assert "model is refused" in caplog.text


def test_a_promise_of_another_policy_is_none(scene: Running, history: History, root: Path) -> None:
    with pytest.raises(GraphRefused, match="another policy than yours"):
        connect(scene, history, root, promise=SimulatedPolicy())


def test_the_policy_is_for_the_coordinator_which_is_verified_first(
    scene: Running, history: History, root: Path
) -> None:
    with pytest.raises(AttestationRefused):
        connect(scene, history, root, policy=SimulatedPolicy.all_of(Model("ab" * 32)))
    right = Graph(history.id, "clerk", 1, history.current.digest)
    connect(scene, history, root, policy=SimulatedPolicy.all_of(right)).close()


def test_another_service_is_no_coordinator_and_another_entry_is_none(
    scene: Running, history: History, root: Path
) -> None:
    with pytest.raises(GraphRefused, match="another graph, or none"):
        connect(scene, history, root, coordinator=scene.urls["guard"])
    with pytest.raises(GraphRefused, match="another graph, or none"):
        connect(scene, history, root, graph="00" * 32)
    party = CoordinatedParty(history.id, RelyingParty.configure(None, root), scene.urls["clerk"])
    with httpx.Client() as http, pytest.raises(GraphRefused, match="another service than the one at this address"):
        party.verify(http, scene.urls["model"])


@pytest.mark.parametrize(
    "change",
    [{"nonce": "ab" * 32}, {"graph": "ab" * 32}, {"digest": "ab" * 32}, {"version": 2}, {"entry": "ab" * 32},
     {"promise": POLICY}],
    ids=["nonce", "graph", "digest", "version", "entry", "promise"],
)  # fmt: skip
def test_a_coordinator_says_what_its_evidence_says(
    scene: Running, history: History, root: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object]
) -> None:
    """Its signature is right, and what it signs is not."""
    key = scene.workloads["clerk"].verdict_key
    assert key is not None
    sign = key.sign
    monkeypatch.setattr(key, "sign", lambda verdict: sign(msgspec.structs.replace(verdict, **change)))
    with pytest.raises(GraphRefused):
        connect(scene, history, root)


def test_a_verdict_is_signed_by_the_key_that_evidence_speaks_for(
    scene: Running, history: History, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = scene.workloads["clerk"].verdict_key
    assert key is not None
    monkeypatch.setattr(key, "sign", VerdictKey().sign)
    with pytest.raises(InvalidSignature):
        connect(scene, history, root)


def test_a_coordinator_that_was_rolled_back_is_refused(scene: Running, history: History, root: Path) -> None:
    connect(scene, history, root).close()
    joined = history.current.joined(history.id, "clerk")
    require_met(msgspec.structs.replace(joined, version=2, digest="ab" * 32), simulated=True)
    with pytest.raises(GraphRefused, match="rolled back"):
        connect(scene, history, root)


def test_a_coordinator_needs_every_address_and_a_graph_that_has_one(machine: Path, root: Path) -> None:
    der = read_certificate(root.read_bytes(), "root").public_bytes(Encoding.DER)
    workload = Workload(SimulatedTee.open(machine))
    with pytest.raises(InvalidGraph, match="has no coordinator"):
        Coordinator(begun(), workload, root=der, urls={})
    with pytest.raises(InvalidGraph, match="address of each"):
        Coordinator(hidden({}), workload, root=der, urls={"guard": "http://127.0.0.1:1"})


def test_a_verdict_and_back() -> None:
    key, made = VerdictKey(), Verdict(1, "ab" * 32, "cd" * 32, 3, "ef" * 32, POLICY, "01" * 32, NOW)
    made_signed = SignedVerdict.decode(key.sign(made).encode())
    made_signed.require_signed(key.public.hex())
    changed = msgspec.structs.replace(made_signed, verdict=msgspec.structs.replace(made, version=4))
    for odd in (changed, msgspec.structs.replace(made_signed, signature="00" * 64)):
        with pytest.raises(InvalidSignature):
            odd.require_signed(key.public.hex())
    for public in ("", "zz", "00" * 31):
        with pytest.raises(InvalidSignature):
            made_signed.require_signed(public)
    for content in (b"", b"{}", b"[" * 100_000, key.sign(made).encode()[:-1]):
        with pytest.raises(MalformedEvidence):
            SignedVerdict.decode(content)

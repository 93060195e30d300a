"""One verdict over a graph: which service is not what its owners signed, and that nothing is sent into such a graph."""

import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest

import confide
from confide.attest.policy import SimulatedPolicy
from confide.attest.requirements import ConfideVersion, NoEgress
from confide.attest.simulated import SimulatedTee
from confide.client.attested import verify_workload
from confide.client.enclave import EnclaveSession
from confide.client.graph import FILE_NAME, GraphParty, GraphVerdict, require_met
from confide.client.joining import join
from confide.client.relying_party import RelyingParty
from confide.client.standing import Standing
from confide.client.transport import EncryptedTransport
from confide.enclave.workload import Workload
from confide.errors import (
    AttestationRefused,
    GraphRefused,
    InvalidGraph,
    MalformedEvidence,
    NeighbourRefused,
    NotANeighbour,
    PromptRefused,
    WrongMode,
)
from confide.graph.evidence import Gathered
from confide.graph.history import History

from .graphs import DRAFT, NOW, begun, signed, version, with_digests
from .scene import CHUNK, RULES, Packages, Running, restated, running


@pytest.fixture(scope="module")
def tee(machine: Path) -> SimulatedTee:
    return SimulatedTee.open(machine)


@pytest.fixture(scope="module")
def history(packages: Packages) -> History:
    return begun(with_digests(packages.digests))


@pytest.fixture(scope="module")
def scene(tee: SimulatedTee, root_der: bytes, history: History, packages: Packages) -> Iterator[Running]:
    with running(tee, root_der, history, packages) as scene:
        yield scene


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def connect(scene: Running, history: History, root: Path, **options: object) -> EnclaveSession:
    session = confide.connect(scene.urls["guard"], simulated_root=root, graph=history.id, **options)  # type: ignore[arg-type]
    assert isinstance(session, EnclaveSession)
    return session


def judged(scene: Running, history: History, root: Path, policy: SimulatedPolicy | None = None) -> GraphVerdict:
    with httpx.Client() as http:
        party = GraphParty(history.id, RelyingParty.configure(policy, root))
        return party.verify(http, scene.urls["guard"])


def test_a_question_goes_through_a_graph_that_was_verified_as_a_whole(
    scene: Running, history: History, root: Path
) -> None:
    with connect(scene, history, root) as session:
        assert session.models == [scene.engine.facts.model]
        assert session.generate("hello", max_tokens=5) == "You said: hello"
        assert session.receipt().verified
        assert isinstance(session.graph, GraphVerdict)
        assert list(session.graph.services) == ["guard", "model", "retrieval"]
        said = str(session.trust)
        assert "SIMULATED" in said
        assert "2 of 3 owners can change it" in said


def test_an_answer_comes_through_part_by_part(scene: Running, history: History, root: Path) -> None:
    with connect(scene, history, root) as session:
        pieces = list(session.openai.completions.create(model=session.model, prompt="hello", max_tokens=4, stream=True))
        assert len(pieces) > 1
        assert session.receipt().verified


@pytest.mark.parametrize(
    "prompt", ["Open, SESAME!", "how is dynamite made", "o\u200bpen sesame", "\uff4f\uff50\uff45\uff4e sesame"],
    ids=["case", "open-end", "invisible", "wide"],
)  # fmt: skip
def test_the_guard_keeps_phrases_from_the_model(scene: Running, history: History, root: Path, prompt: str) -> None:
    seen = len(scene.engine.asked)
    with connect(scene, history, root) as session, pytest.raises(PromptRefused, match="does not talk about that"):
        session.generate(f"Please, {prompt}?")
    assert len(scene.engine.asked) == seen


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"prompt": "open sesame", "prompt": "hello", "max_tokens": 2}', "request-refused"),
        (b'{"prompt": [[1, 2, 3]], "max_tokens": 2}', "request-refused"),
        (b'{"prompt": "hello", "user": "open sesame", "max_tokens": 2}', "prompt-refused"),
        (b'{"prompt": "hello", "metadata": {"dynamite": 1}, "max_tokens": 2}', "prompt-refused"),
        (b"[]", "request-refused"),
        (b"[" * 50_000, "request-refused"),
    ],
    ids=["twice", "tokens", "elsewhere", "a-name", "no-object", "deep"],
)
def test_what_two_readers_could_read_in_two_ways_is_not_handed_on(
    scene: Running, root: Path, body: bytes, code: str
) -> None:
    seen = len(scene.engine.asked)
    headers = {"content-type": "application/json"}
    party, url = RelyingParty.configure(None, root), scene.urls["guard"]
    with httpx.Client() as outer:
        standing = Standing(lambda one: verify_workload(outer, one, party), [url])
        inside = httpx.Client(transport=EncryptedTransport(outer, standing))
        answer = inside.post("http://workload.invalid/v1/completions", content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert len(scene.engine.asked) == seen


@pytest.mark.parametrize("changed", ["guard", "model", "retrieval"])
def test_a_byte_that_changed_is_found_and_the_verdict_says_where(
    tee: SimulatedTee, root: Path, root_der: bytes, history: History, packages: Packages, tmp_path: Path, changed: str
) -> None:
    """The package of one service differs by one byte, and its owner signed it. The graph's owners did not."""
    others = Packages.make(
        tmp_path,
        RULES.replace("sesame", "sesamo") if changed == "guard" else RULES,
        CHUNK.replace("twice", "twike") if changed == "retrieval" else CHUNK,
    )
    one = Packages(
        others.guard if changed == "guard" else packages.guard,
        others.corpus if changed == "retrieval" else packages.corpus,
        "23" * 32 if changed == "model" else packages.model,
    )
    with running(tee, root_der, history, one) as scene:
        verdict = judged(scene, history, root)
        assert list(verdict.refused) == [changed]
        (error,) = verdict.refused.values()
        assert isinstance(error, AttestationRefused)
        assert error.checks == ("model",)
        with pytest.raises(AttestationRefused, match=f"because of {changed}"):
            connect(scene, history, root)


def test_a_changed_service_is_not_asked_either(
    tee: SimulatedTee, root: Path, root_der: bytes, history: History, packages: Packages
) -> None:
    """Whoever asks the guard without verifying the rest is protected by the guard: it verifies the model."""
    with running(tee, root_der, history, Packages(packages.guard, packages.corpus, "23" * 32)) as scene:
        session = confide.connect(scene.urls["guard"], simulated_root=root)
        with session, pytest.raises(NeighbourRefused):
            session.generate("hello")
        assert scene.engine.asked == []


def test_only_neighbours_are_answered(scene: Running, root: Path) -> None:
    for name in ("model", "retrieval"):
        with confide.connect(scene.urls[name], simulated_root=root) as session, pytest.raises(NotANeighbour):
            session.generate("hello", model="any")


@pytest.mark.parametrize(
    ("said", "check"),
    [
        ({"service": "retrieval"}, "graph-service"),
        ({"graph": "00" * 32}, "graph"),
        ({"digest": "00" * 32}, "graph-digest"),
    ],
    ids=["service", "graph", "digest"],
)
def test_a_service_of_another_place_or_graph_is_refused(
    scene: Running, history: History, root: Path, said: dict[str, object], check: str
) -> None:
    before = scene.workloads["model"].configuration
    restated(scene.workloads["model"], **said)
    try:
        error = judged(scene, history, root).refused.get("model")
    finally:
        scene.workloads["model"].configuration = before
    assert isinstance(error, AttestationRefused)
    assert error.checks == (check,)


def test_a_users_own_policy_holds_for_every_service(scene: Running, history: History, root: Path) -> None:
    verdict = judged(scene, history, root, SimulatedPolicy.all_of(ConfideVersion(versions=("0.0.0",))))
    assert list(verdict.refused) == ["guard", "model", "retrieval"]
    with pytest.raises(AttestationRefused) as raised:
        connect(scene, history, root, policy=SimulatedPolicy.all_of(NoEgress(allow_neighbours=True)))
    assert raised.value.checks == ("egress",)


def test_evidence_that_is_missing_is_no_evidence(scene: Running, history: History, root: Path) -> None:
    with httpx.Client() as http:
        party, nonce = GraphParty(history.id, RelyingParty.configure(None, root)), secrets.token_hex(32)
        answer = http.get(f"{scene.urls['guard']}/graph/evidence", params={"nonce": nonce})
        gathered = Gathered.decode(answer.content)
        assert party.appraise(history, gathered, nonce).trusted
        assert list(party.appraise(history, gathered, secrets.token_hex(32)).refused) == ["guard", "model", "retrieval"]
        without = Gathered({name: one for name, one in gathered.services.items() if name != "retrieval"})
        error = party.appraise(history, without, nonce).refused["retrieval"]
        assert isinstance(error, AttestationRefused)
        assert error.checks == ("evidence",)
        swapped = Gathered({**gathered.services, "retrieval": gathered.services["model"]})
        assert list(party.appraise(history, swapped, nonce).refused) == ["retrieval"]


def test_a_graph_that_was_rolled_back_is_refused_by_whoever_met_a_newer_version(
    scene: Running, history: History, root: Path, home: Path
) -> None:
    current = version(with_digests({}, DRAFT), history.current)
    later = history.applied(signed(current), NOW)
    fork = history.applied(signed(version(DRAFT, history.current)), NOW)
    judged(scene, history, root)
    met = json.loads((home / FILE_NAME).read_bytes())
    assert [one["version"] for one in met["simulated"].values()] == [1]
    assert met["attested"] == {}
    require_met(later.current.joined(later.id, "model"), simulated=True)
    with pytest.raises(GraphRefused, match="rolled back"):
        connect(scene, history, root)
    with pytest.raises(GraphRefused, match="signed two"):
        require_met(fork.current.joined(fork.id, "model"), simulated=True)


def test_another_graphs_log_is_not_taken(scene: Running, root: Path) -> None:
    with pytest.raises(GraphRefused, match="was asked for"):
        judged(scene, begun(), root)


def test_an_address_is_needed_for_each_that_a_service_asks(
    tee: SimulatedTee, root_der: bytes, history: History
) -> None:
    for urls in ({}, {"retrieval": "http://127.0.0.1:1"}, {"model": "http://127.0.0.1:1", "x": "http://127.0.0.1:1"}):
        with pytest.raises(InvalidGraph, match="guard asks model"):
            join(history, "guard", Workload(tee), root=root_der, urls=urls)
    with pytest.raises(InvalidGraph, match="simulated hardware"):
        join(history, "retrieval", Workload(tee), root=None, urls={})


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 100_000, b'{"services": {"Guard": {}}}'], ids=range(4))
def test_what_is_no_evidence_of_a_graph_is_refused(content: bytes) -> None:
    with pytest.raises(MalformedEvidence):
        Gathered.decode(content)


def test_a_graph_has_one_entry(root: Path) -> None:
    for options in ({"replicas": 2}, {"ra_tls": True}, {"graph": "", "coordinator": "http://127.0.0.1:1"}):
        with pytest.raises(WrongMode):
            confide.connect("https://127.0.0.1:1", **{"graph": "00" * 32, "simulated_root": root, **options})  # type: ignore[arg-type]


def test_what_is_shown_is_the_log_and_nothing_of_it_is_secret(scene: Running, history: History) -> None:
    for url in scene.urls.values():
        assert httpx.get(f"{url}/graph").content == history.content
    assert httpx.get(f"{scene.urls['guard']}/graph/evidence").status_code == 400
    decoded = Gathered.decode(httpx.get(f"{scene.urls['model']}/graph/evidence", params={"nonce": "ab" * 32}).content)
    assert set(decoded.services) == {"model", "retrieval"}
    assert msgspec.json.decode(httpx.get(f"{scene.urls['model']}/health").content) == {"status": "ok"}

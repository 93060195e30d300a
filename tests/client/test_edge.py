"""Two services, each of which verifies the other: who is asked, who may ask, and what is made of a stranger's words."""

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import httpx
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from tests.enclave.serving import serving

from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence, Family
from confide.attest.policy import SimulatedPolicy
from confide.attest.requirements import Model
from confide.attest.simulated import SimulatedTee
from confide.attest.wire import Attested
from confide.channel.introduction import NONCE_PATH, PATH, SESSION, UNKNOWN, Introduced, Introduction, token_info
from confide.channel.keys import ChannelKey
from confide.client.attested import fetch_attestation, verify_workload
from confide.client.edge import Edge, callers
from confide.client.joining import stapled
from confide.client.relying_party import RelyingParty
from confide.client.standing import Standing
from confide.client.transport import EncryptedTransport
from confide.enclave.api.limits import Limits
from confide.enclave.api.metrics import Metrics
from confide.enclave.api.neighbours import SESSION_SECONDS, Neighbours
from confide.enclave.api.public import workload_app
from confide.enclave.connector import Connector
from confide.enclave.tee import Tee
from confide.enclave.workload import Workload
from confide.errors import ChannelRefused, EngineUnavailable, InsecureConnection, NeighbourRefused

ASKING, ANSWERING = "ab" * 32, "cd" * 32
"""Digests of what the two have."""


@dataclass
class Echo:
    """A service that says what it was asked."""

    limits: Limits = field(default_factory=lambda: Limits(attestations_per_second=1000))
    metrics: Metrics = field(default_factory=Metrics)
    seen: list[str] = field(default_factory=list)
    users: None = None
    traces: None = None

    def require_sound(self) -> None:
        pass

    def require_alive(self) -> None:
        pass

    def app(self) -> Starlette:
        async def say(request: Request) -> Response:
            self.seen.append((await request.body()).decode())
            return JSONResponse({"said": self.seen[-1]})

        return Starlette(routes=[Route("/v1/say", say, methods=["POST"]), Route("/health", lambda _: Response())])


@dataclass
class Scene:
    """A service, and a workload that would ask it."""

    tee: SimulatedTee
    root: Path
    asking: Workload
    answering: Workload
    echo: Echo = field(default_factory=Echo)
    now: list[float] = field(default_factory=lambda: [0.0])
    url: str = ""
    app: Starlette = field(default_factory=Starlette)

    def restart(self, digest: str) -> None:
        """The service begins anew, with what has this digest."""
        self.answering = Workload(self.tee, self.tee.collateral, model_digest=digest)
        front = callers({"front": self.party(ASKING)})
        neighbours = Neighbours(self.answering.key, front, clock=lambda: self.now[0])
        self.app = workload_app(
            self.answering, self.echo, "echo", self.echo.app(), ("/v1",), tls_ends_here=False, neighbours=neighbours
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)

    def party(self, digest: str) -> RelyingParty:
        return RelyingParty.configure(SimulatedPolicy.all_of(Model(digest)), self.root)

    def edge(self, workload: Workload | None = None, digest: str = ANSWERING, name: str = "front") -> Edge:
        return Edge(self.url, workload or self.asking, self.party(digest), name=name)

    @contextmanager
    def stranger(self) -> Iterator[httpx.Client]:
        """Whoever has verified the service, and is no neighbour: inside the channel."""
        with httpx.Client() as outer:
            standing = Standing(lambda url: verify_workload(outer, url, self.party(ANSWERING)), [self.url])
            yield httpx.Client(transport=EncryptedTransport(outer, standing), base_url="http://x.invalid")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("machine")
    SimulatedTee.create(folder)
    return folder


@pytest.fixture
def scene(machine: Path) -> Iterator[Scene]:
    tee, root = SimulatedTee.open(machine), machine / "root.pem"
    asking, answering = (Workload(tee, tee.collateral, model_digest=one) for one in (ASKING, ANSWERING))
    made = Scene(tee, root, asking, answering)
    made.restart(ANSWERING)
    with serving(made) as made.url:
        yield made


def count_attestations(workload: Workload) -> list[str]:
    """The nonces for which it makes evidence from now on."""
    nonces: list[str] = []
    attest = workload.attest

    def counted(nonce: str) -> Attested:
        nonces.append(nonce)
        return attest(nonce)

    workload.attest = counted  # type: ignore[method-assign]
    return nonces


def ask(edge: Edge, *texts: str) -> list[str]:
    async def work() -> list[str]:
        async with edge.client() as client:
            answers = [await client.post("/v1/say", content=text) for text in texts]
            return [answer.raise_for_status().json()["said"] for answer in answers]

    return asyncio.run(work())


def test_two_that_verified_each_other_talk(scene: Scene) -> None:
    attested = count_attestations(scene.asking)
    assert ask(scene.edge(), "one", "two") == ["one", "two"] == scene.echo.seen
    assert len(attested) == 1  # once for the session, and not for each question


@pytest.mark.parametrize("name", ["front", "back"])
def test_who_is_no_neighbour_is_not_answered(scene: Scene, name: str, caplog: pytest.LogCaptureFixture) -> None:
    other = Workload(scene.tee, scene.tee.collateral, model_digest="ef" * 32 if name == "front" else ASKING)
    with pytest.raises(NeighbourRefused, match="does not let this one in"):
        ask(scene.edge(other, name=name), "let me in")
    assert scene.echo.seen == []
    assert f"called itself {name} was refused" in caplog.text


def test_nothing_is_sent_to_who_is_not_what_it_has_to_be(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(NeighbourRefused) as raised:
        ask(scene.edge(digest="ef" * 32), "secret")
    assert scene.echo.seen == []
    assert "Failed: model" in caplog.text
    assert scene.url not in str(raised.value)  # the user is not told what stands behind
    assert "model" not in str(raised.value)


def test_who_is_away_is_said_to_be(scene: Scene) -> None:
    edge = Edge("http://127.0.0.1:9", scene.asking, scene.party(ANSWERING), name="front")
    with pytest.raises(EngineUnavailable, match="away"):
        ask(edge, "hello")


def test_a_stranger_in_the_channel_learns_that_it_is_none_and_how_the_service_is(scene: Scene) -> None:
    with scene.stranger() as inside:
        for headers in ({}, {SESSION: ""}, {SESSION: "00" * 32}, {SESSION: "no hexadecimal"}):
            answer = inside.post("/v1/say", content="hello", headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "not-a-neighbour")
            assert answer.headers[SESSION] == UNKNOWN
        assert inside.get("/v1/aci/attestation").status_code == 403
        assert inside.get("/health").status_code == 200
    assert scene.echo.seen == []


def test_evidence_that_is_passed_on_opens_nothing(scene: Scene) -> None:
    """Anybody can have a neighbour's evidence for any nonce. The token is for whoever has that neighbour's key."""
    with scene.stranger() as inside:
        nonce = inside.post(NONCE_PATH).json()["nonce"]
        body = msgspec.json.encode(Introduction("front", scene.asking.attest(nonce)))
        answer = inside.post(PATH, content=body)
        assert answer.status_code == 200
        wrapped = msgspec.json.decode(answer.content, type=Introduced).wrapped
        info = token_info(scene.answering.key.public.id, nonce)
        with pytest.raises(ChannelRefused):
            ChannelKey().decrypt(wrapped, info)
        token = scene.asking.key.decrypt(wrapped, info).hex()
        assert inside.post("/v1/say", content="hello", headers={SESSION: token}).status_code == 200
        with pytest.raises(ChannelRefused):  # nor is it another service's
            scene.asking.key.decrypt(wrapped, token_info(ChannelKey().public.id, nonce))
        assert inside.post(PATH, content=body).status_code != 200  # a nonce is good once


def test_evidence_for_a_nonce_of_ones_own_is_refused(scene: Scene) -> None:
    with scene.stranger() as inside:
        body = msgspec.json.encode(Introduction("front", scene.asking.attest(secrets.token_hex(32))))
        assert inside.post(PATH, content=body).status_code != 200
        for content in (b"", b"{}", b"[" * 100_000, body[:-1], body.replace(b'"front"', b'"Front"')):
            answer = inside.post(PATH, content=content)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "request-refused")


def test_a_session_ends_and_is_made_anew(scene: Scene) -> None:
    edge, attested = scene.edge(), count_attestations(scene.asking)

    async def work() -> None:
        async with edge.client() as client:
            await client.post("/v1/say", content="one")
            scene.now[0] += SESSION_SECONDS - 1
            await client.post("/v1/say", content="two")
            assert len(attested) == 1
            scene.now[0] += 2
            assert (await client.post("/v1/say", content="three")).json() == {"said": "three"}

    asyncio.run(work())
    assert scene.echo.seen == ["one", "two", "three"]  # what was refused was not answered
    assert len(attested) == 2


def test_a_neighbour_that_was_restarted_is_verified_anew(scene: Scene) -> None:
    """With another key, by the same policy and a new introduction; one that became another is not asked."""
    edge = scene.edge()

    async def work() -> None:
        async with edge.client() as client:
            await client.post("/v1/say", content="one")
            scene.restart(ANSWERING)
            assert (await client.post("/v1/say", content="two")).json() == {"said": "two"}
            scene.restart("ef" * 32)
            with pytest.raises(NeighbourRefused):
                await client.post("/v1/say", content="three")

    asyncio.run(work())
    assert scene.echo.seen == ["one", "two"]


def test_evidence_is_public_and_says_nothing_of_sessions(scene: Scene) -> None:
    """A neighbour is verified before it is asked, by the very evidence that everybody gets."""
    nonce = secrets.token_hex(32)
    with httpx.Client() as http:
        attested = fetch_attestation(http, scene.url, nonce)
    assert scene.party(ANSWERING).appraise(attested, nonce, datetime.now(UTC)).key.id == scene.answering.key.public.id


def test_a_process_without_ways_out_asks_through_its_connector(scene: Scene) -> None:
    """Both what verifies and what asks: the address that is named is never looked up."""
    with Connector.to(scene.url) as connector:
        edge = Edge(
            "http://nowhere.invalid", scene.asking, scene.party(ANSWERING), name="front", connector=connector,
            insecure_no_tls=True,
        )  # fmt: skip
        assert ask(edge, "one") == ["one"]


def test_what_is_said_beyond_this_machine_has_tls(scene: Scene) -> None:
    with pytest.raises(InsecureConnection):
        Edge("http://192.0.2.1", scene.asking, scene.party(ANSWERING), name="front")


def test_who_has_no_way_out_later_finds_its_own_collateral_first(scene: Scene) -> None:
    """On real hardware; a simulated machine is its own vendor."""
    found, asked = Collateral({"tcb": b"{}"}), []

    class Vendor:
        def find(self, evidence: Evidence, sent: Collateral) -> Collateral:
            asked.append(evidence)
            return found

        def learn(self, claims: object, provenance: object) -> None:
            raise AssertionError

    evidence = Evidence(Family.TDX, b"quote")
    real = Tee("tdx", SimpleNamespace(read=lambda data: evidence, name="tdx"))  # type: ignore[arg-type]
    collateral = stapled(real, Vendor())
    assert collateral() is collateral() is found
    assert asked == [evidence]
    assert stapled(Tee("simulated", scene.tee, scene.tee.collateral), Vendor())().documents
    assert len(asked) == 1

"""What the network sees: evidence, the encrypted channel, and a refusal of everything in the clear."""

import asyncio
import contextlib
import hashlib
import ssl
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from confide.attest.evidence import Evidence
from confide.attest.ra_tls import extract, open_certificate, verify_binding
from confide.attest.simulated import SimulatedTee
from confide.attest.verifier import Verifier
from confide.channel.encryption import MEDIA_TYPE
from confide.enclave.api.answer import Serving
from confide.enclave.api.limits import Limits
from confide.enclave.api.public import private_app, public_app
from confide.enclave.ra_tls import RaTls, ra_tls_context
from confide.enclave.workload import Workload
from confide.errors import EvidenceUnavailable

from ..encrypted_client import ask, asking, attested_key, encrypted
from ..fake_engine import FakeEngine
from ..serving import eventually, serving


@pytest.fixture(scope="module")
def tee(tmp_path_factory: pytest.TempPathFactory) -> SimulatedTee:
    return SimulatedTee.create(tmp_path_factory.mktemp("tee"))


@pytest.fixture(scope="module")
def workload(tee: SimulatedTee) -> Workload:
    return Workload(tee, tee.collateral)


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="module")
def shown(engine: FakeEngine) -> Serving:
    return Serving(engine, limits=Limits(attestations_per_second=1000))


@pytest.fixture(scope="module")
def client(workload: Workload, shown: Serving, engine: FakeEngine) -> Iterator[httpx.Client]:
    with serving(public_app(workload, shown)) as url:
        with httpx.Client(base_url=url) as client:
            yield client
    assert engine.closed


def test_from_evidence_to_an_answer(client: httpx.Client, tee: SimulatedTee) -> None:
    key = attested_key(client, tee)
    assert ask(client, key, "/generate", {"query": "hello"}) == (200, {"response": "You said: hello"})
    status, error = ask(client, key, "/v1/completions", {"model": "echo", "prompt": "x", "grammar": "root ::= 1"})
    assert (status, error["error"]["param"]) == (400, "grammar")
    assert ask(client, key, "/attestation", {})[0] == 404


def test_a_stream_arrives_frame_by_frame(client: httpx.Client, tee: SimulatedTee, engine: FakeEngine) -> None:
    key = attested_key(client, tee)
    engine.pause = 0.05
    body = {"model": "echo", "prompt": "word " * 300, "stream": True}
    with asking(client, key, "/v1/completions", body) as (head, frames):
        assert dict(head.headers)["content-type"].startswith("text/event-stream")
        assert b'"You "' in next(frames)
        assert b'"said: "' in next(frames)
        assert engine.running == 1
    eventually(lambda: engine.running == 0)  # the client has left
    assert engine.stopped == 1
    engine.pause = 0


def test_a_repeated_request_is_refused(client: httpx.Client, workload: Workload) -> None:
    _, request = encrypted(workload.key.public, "/generate", {"query": "hello"})
    headers = {"content-type": MEDIA_TYPE}
    assert client.post("/encrypted", content=request, headers=headers).status_code == 200
    again = client.post("/encrypted", content=request, headers=headers)
    assert (again.status_code, again.json()["error"]["code"]) == (400, "channel-refused")


@pytest.mark.parametrize("nonce", ["", "ab" * 31, "ab" * 65, "AB" * 32, "zz" * 32, "ab" * 32 + "c", "ab" * 32 + "\n"])
def test_an_odd_nonce_is_refused(client: httpx.Client, nonce: str) -> None:
    response = client.get("/attestation", params={"nonce": nonce})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "nonce")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/generate", "/chat"])
def test_questions_in_the_clear_are_refused_with_advice(client: httpx.Client, path: str) -> None:
    response = client.post(path, content=b'{"model": "echo", "messages": []}')
    assert response.status_code == 403
    assert "confide chat" in response.json()["error"]["message"]


def test_health_and_nothing_else_in_public(client: httpx.Client, tee: SimulatedTee, shown: Serving) -> None:
    assert client.get("/health").json() == client.get("/health/live").json() == {"status": "ok"}
    key = attested_key(client, tee)
    ask(client, key, "/generate", {"query": "sesame"})
    client.post("/encrypted", content=b"?", headers={"content-type": MEDIA_TYPE})
    assert client.get("/metrics").status_code == 404
    text = TestClient(private_app(shown)).get("/metrics").text
    assert 'confide_requests_total{endpoint="/generate",status="200"}' in text
    assert 'confide_channel_refusals_total{code="channel-refused"}' in text
    assert "confide_answers_running 0.0" in text
    assert "sesame" not in text
    assert client.get("/elsewhere").status_code == 404
    assert client.get("/encrypted").status_code == 405


def test_evidence_has_its_pace_and_may_be_missing(tee: SimulatedTee) -> None:
    class Broken:
        name = "broken"

        def read(self, report_data: bytes) -> None:
            raise EvidenceUnavailable("The machine gives none; ask its operator.")

    serving_one = Serving(FakeEngine(), limits=Limits(attestations_per_second=1))
    with serving(public_app(Workload(Broken()), serving_one)) as url:  # type: ignore[arg-type]
        started = time.monotonic()
        found = [httpx.get(f"{url}/attestation?nonce={'ab' * 32}") for _ in range(3)]
        assert time.monotonic() - started > 0.5
    assert [one.status_code for one in found] == [503, 503, 503]
    assert found[0].json()["error"]["code"] == "evidence-unavailable"


def test_ra_tls_ends_inside(tee: SimulatedTee) -> None:
    workload = Workload(tee, tee.collateral)
    context = ra_tls_context(workload)
    app = public_app(workload, Serving(FakeEngine()), tls_ends_here=True)
    with serving(app, context) as url:
        port = int(url.rsplit(":", 1)[1])
        certificate = ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", port)))
        claims = Verifier(tee.roots()).verify(extract(certificate), tee.collateral(), datetime.now(UTC))
        verify_binding(certificate, claims)
        command = ["curl", "--silent", "--insecure", f"{url}/generate", "--data", '{"query": "hello"}']
        found = subprocess.run(command, capture_output=True, timeout=900, check=True)
        assert found.stdout == b'{"response":"You said: hello"}'
        with httpx.Client(base_url=url, verify=False) as client:  # noqa: S501 - the key is attested below
            key = attested_key(client, tee)
            assert ask(client, key, "/generate", {"query": "hello"})[1] == {"response": "You said: hello"}
    assert len(bytes.fromhex(workload.tls_spki)) == 32
    assert workload.attest("ab" * 32).statement.channel_keys["tls"] == workload.tls_spki


def test_clients_that_know_no_evidence_find_their_names_in_the_certificate(tee: SimulatedTee, tmp_path: Path) -> None:
    """curl with the certificate as its authority, which is how Cosmian's clients pin it."""
    workload = Workload(tee, tee.collateral)
    with serving(public_app(workload, Serving(FakeEngine()), tls_ends_here=True), ra_tls_context(workload)) as url:
        port = url.rsplit(":", 1)[1]
        pinned = tmp_path / "pinned.pem"
        pinned.write_text(ssl.get_server_certificate(("127.0.0.1", int(port))))
        for host in ("127.0.0.1", "localhost"):
            command = ["curl", "--silent", "--noproxy", "*", "--cacert", str(pinned), f"https://{host}:{port}/health"]
            assert subprocess.run(command, capture_output=True, timeout=900, check=True).stdout == b'{"status":"ok"}'
        elsewhere = ["--resolve", f"models.example:{port}:127.0.0.1", f"https://models.example:{port}/health"]
        refused = subprocess.run([*command[:-1], *elsewhere], capture_output=True, timeout=900, check=False)
        assert refused.returncode == 60


def test_a_certificate_is_renewed_under_the_same_key(tee: SimulatedTee) -> None:
    class Counting:
        name = "counting"

        def __init__(self) -> None:
            self.asked = 0

        def read(self, report_data: bytes) -> Evidence:
            self.asked += 1
            if self.asked == 3:
                raise EvidenceUnavailable("The machine gives none; ask its operator.")
            return tee.read(report_data)

    reader = Counting()
    workload = Workload(reader, tee.collateral)  # type: ignore[arg-type]
    own = RaTls(workload)

    async def a_while() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(3):
                await own.keep_current(every=0.05, retry=0.05)

    with serving(public_app(workload, Serving(FakeEngine()), tls_ends_here=True), own.context) as url:
        address = "127.0.0.1", int(url.rsplit(":", 1)[1])
        before = ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(address))
        asyncio.run(a_while())
        after = ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(address))
    assert reader.asked > 4  # also after the one that failed
    assert before != after
    assert open_certificate(before).spki == open_certificate(after).spki
    assert workload.tls_spki == hashlib.sha256(open_certificate(after).spki).hexdigest()
    verify_binding(after, Verifier(tee.roots()).verify(extract(after), tee.collateral(), datetime.now(UTC)))


def test_tokens_are_counted_coarsely() -> None:
    metrics = Serving(FakeEngine()).metrics
    for tokens, shown in ((999, 0), (1, 1000), (2500, 3000), (499, 3000), (1, 4000)):
        metrics.answer_tokens.add(tokens)
        assert metrics.registry.get_sample_value("confide_answer_tokens_total") == shown

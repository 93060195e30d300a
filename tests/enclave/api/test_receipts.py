"""Receipts as clients get them: over exactly what they sent and got, in a chain, and under an attested key."""

import asyncio
import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from confide.attest.configuration import Egress
from confide.attest.simulated import SimulatedTee
from confide.attest.verifier import Verifier
from confide.enclave.api.answer import Serving
from confide.enclave.api.app import api_app
from confide.enclave.api.limits import Limits
from confide.enclave.api.problems import HANDLERS
from confide.enclave.api.public import public_app
from confide.enclave.api.receipts import Receipted, Receipts
from confide.enclave.configuration import configuration_with, own_configuration
from confide.enclave.workload import Workload
from confide.errors import EngineError
from confide.receipts.documents import digest_of
from confide.receipts.events import sampling_event
from confide.receipts.keyset import Keyset, report_data
from confide.receipts.receipt import WITH_ANSWER, Receipt
from confide.receipts.report import Report

from ..encrypted_client import ask, attested_key
from ..fake_engine import FakeEngine

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "echo", "messages": [{"role": "user", "content": "hello"}], "temperature": 0.5},
    "/v1/completions": {"model": "echo", "prompt": "hello", "max_tokens": 7},
    "/v1/embeddings": {"model": "echo", "input": "hello"},
    "/v1/responses": {"model": "echo", "input": "hello"},
    "/v1/messages": {"model": "echo", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 7},
}


@pytest.fixture(scope="module")
def tee(tmp_path_factory: pytest.TempPathFactory) -> SimulatedTee:
    return SimulatedTee.create(tmp_path_factory.mktemp("tee"))


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def workload(tee: SimulatedTee, engine: FakeEngine) -> Workload:
    configuration = configuration_with(own_configuration(), engine, Egress.NONE)  # type: ignore[arg-type]
    return Workload(tee, tee.collateral, model_digest="ab" * 32, configuration=configuration)


@pytest.fixture
def client(workload: Workload, engine: FakeEngine) -> Iterator[TestClient]:
    shown = Serving(engine, limits=Limits(attestations_per_second=1000))  # type: ignore[arg-type]
    with TestClient(public_app(workload, shown, tls_ends_here=True)) as client:
        yield client


def fetched(client: TestClient, answer: httpx.Response) -> Receipt:
    found = client.get(f"/v1/aci/receipts/{answer.headers['confide-receipt']}")
    assert found.status_code == 200
    assert found.headers["cache-control"] == "no-store"
    return Receipt.read(found.content)


def hashes(receipt: Receipt, kind: str) -> list[str]:
    return [event["body_hash"] for event in receipt.events(kind)]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", BODIES)
def test_a_receipt_is_over_the_exact_bytes(client: TestClient, workload: Workload, path: str, stream: bool) -> None:
    if stream and path == "/v1/embeddings":
        pytest.skip("embeddings are not streamed")
    body = b"  " + json.dumps(BODIES[path] | ({"stream": True} if stream else {}), indent=3).encode()
    answer = client.post(path, content=body)
    assert answer.status_code == 200
    receipt = fetched(client, answer)
    assert receipt.fields.event_log[0]["type"] == "request.received"
    assert hashes(receipt, "request.received") == hashes(receipt, "request.forwarded") == [digest_of(body)]
    assert hashes(receipt, "response.returned") == [digest_of(answer.content)]
    assert receipt.fields.endpoint == path
    assert receipt.fields.model == "echo"
    assert receipt.fields.receipt_id == answer.headers["confide-receipt"] == answer.headers["x-receipt-id"]
    assert answer.headers["x-aci-keyset-digest"] == receipt.fields.workload_keyset_digest == workload.keyset.digest
    key = workload.keyset.signing_key(receipt.fields.key_id)
    assert key is not None
    assert receipt.signed_by(key)
    if path != "/v1/embeddings":
        said = json.loads(answer.text.split("\n\n")[0].split("data: ")[1] if stream else answer.text)
        said = said.get("response") or said.get("message") or said
        assert receipt.fields.chat_id == said["id"]


@pytest.mark.parametrize("path", BODIES)
def test_a_receipt_comes_with_a_whole_answer_where_it_is_asked_for(client: TestClient, path: str) -> None:
    answer = client.post(path, json=BODIES[path], headers={WITH_ANSWER: "1"})
    together = Receipt.read(base64.b64decode(answer.headers[WITH_ANSWER], validate=True))
    assert together.document == fetched(client, answer).document
    assert hashes(together, "response.returned") == [digest_of(answer.content)]
    for headers in ({}, {WITH_ANSWER: "0"}):
        assert WITH_ANSWER not in client.post(path, json=BODIES[path], headers=headers).headers
    if path != "/v1/embeddings":
        stream = client.post(path, json=BODIES[path] | {"stream": True}, headers={WITH_ANSWER: "1"})
        assert WITH_ANSWER not in stream.headers  # there is none yet when a stream begins
        assert fetched(client, stream)
    refused = client.post(path, json={}, headers={WITH_ANSWER: "1"})
    assert (refused.status_code, WITH_ANSWER in refused.headers) == (400, False)


def test_a_receipt_that_is_long_is_fetched(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("confide.enclave.api.receipts.MAX_WITH_ANSWER", 100)
    answer = client.post("/v1/completions", json=BODIES["/v1/completions"], headers={WITH_ANSWER: "1"})
    assert WITH_ANSWER not in answer.headers
    assert fetched(client, answer)


def test_an_answer_in_parts_is_as_it_was(workload: Workload) -> None:
    """What comes in several parts begins before there is a receipt, whatever its type."""

    async def parts(_: Request) -> StreamingResponse:
        return StreamingResponse(iter([b"[1,", b"2]"]), media_type="application/json")

    app = Receipted(Starlette(routes=[Route("/parts", parts, methods=["POST"])]), Receipts(workload, "m"))
    with TestClient(app) as client:
        answer = client.post("/parts", headers={WITH_ANSWER: "1"}, content=b"x")
    assert (answer.json(), WITH_ANSWER in answer.headers) == ([1, 2], False)


def test_a_stream_begins_at_once(workload: Workload) -> None:
    """Its head does not wait for the first part, which may take a while."""
    sent: list[Message] = []
    heads: list[int] = []

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        heads.append(len(sent))
        await send({"type": "http.response.body", "body": b"data: {}\n\n"})

    async def receive() -> Message:
        return {"type": "http.request", "body": b"x"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/s", "headers": [(WITH_ANSWER.encode(), b"1")]}
    asyncio.run(Receipted(stream, Receipts(workload, "m"))(scope, receive, send))
    assert heads == [1]
    assert len(sent) == 2


def test_what_the_answer_was_made_with(client: TestClient, workload: Workload) -> None:
    receipt = fetched(client, client.post("/v1/completions", json=BODIES["/v1/completions"]))
    events = {event["type"]: event for event in receipt.fields.event_log}
    assert events["confide.model"]["digest"] == "ab" * 32
    assert events["confide.weights"]["digest"] == "11" * 32
    assert events["confide.engine"]["name"] == "fake"
    assert events["confide.build"]["digest"] == workload.configuration.confide.digest
    numbers = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_tokens": 7}
    canonical = json.dumps(numbers, sort_keys=True, separators=(",", ":")).replace(".0", "").encode()
    assert events["confide.sampling"]["digest"] == digest_of(canonical)


def test_receipts_are_a_chain(client: TestClient) -> None:
    receipts = [fetched(client, client.post("/v1/completions", json=BODIES["/v1/completions"])) for _ in range(3)]
    places = [next(receipt.events("confide.chain")) for receipt in receipts]
    assert [place["sequence"] for place in places] == [1, 2, 3]
    assert [place["previous"] for place in places] == [None, receipts[0].digest, receipts[1].digest]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", b"{}"),
        ("/v1/completions", b""),
        ("/v1/chat/completions", b'{"model": "other", "messages": [{"role": "user", "content": "x"}]}'),
    ],
)
def test_what_was_not_answered_there_has_no_receipt(client: TestClient, path: str, body: bytes) -> None:
    assert "confide-receipt" not in client.post(path, content=body).headers
    receipt = fetched(client, client.post("/v1/completions", json=BODIES["/v1/completions"]))
    assert next(receipt.events("confide.chain"))["sequence"] == 1


def test_a_stream_that_breaks_has_its_error_in_the_receipt(client: TestClient, engine: FakeEngine) -> None:
    engine.broken = EngineError("gone")
    answer = client.post("/v1/completions", json=BODIES["/v1/completions"] | {"prompt": "a b c", "stream": True})
    assert "error" in answer.text
    assert hashes(fetched(client, answer), "response.returned") == [digest_of(answer.content)]


@pytest.mark.parametrize("name", ["x", "rcpt", "%2e%2e", "0" * 48])
def test_an_id_that_nobody_gave(client: TestClient, name: str) -> None:
    client.post("/v1/completions", json=BODIES["/v1/completions"])
    found = client.get(f"/v1/aci/receipts/{name}")
    assert (found.status_code, found.json()["error"]["type"]) == (404, "not_found")


def test_ids_are_long_and_differ(client: TestClient) -> None:
    ids = {client.post("/v1/embeddings", json=BODIES["/v1/embeddings"]).headers["confide-receipt"] for _ in range(4)}
    assert len(ids) == 4
    assert all(len(bytes.fromhex(one)) >= 16 for one in ids)


def test_the_oldest_are_dropped(workload: Workload) -> None:
    receipts = Receipts(workload, "echo", kept=2)
    for name in ("a", "b", "c"):
        receipts.issue(name, None, "/v1/completions", [], digest_of(b""))
    shown = Starlette(routes=[Route("/{id}", receipts.show)], exception_handlers=HANDLERS)
    with TestClient(shown) as client:
        assert [client.get(f"/{name}").status_code for name in ("a", "b", "c")] == [404, 200, 200]


def test_the_statement_has_the_keyset(client: TestClient, workload: Workload) -> None:
    said = workload.attest("ab" * 32).statement
    assert Keyset.parse(said.channel_keys["aci-keyset"]).digest == workload.keyset.digest
    assert said.channel_keys["hpke"] == workload.key.public.raw.hex()


@pytest.mark.parametrize("nonce", ["5a" * 32, None])
def test_the_report_binds_the_keyset(
    client: TestClient, workload: Workload, tee: SimulatedTee, nonce: str | None
) -> None:
    answer = client.get("/v1/aci/attestation", params={"nonce": nonce} if nonce else {})
    report = Report.read(answer.content)
    assert report.keyset.digest == report.keyset_digest == workload.keyset.digest
    expected = report_data(report.keyset_digest, nonce)
    assert report.report_data == expected[:32].hex()
    assert report.evidence is not None
    claims = Verifier(tee.roots()).verify(report.evidence, report.collateral, datetime.now(UTC))
    assert claims.report_data == expected
    assert answer.json()["service_capabilities"]["serving"] == "direct"


def test_a_release_goes_along(tee: SimulatedTee) -> None:
    report = Report.read(Workload(tee, tee.collateral, release=b"whatever it is").report(None))
    assert report.collateral.documents["release"] == b"whatever it is"


@pytest.mark.parametrize("nonce", ["", "ab", "AB" * 32, "ab" * 33, "zz" * 32])
def test_an_odd_nonce_is_refused(client: TestClient, nonce: str) -> None:
    answer = client.get("/v1/aci/attestation", params={"nonce": nonce})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


def test_through_the_channel_alone(workload: Workload, engine: FakeEngine, tee: SimulatedTee) -> None:
    with TestClient(public_app(workload, Serving(engine))) as client:  # type: ignore[arg-type]
        key = attested_key(client, tee)
        assert ask(client, key, "/v1/completions", BODIES["/v1/completions"])[0] == 200
        for path in ("/v1/aci/attestation", "/v1/aci/receipts/x"):
            assert client.get(path).status_code == 403


def test_numbers_that_json_cannot_have() -> None:
    defaults = own_configuration().sampling
    assert defaults is None
    from confide.attest.configuration import SamplingDefaults

    made = SamplingDefaults(1.0, 1.0, 0, 10)
    assert sampling_event(b'{"seed": 18446744073709551615}', made) != sampling_event(b'{"seed": 1}', made)
    assert sampling_event(b'{"temperature": "x"}', made) is None
    assert sampling_event(b'{"a":' + b"[" * 100_000, made) is None
    assert sampling_event(msgspec.json.encode({"max_completion_tokens": 3}), made) == sampling_event(
        b'{"max_tokens": 3}', made
    )
    assert sampling_event(b'{"max_output_tokens": 3}', made) == sampling_event(b'{"max_tokens": 3}', made)


def test_whatever_is_asked_by_post_has_receipts(client: TestClient, engine: FakeEngine) -> None:
    """A client that was promised receipts refuses an answer without one."""
    bodies = BODIES | {
        "/v1/messages/count_tokens": {"model": "echo", "messages": [{"role": "user", "content": "hello"}]},
        "/generate": {"query": "hello"},
        "/chat": {"prompt": "aGVsbG8="},
    }
    routes = api_app(Serving(engine)).routes  # type: ignore[arg-type]
    posted = {route.path for route in routes if isinstance(route, Route) and "POST" in (route.methods or ())}
    with_licences = {"/v1/usage"}  # see test_users.py: a_user_may_have_the_count_with_a_receipt
    assert posted == set(bodies) | with_licences
    for path, body in bodies.items():
        fetched(client, client.post(path, json=body))

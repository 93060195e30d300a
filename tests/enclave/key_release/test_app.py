"""The broker over HTTP: what strangers can send, and what they hear."""

import json
import logging
from collections.abc import Iterator
from dataclasses import replace

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient
from tests.enclave.key_release.scene import KEY, Scene

from confide.broker.app import key_broker_app
from confide.channel.key_release import MAX_REQUEST_BYTES, NonceAnswer, ReleaseAnswer
from confide.channel.nonces import Nonces
from confide.errors import KeyStoreError
from confide.logs import TextLines


@pytest.fixture
def client(scene: Scene) -> Iterator[TestClient]:
    with TestClient(key_broker_app(scene.broker, lambda: scene.now)) as client:
        yield client


def said(response: httpx.Response) -> tuple[int, str]:
    """Status and code of a refusal."""
    return response.status_code, response.json()["error"]["code"]


def test_nonce_and_release(client: TestClient, scene: Scene) -> None:
    nonce = msgspec.json.decode(client.post("/nonce").content, type=NonceAnswer).nonce
    request = scene.request(nonce)
    response = client.post("/release", content=msgspec.json.encode(request))
    assert response.headers["cache-control"] == "no-store"
    answer = msgspec.json.decode(response.content, type=ReleaseAnswer)
    assert scene.open(request, answer) == KEY
    assert scene.logged[-1].entry.peer == "testclient"


def test_refusals_have_a_status_a_code_and_the_checks(client: TestClient, scene: Scene) -> None:
    scene.workload.model_digest = "cd" * 32
    request = msgspec.json.encode(scene.request())
    refusal = client.post("/release", content=request)
    assert said(refusal) == (403, "key-refused")
    assert refusal.json()["error"]["checks"] == ["model"]
    assert said(client.post("/release", content=request)) == (409, "nonce-refused")
    unknown = msgspec.json.encode(scene.request(key="0" * 32))
    assert said(client.post("/release", content=unknown)) == (404, "unknown-model-key")


def test_too_many_nonces(client: TestClient, scene: Scene) -> None:
    scene.broker = replace(scene.broker, nonces=Nonces(limit=2))
    busy = TestClient(key_broker_app(scene.broker, lambda: scene.now))
    assert [busy.post("/nonce").status_code for _ in range(2)] == [200, 429]  # one asker gets half of them
    refused = busy.post("/nonce")
    assert said(refused) == (429, "server-busy")
    assert refused.headers["retry-after"] == "60"


def test_bodies_are_bounded(client: TestClient) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(2 * MAX_REQUEST_BYTES >> 20):
            yield bytes(1 << 20)

    assert said(client.post("/release", content=endless())) == (413, "request-too-large")


def test_other_paths_and_methods(client: TestClient) -> None:
    assert said(client.get("/nonce")) == (405, "malformed-message")
    assert said(client.post("/keys")) == (404, "malformed-message")


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=300) | _json.map(lambda value: json.dumps(value).encode()))
def test_anything_that_is_no_request_is_refused(client: TestClient, scene: Scene, body: bytes) -> None:
    assert said(client.post("/release", content=body)) == (400, "malformed-message")
    assert scene.logged == []


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_requests_with_other_values_are_refused(client: TestClient, scene: Scene, data: st.DataObject) -> None:
    request = msgspec.json.decode(msgspec.json.encode(scene.request()))
    path = data.draw(
        st.sampled_from(
            [
                ("key",),
                ("attested",),
                ("attested", "evidence"),
                ("attested", "evidence", "family"),
                ("attested", "evidence", "raw"),
                ("attested", "evidence", "members"),
                ("attested", "statement"),
                ("attested", "statement", "nonce"),
                ("attested", "statement", "model_digest"),
                ("attested", "statement", "policy_version"),
                ("attested", "statement", "channel_keys"),
                ("attested", "collateral"),
            ]
        )
    )
    place = request
    for name in path[:-1]:
        place = place.setdefault(name, {})
    value = data.draw(_json)
    left_out = {"policy_version": ""}.get(path[-1], [])  # What a statement says that does not mention it.
    assume(value != place.get(path[-1], left_out))
    place[path[-1]] = value
    status, _ = said(client.post("/release", content=json.dumps(request).encode()))
    assert status in (400, 403, 404, 409)


@pytest.mark.parametrize("text", ["\ud800", "\x00", "\u202e", "x" * 100_000])
def test_strange_texts_in_a_statement(client: TestClient, scene: Scene, text: str) -> None:
    request = msgspec.json.decode(msgspec.json.encode(scene.request()))
    request["attested"]["statement"]["policy_version"] = text
    request["attested"]["statement"]["channel_keys"] = {text: text}
    status, _ = said(client.post("/release", content=json.dumps(request).encode()))
    assert status in (400, 403)


def test_strangers_hear_nothing_of_what_fails_inside(
    client: TestClient, scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for problem in (KeyStoreError("The file /secret/place was changed."), RuntimeError(KEY.raw.hex())):

        def fail(key: str, problem: Exception = problem) -> None:
            raise problem

        monkeypatch.setattr(scene.store, "get", fail)
        with caplog.at_level(logging.ERROR):
            response = client.post("/release", content=msgspec.json.encode(scene.request()))
        assert said(response) == (500, "server-fault")
        assert "/secret" not in response.text
        assert KEY.raw.hex() not in response.text
    lines = [TextLines("%(message)s").format(record) for record in caplog.records]
    assert any("/secret/place" in line for line in lines)
    assert not any(KEY.raw.hex() in line for line in lines)

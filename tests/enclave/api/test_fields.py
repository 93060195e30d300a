"""Fields of requests: what is offered, what has no effect, and what is refused by name."""

from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.enclave.fake_engine import FakeEngine

from confide.enclave.api.answer import Serving
from confide.enclave.api.app import api_app
from confide.errors import ConversationRefused, EngineFault

CANNOT = frozenset({"response_format"})
CLIENT = TestClient(api_app(Serving(FakeEngine(cannot=CANNOT))), raise_server_exceptions=False)
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ASKED: dict[str, dict[str, Any]] = {
    CHAT: {"model": "echo", "messages": [{"role": "user", "content": "hi"}]},
    TEXT: {"model": "echo", "prompt": "hi"},
    "/v1/embeddings": {"model": "echo", "input": "hi"},
    "/generate": {"query": "hi"},
    "/chat": {"prompt": "aGk="},
}
CHANGING = {
    "stop_token_ids": [5],
    "guided_json": {"type": "object"},
    "guided_choice": ["a"],
    "json_schema": {},
    "grammar": 'root ::= "a"',
    "min_tokens": 3,
    "n_predict": 2,
    "repeat_penalty": 1.1,
    "repetition_penalty": 1.2,
    "mirostat": 2,
    "ignore_eos": True,
    "use_beam_search": True,
    "reasoning_effort": "high",
    "tool_choice": "required",
    "response_format": {"type": "json_object"},
    "n": True,
    "never heard of": 0,
}
HARMLESS: list[dict[str, Any]] = [
    {"user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "flex", "safety_identifier": "x"},
    {"n": 1, "presence_penalty": 0.0, "logit_bias": {}, "tools": [], "min_p": 0, "repeat_penalty": 1.0},
    {"prediction": {"type": "content", "content": "x"}, "prompt_cache_retention": "24h", "prompt_cache_key": "x"},
    {"grammar": None, "never heard of": None, "min_tokens": 0, "stop_token_ids": [], "ignore_eos": False},
]


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize("name", CHANGING)
def test_what_could_change_an_answer_is_refused_by_name(path: str, name: str) -> None:
    refused = CLIENT.post(path, json=ASKED[path] | {name: CHANGING[name]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, name)
    assert f"`{name}`" in refused.json()["error"]["message"]


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize("more", HARMLESS)
def test_what_changes_nothing_passes(path: str, more: dict[str, Any]) -> None:
    assert CLIENT.post(path, json=ASKED[path] | more).status_code == 200


def test_a_fields_name_is_shown_without_controls_and_short() -> None:
    refused = CLIENT.post(TEXT, json=ASKED[TEXT] | {"\x1b[2J" + "x" * 1000: 1}).json()["error"]
    assert "\x1b" not in refused["message"] + refused["param"]
    assert len(refused["message"]) < 200


@pytest.mark.parametrize(
    "turn",
    [
        {"content": None},
        {},
        {"content": "a", "tool_calls": []},
        {"content": None, "tool_calls": None, "function_call": None, "audio": None, "refusal": None, "annotations": []},
        {"content": "a", "name": "me", "reasoning_content": "thought"},
        {"content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
    ],
)
def test_an_assistants_turn_as_clients_keep_it(turn: dict[str, Any]) -> None:
    user = {"role": "user", "content": "hi"}
    answer = CLIENT.post(CHAT, json={"model": "echo", "messages": [user, {"role": "assistant"} | turn, user]})
    assert answer.status_code == 200
    assert f"assistant: {'a' if turn.get('content') else ''}" in answer.json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "user", "content": None},
        {"role": "system"},
        {"role": "assistant", "content": "a", "prefix": True},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "user", "content": [{"type": "text", "text": "a", "weight": 2}]},
    ],
)
def test_turns_that_are_not_offered_are_refused(turn: dict[str, Any]) -> None:
    refused = CLIENT.post(CHAT, json={"model": "echo", "messages": [turn]})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"].startswith("messages[0]")


def test_one_model_by_its_name() -> None:
    (listed,) = CLIENT.get("/v1/models").json()["data"]
    assert CLIENT.get("/v1/models/echo").json() == listed
    for other in ("gpt-4", "echo/2", "..%2fechoes", "%1b"):
        refused = CLIENT.get(f"/v1/models/{other}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("error", "status", "kind", "param"),
    [
        (EngineFault("It failed; ask again."), 502, "server_error", None),
        (ConversationRefused("No."), 400, "invalid_request_error", "messages"),
    ],
)
def test_whose_fault_an_error_is(error: Exception, status: int, kind: str, param: str | None) -> None:
    client = TestClient(api_app(Serving(FakeEngine(broken=error))), raise_server_exceptions=False)
    refused = client.post(TEXT, json=ASKED[TEXT] | {"prompt": "a b c"})
    assert refused.status_code == status
    assert (refused.json()["error"]["type"], refused.json()["error"]["param"]) == (kind, param)


@pytest.mark.parametrize("path", [CHAT, TEXT, "/generate", "/chat"])
def test_a_salt_reaches_the_engine_and_one_that_could_be_guessed_is_refused(path: str) -> None:
    engine = FakeEngine()
    client = TestClient(api_app(Serving(engine)), raise_server_exceptions=False)
    salt = "5a" * 32
    assert client.post(path, json=ASKED[path], headers={"Confide-Cache-Salt": salt}).status_code == 200
    assert client.post(path, json=ASKED[path]).status_code == 200
    assert [one.salt for one in engine.asked] == [bytes.fromhex(salt), None]
    assert salt not in repr(engine.asked)
    for odd in ("", "mine", salt[1:], salt + "00", salt.upper(), "zz" * 32):
        refused = client.post(path, json=ASKED[path], headers={"Confide-Cache-Salt": odd})
        assert refused.status_code == 400
        assert "confide-cache-salt" in refused.json()["error"]["message"]
        assert not odd or odd not in refused.text
    twice = client.post(path, json=ASKED[path], headers=[("confide-cache-salt", salt), ("confide-cache-salt", salt)])
    assert twice.status_code == 400
    assert len(engine.asked) == 2

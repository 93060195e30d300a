"""Whatever is sent, it is answered with a clean error, and the server lives."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.channel.encryption import MEDIA_TYPE
from confide.channel.keys import ChannelKey
from confide.channel.middleware import EncryptedChannel
from confide.enclave.api.answer import Serving
from confide.enclave.api.app import api_app
from confide.enclave.api.messages import CountRequest, MessageRequest
from confide.enclave.api.responses import ResponseRequest
from confide.enclave.api.schemas import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    GenerateRequest,
    PromptRequest,
    parse,
)
from confide.errors import RequestRefused

from ..fake_engine import FakeEngine

APP = api_app(Serving(FakeEngine()))
KEY = ChannelKey()
CHANNEL = EncryptedChannel(APP, KEY, body_bytes=1 << 20, body_seconds=1)
PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages",
         "/v1/messages/count_tokens", "/generate", "/chat"]  # fmt: skip
FIELDS = ["model", "messages", "prompt", "query", "input", "history", "stream", "stream_options", "max_tokens",
          "temperature", "top_p", "stop", "seed", "n", "tools", "logprobs", "encoding_format", "role", "content",
          "type", "text", "include_usage", "max_completion_tokens",
          "logit_bias", "top_logprobs", "best_of", "echo", "min_p", "presence_penalty", "5",
          "response_format", "json_schema", "schema", "name",
          "instructions", "include", "tool_choice", "call_id", "arguments", "output", "system", "stop_sequences",
          "input_schema", "tool_use_id", "id", "format", "function", "parameters", "tool_calls"]  # fmt: skip
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from(["echo", "user", "system", "text", "aGk=", "float", 1, 0.5, 10**400, "message", "tool_use",
                     "tool_result", "function_call", "function", "{}"]),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5),
    max_leaves=12,
)
VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "echo", "messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"model": "echo", "prompt": "hi"},
    "/v1/embeddings": {"model": "echo", "input": "hi"},
    "/v1/responses": {"model": "echo", "input": "hi"},
    "/v1/messages": {"model": "echo", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9},
    "/v1/messages/count_tokens": {"model": "echo", "messages": [{"role": "user", "content": "hi"}]},
    "/generate": {"query": "hi"},
    "/chat": {"prompt": "aGk="},
}


def post(path: str, body: bytes, app: Any = APP, media_type: str = "application/json") -> httpx.Response:
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            return await client.post(path, content=body, headers={"content-type": media_type})

    return asyncio.run(ask())


def check(path: str, body: bytes) -> None:
    response = post(path, body)
    assert response.status_code == 200 or 400 <= response.status_code < 500
    if response.status_code != 200:
        fields = {"message", "type"} if path.startswith("/v1/messages") else {"message", "type", "param", "code"}
        assert response.json()["error"].keys() == fields


@settings(deadline=None, max_examples=100)
@given(path=st.sampled_from(PATHS), body=st.binary(max_size=60))
def test_noise(path: str, body: bytes) -> None:
    check(path, body)


@settings(deadline=None, max_examples=300)
@given(path=st.sampled_from(PATHS), content=VALUES)
def test_any_json(path: str, content: object) -> None:
    check(path, json.dumps(content).encode())


@settings(deadline=None, max_examples=300)
@given(path=st.sampled_from(PATHS), field=st.sampled_from(FIELDS), value=VALUES)
def test_a_good_request_with_one_odd_field(path: str, field: str, value: object) -> None:
    check(path, json.dumps(VALID[path] | {field: value}).encode())


@pytest.mark.parametrize("path", PATHS)
def test_the_good_ones_are_good(path: str) -> None:
    assert post(path, json.dumps(VALID[path]).encode()).status_code == 200


FORMAT = {"type": "json_schema"}
NESTED: dict[str, Any] = {}
for _ in range(40):
    NESTED = {"items": NESTED}
OWN = {"type": "object", "x-guidance": {"whitespace_flexible": True}}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"temperature": 3}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 8193}, "max_tokens"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"seed": 1 << 63}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0]"),
        ({"messages": [{"role": "function", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "assistant", "content": "a", "tool_calls": [{}]}]}, "messages[0].tool_calls[0]"),
        ({"n": 17}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"echo": True}, "echo"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_object", "schema": {}}}, "response_format"),
        ({"response_format": FORMAT | {"json_schema": {"name": "a b"}}}, "response_format.json_schema.name"),
        ({"response_format": FORMAT | {"json_schema": {"name": "a", "schema": NESTED}}}, "response_format"),
        ({"response_format": FORMAT | {"json_schema": {"name": "a", "schema": {"x": "y" * 33000}}}}, "response_format"),
        ({"response_format": FORMAT | {"json_schema": {"name": "a", "schema": OWN}}}, "response_format"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"five": 1}}, "logit_bias"),
        ({"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"min_p": -0.1}, "min_p"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
    ],
)
def test_the_field_to_blame_is_named(change: dict[str, Any], field: str) -> None:
    body = json.dumps(VALID["/v1/chat/completions"] | change).encode()
    response = post("/v1/chat/completions", body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["type"]) == (field, "invalid_request_error")
    assert field.rsplit(".", 1)[-1] in error["message"] or field == "max_tokens"


HIDDEN = "\x1b[2Jhidden"


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("/v1/chat/completions", {"response_format": {"type": HIDDEN}}),
        ("/v1/chat/completions", {"messages": [{"role": HIDDEN, "content": "a"}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": HIDDEN, "text": "a"}]}]}),
        ("/v1/chat/completions", {"tool_choice": HIDDEN}),
        ("/v1/responses", {"input": [{"type": HIDDEN}]}),
        ("/v1/responses", {"text": {"format": {"type": HIDDEN}}}),
        ("/v1/responses", {"include": [HIDDEN]}),
        ("/v1/messages", {"messages": [{"role": "user", "content": [{"type": HIDDEN}]}]}),
        ("/v1/messages", {"tool_choice": {"type": HIDDEN}}),
        ("/v1/messages", {"system": [{"type": HIDDEN}]}),
    ],
)
def test_no_value_of_a_request_is_in_its_error(path: str, change: dict[str, Any]) -> None:
    response = post(path, json.dumps(VALID[path] | change).encode())
    assert response.status_code == 400
    assert "hidden" not in response.text


KINDS = [
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    ResponseRequest,
    MessageRequest,
    CountRequest,
    GenerateRequest,
    PromptRequest,
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":' * 100_000, b'"\\ud800"', b"\xff", b"NaN", b"1e999", b""])
def test_what_parsers_stumble_over(kind: type, body: bytes) -> None:
    with pytest.raises(RequestRefused):
        parse(body, kind)


def test_too_much() -> None:
    assert post("/generate", b" " * (1 << 20) + b"{}").status_code == 413


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=100), st.booleans())
def test_noise_at_the_sealed_endpoint(noise: bytes, opening: bool) -> None:
    body = b"CFD1" + KEY.public.id + noise if opening else noise
    response = post("/encrypted", body, CHANNEL, MEDIA_TYPE)
    assert response.status_code in (400, 409)
    assert response.json()["error"].keys() == {"code", "message"}

"""Anthropic's own client, unmodified, against /v1/messages, and its errors wherever they come from."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from starlette.testclient import TestClient

from confide.enclave.api.answer import Serving
from confide.enclave.api.app import api_app
from confide.enclave.api.limits import Limits
from confide.errors import AnswerTimedOut, EngineError, SelfTestFailed, ServerBusy

from ..fake_engine import FakeEngine
from ..serving import serving

PATH, COUNT = "/v1/messages", "/v1/messages/count_tokens"
ASKED: dict[str, Any] = {"model": "echo", "max_tokens": 50, "messages": [{"role": "user", "content": "one two"}]}


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="module")
def client(engine: FakeEngine) -> Iterator[anthropic.Anthropic]:
    with serving(api_app(Serving(engine))) as url:
        with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client:
            yield client


@pytest.fixture(scope="module")
def plain(engine: FakeEngine) -> TestClient:
    return TestClient(api_app(Serving(engine)), raise_server_exceptions=False)


def test_a_message(client: anthropic.Anthropic, engine: FakeEngine) -> None:
    sampling = {"temperature": 0.5, "top_p": 0.25, "top_k": 7}
    made = client.messages.create(**ASKED, system="be brief", extra_body=sampling)
    assert [(block.type, block.text) for block in made.content] == [  # type: ignore[union-attr]
        ("text", "You said: system: be brief | user: one two")
    ]
    assert (made.type, made.role, made.model, made.stop_reason, made.stop_sequence) == (
        "message", "assistant", "echo", "end_turn", None,
    )  # fmt: skip
    assert made.id.startswith("msg_")
    assert (made.usage.input_tokens, made.usage.cache_read_input_tokens, made.usage.output_tokens) == (5, 2, 9)
    asked = engine.asked[-1]
    assert (asked.max_tokens, asked.temperature, asked.top_p, asked.top_k) == (50, 0.5, 0.25, 7)


def test_blocks_and_turns_are_put_together(client: anthropic.Anthropic) -> None:
    first = client.messages.create(**ASKED)
    blocks: Any = [
        {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "b"},
    ]
    made = client.messages.create(
        model="echo",
        max_tokens=50,
        system=[{"type": "text", "text": "x"}, {"type": "text", "text": "y"}],
        messages=[
            {"role": "user", "content": blocks},
            {"role": "user", "content": "c"},
            first.to_param(),
            {"role": "user", "content": "d"},
        ],
    )
    assert made.content[0].text == (  # type: ignore[union-attr]
        "You said: system: x\n\ny | user: a\n\nb\n\nc | assistant: You said: user: one two | user: d"
    )


def test_how_an_answer_ends(client: anthropic.Anthropic) -> None:
    cut = client.messages.create(**ASKED | {"max_tokens": 2})
    assert (cut.content[0].text, cut.stop_reason) == ("You said:", "max_tokens")  # type: ignore[union-attr]
    stopped = client.messages.create(**ASKED, stop_sequences=["nothing", "one"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "one")
    assert stopped.content[0].text == "You said: user: "  # type: ignore[union-attr]
    events = list(client.messages.create(**ASKED, stop_sequences=["one"], stream=True))
    (delta,) = [event for event in events if event.type == "message_delta"]
    assert (delta.delta.stop_reason, delta.delta.stop_sequence) == ("stop_sequence", "one")


def test_a_stream(client: anthropic.Anthropic, plain: TestClient) -> None:
    events = list(client.messages.create(**ASKED, stream=True))
    assert [event.type for event in events] == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 5,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start, delta = events[0], events[-2]
    assert start.type == "message_start"
    assert (start.message.content, start.message.stop_reason, start.message.usage.output_tokens) == ([], None, 0)
    assert start.message.usage.input_tokens == 3
    assert delta.type == "message_delta"
    assert (delta.delta.stop_reason, delta.usage.output_tokens, delta.usage.cache_read_input_tokens) == (
        "end_turn", 5, 2,
    )  # fmt: skip
    blocks = plain.post(PATH, json=ASKED | {"stream": True}).content.split(b"\n\n")[:-1]
    names = [block.split(b"\n")[0].removeprefix(b"event: ").decode() for block in blocks]
    assert names[1] == "ping"
    assert names == [json.loads(block.split(b"data: ")[1])["type"] for block in blocks]
    assert all((len(block) + 2) % 256 == 0 for block in blocks)


def test_the_sdks_own_streams(client: anthropic.Anthropic) -> None:
    with client.messages.stream(**ASKED) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == "You said: user: one two"  # type: ignore[union-attr]
    assert (final.stop_reason, final.usage.input_tokens, final.usage.output_tokens) == ("end_turn", 1, 5)


def test_tokens_are_counted_without_an_answer(client: anthropic.Anthropic, engine: FakeEngine) -> None:
    before = len(engine.asked)
    counted = client.messages.count_tokens(model="echo", system="be brief", messages=ASKED["messages"])
    assert counted.input_tokens == 7 == client.messages.create(**ASKED, system="be brief").usage.input_tokens + 2
    assert len(engine.asked) == before + 1
    with pytest.raises(anthropic.BadRequestError, match="`max_tokens`"):
        client.messages.count_tokens(model="echo", messages=ASKED["messages"], extra_body={"max_tokens": 5})


@pytest.mark.parametrize(
    "more",
    [
        {"tools": [{"name": "x", "input_schema": {}}]},
        {"tools": [{"type": "bash_20250124", "name": "bash"}]},
        {"tool_choice": {"type": "any"}},
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"output_config": {"effort": "high"}},
        {"container": "c"},
        {"seed": 1},
        {"n": 2},
        {"stop": "x"},
        {"temperature": 1.5},
        {"max_tokens": 0},
        {"something_new": 1},
    ],
    ids=str,
)
def test_what_is_not_offered_is_refused_by_name(plain: TestClient, engine: FakeEngine, more: dict[str, Any]) -> None:
    before = len(engine.asked)
    refused = plain.post(PATH, json=ASKED | more)
    assert (refused.status_code, refused.json()["type"]) == (400, "error")
    assert refused.json()["error"].keys() == {"type", "message"}
    assert refused.json()["error"]["type"] == "invalid_request_error"
    assert f"`{next(iter(more))}" in refused.json()["error"]["message"]
    assert len(engine.asked) == before


@pytest.mark.parametrize(
    "more",
    [
        {"metadata": {"user_id": "x"}, "service_tier": "auto", "cache_control": {"type": "ephemeral"}},
        {"thinking": {"type": "disabled"}, "tools": [], "tool_choice": {"type": "auto"}, "stream": False},
    ],
    ids=["books", "off"],
)
def test_what_changes_nothing_passes(plain: TestClient, more: dict[str, Any]) -> None:
    assert plain.post(PATH, json=ASKED | more).status_code == 200


@pytest.mark.parametrize(
    ("turns", "named"),
    [
        ([{"role": "user", "content": [{"type": "image", "source": {}}]}], "`image`"),
        ([{"role": "user", "content": [{"type": "document", "source": {}}]}], "`document`"),
        ([{"role": "user", "content": [{"type": "tool_use", "id": "x", "name": "y", "input": {}}]}], "`tool_use`"),
        ([{"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "x"}]}], "`tool_result`"),
        ([{"role": "user", "content": [{"type": "secret kind"}]}], "`messages[0].content[0].type`"),
        ([{"role": "system", "content": "x"}], "`messages[0].role`"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "{"}], "end with the user's turn"),
        ([], "`messages`"),
    ],
    ids=["image", "document", "call", "result", "unknown", "system", "beginning", "none"],
)
def test_other_turns_are_refused(plain: TestClient, turns: list[Any], named: str) -> None:
    refused = plain.post(PATH, json=ASKED | {"messages": turns})
    assert refused.status_code == 400
    assert named in refused.json()["error"]["message"]
    assert "secret" not in refused.text


@pytest.mark.parametrize("missing", ["max_tokens", "model", "messages"])
def test_what_must_be_there(plain: TestClient, missing: str) -> None:
    refused = plain.post(PATH, json={name: value for name, value in ASKED.items() if name != missing})
    assert refused.status_code == 400
    assert f"`{missing}`" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (EngineError("Lost."), 502, "api_error"),
        (ServerBusy("Later."), 429, "rate_limit_error"),
        (AnswerTimedOut("Late."), 504, "timeout_error"),
        (RuntimeError("a secret"), 500, "api_error"),
    ],
    ids=["engine", "busy", "late", "inside"],
)
@pytest.mark.parametrize("path", [PATH, COUNT])
def test_errors_are_anthropics(
    monkeypatch: pytest.MonkeyPatch, path: str, error: Exception, status: int, kind: str
) -> None:
    engine = FakeEngine()

    async def read(_: object) -> None:
        raise error

    monkeypatch.setattr(engine, "read", read)
    client = TestClient(api_app(Serving(engine)), raise_server_exceptions=False)
    body = ASKED if path == PATH else {name: ASKED[name] for name in ("model", "messages")}
    failed = client.post(path, json=body)
    assert (failed.status_code, failed.json()["error"]["type"]) == (status, kind)
    assert failed.json()["type"] == "error"
    assert "secret" not in failed.text


def test_errors_before_and_beside_the_endpoint_are_anthropics_too() -> None:
    limits = Limits(body_bytes=2000)
    client = TestClient(api_app(Serving(FakeEngine(), limits=limits)), raise_server_exceptions=False)
    for response, status, kind in (
        (client.post(PATH, content=b"x" * 3000), 413, "request_too_large"),
        (client.post(PATH, content=b"{"), 400, "invalid_request_error"),
        (client.get(PATH), 405, "invalid_request_error"),
        (client.post(PATH + "/batches", json={}), 404, "not_found_error"),
        (client.post(PATH, json=ASKED | {"model": "other"}), 404, "not_found_error"),
    ):
        assert (response.status_code, response.json()["type"]) == (status, "error")
        assert response.json()["error"]["type"] == kind
    assert "type" not in client.post("/v1/messagesx", json={}).json()


class Garbage:
    def require_passed(self) -> None:
        raise SelfTestFailed("The engine computes garbage; restart it.")


def test_an_engine_that_computes_garbage_answers_nothing() -> None:
    engine = FakeEngine()
    client = TestClient(api_app(Serving(engine, Garbage())), raise_server_exceptions=False)  # type: ignore[arg-type]
    refused = client.post(PATH, json=ASKED)
    assert (refused.status_code, refused.json()["error"]["type"]) == (503, "api_error")
    assert not engine.asked


def test_an_error_within_a_stream_is_raised() -> None:
    engine = FakeEngine(broken=EngineError("The model is at a loss; ask something else."))
    with serving(api_app(Serving(engine))) as url:
        client = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
        events = client.messages.create(**ASKED, stream=True)
        assert [next(events).type for _ in range(4)][-1] == "content_block_delta"
        with pytest.raises(anthropic.APIStatusError, match="at a loss"):
            next(events)
        with pytest.raises(anthropic.InternalServerError, match="at a loss"):
            client.messages.create(**ASKED)

"""Calls of tools in the newer APIs: offered, made, streamed and given back, by the SDKs themselves."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from starlette.testclient import TestClient
from tests.enclave.fake_engine import FakeEngine
from tests.enclave.serving import serving

from confide.enclave.api.answer import Serving
from confide.enclave.api.app import api_app

RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
TEMPLATE = "{% if tools %}<tool_call>{{ tools }}</tool_call>{% endif %}"
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
SAID = f"I see. {CALL}"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION: Any = {"type": "function", "name": "weather", "description": "Of a city", "parameters": SCHEMA}
TOOL: Any = {"name": "weather", "description": "Of a city", "input_schema": SCHEMA}
HELLO: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine(template=TEMPLATE, says=SAID)


@pytest.fixture(scope="module")
def url(engine: FakeEngine) -> Iterator[str]:
    with serving(api_app(Serving(engine))) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def other(url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def test_responses_give_a_call_and_take_its_result(client: openai.OpenAI, engine: FakeEngine) -> None:
    made = client.responses.create(model="echo", input="hi", tools=[FUNCTION])
    said, call = made.output
    assert (made.status, made.output_text) == ("completed", "I see. ")
    assert said.type == "message"
    assert call.type == "function_call"
    assert (call.name, call.arguments, call.status) == ("weather", '{"city": "Ulm"}', "completed")
    assert made.tools[0].name == "weather"  # type: ignore[union-attr]
    assert "weather" in engine.prompts[-1]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    again: Any = [*HELLO, *made.output, result]
    client.responses.create(model="echo", input=again, tools=[FUNCTION])
    assert "tool: rain" in engine.prompts[-1]
    turn = engine.turns[-1][1]
    assert (turn.role, turn.content) == ("assistant", "I see. ")
    assert [(one.id, one.name, one.arguments) for one in turn.calls] == [(call.call_id, "weather", call.arguments)]
    assert engine.turns[-1][2].call_id == call.call_id


def test_responses_stream_a_call(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="echo", input="hi", tools=[FUNCTION], stream=True))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert [kind for kind in kinds if not kind.endswith("delta")] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    arguments = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(arguments) == '{"city": "Ulm"}'
    done = [event.item for event in events if event.type == "response.output_item.done"]
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output == done
    with client.responses.stream(model="echo", input="hi", tools=[FUNCTION]) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output[1].arguments == '{"city": "Ulm"}'  # type: ignore[union-attr]


def test_messages_give_a_call_and_take_its_result(other: anthropic.Anthropic, engine: FakeEngine) -> None:
    made = other.messages.create(model="echo", max_tokens=99, messages=HELLO, tools=[TOOL])
    said, call = made.content
    assert (made.stop_reason, said.type) == ("tool_use", "text")
    assert call.type == "tool_use"
    assert (call.name, call.input) == ("weather", {"city": "Ulm"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "no such city", "is_error": True}
    again: Any = [*HELLO, made.to_param(), {"role": "user", "content": [result, {"type": "text", "text": "So?"}]}]
    asked: Any = {"model": "echo", "messages": again, "tools": [TOOL]}
    counted = other.messages.count_tokens(**asked).input_tokens
    assert other.messages.create(**asked, max_tokens=99).usage.input_tokens == counted - 2  # which were cached
    user, assistant, answered, asked_again = engine.turns[-1]
    assert (user.content, assistant.content, asked_again.content) == ("hi", "I see. ", "So?")
    assert [(one.id, one.name, json.loads(one.arguments)) for one in assistant.calls] == [
        (call.id, "weather", {"city": "Ulm"})
    ]
    assert (answered.role, answered.content, answered.call_id) == ("tool", "Error: no such city", call.id)


def test_messages_stream_a_call(other: anthropic.Anthropic) -> None:
    events = list(other.messages.create(model="echo", max_tokens=99, messages=HELLO, tools=[TOOL], stream=True))
    assert [event.type for event in events if event.type != "content_block_delta"] == [
        "message_start",
        "content_block_start",
        "content_block_stop",
        "content_block_start",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    starts = [event for event in events if event.type == "content_block_start"]
    assert [(event.index, event.content_block.type) for event in starts] == [(0, "text"), (1, "tool_use")]
    with other.messages.stream(model="echo", max_tokens=99, messages=HELLO, tools=[TOOL]) as stream:
        final = stream.get_final_message()
    assert (final.stop_reason, final.content[1].input) == ("tool_use", {"city": "Ulm"})  # type: ignore[union-attr]


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
@pytest.mark.parametrize("must", [False, True])
def test_an_answer_may_be_calls_alone(path: str, must: bool) -> None:
    engine = FakeEngine(template=TEMPLATE, says='[{"name":"weather","arguments":{"city":"Ulm"}}]' if must else CALL)
    client = TestClient(api_app(Serving(engine)))
    if path == RESPONSES:
        choice: Any = {"type": "function", "name": "weather"} if must else "auto"
        body = {"model": "echo", "input": "hi", "tools": [FUNCTION], "tool_choice": choice}
    else:
        choice = {"type": "tool", "name": "weather"} if must else {"type": "auto"}
        body = {"model": "echo", "max_tokens": 99, "messages": HELLO, "tools": [TOOL], "tool_choice": choice}
    made = client.post(path, json=body).json()
    assert [item["type"] for item in made.get("output") or made["content"]] == [
        "function_call" if path == RESPONSES else "tool_use"
    ]
    stream = client.post(path, json=body | {"stream": True})
    blocks = stream.content.split(b"\n\n")[:-1]
    assert all((len(block) + 2) % 256 == 0 for block in blocks)
    assert b"text_delta" not in stream.content
    assert b"output_text" not in stream.content
    assert (engine.asked[-1].form is not None) == must


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
def test_every_piece_is_an_event(path: str) -> None:
    # While a call is held back nothing may be seen of that, and of an answer that has not begun either.
    says = '<tool_call>\n{"name": "weather", "arguments": {"city": "a b c d e"}}\n</tool_call>'
    engine = FakeEngine(template=TEMPLATE, says=says)
    client = TestClient(api_app(Serving(engine)))
    asked: Any = {"input": "hi", "tools": [FUNCTION]} if path == RESPONSES else {"messages": HELLO, "tools": [TOOL]}
    more = {} if path == RESPONSES else {"max_tokens": 99}
    stream = client.post(path, json={"model": "echo", "stream": True} | asked | more).content
    assert stream.count(b"\n\n") >= len(says.split(" ")) + 6
    assert stream.count(b":" + b" " * 253 + b"\n\n") == len(says.split(" ")) - 1


@pytest.mark.parametrize(
    "more",
    [
        {"tool_choice": "required"},
        {"tools": [FUNCTION, FUNCTION]},
        {"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "other"}},
        {"tools": [FUNCTION | {"parameters": {"type": "array"}}]},
        {"tools": [FUNCTION | {"name": "a b"}]},
    ],
    ids=["nothing", "twice", "other", "array", "name"],
)
def test_offers_that_cannot_be_are_refused(url: str, more: dict[str, Any]) -> None:
    client = TestClient(api_app(Serving(FakeEngine(template=TEMPLATE))))
    refused = client.post(RESPONSES, json={"model": "echo", "input": "hi"} | more)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"].startswith(("tool_choice", "tools"))
    choice = more.get("tool_choice")
    tools = [{"name": one["name"], "input_schema": one["parameters"]} for one in more.get("tools", ())]
    named = {"type": "tool", "name": choice["name"]} if isinstance(choice, dict) else {"type": "any"}
    body = {"model": "echo", "max_tokens": 9, "messages": HELLO, "tools": tools}
    refused = client.post(MESSAGES, json=body | ({"tool_choice": named} if choice else {}))
    assert refused.status_code == 400
    assert refused.json()["error"]["type"] == "invalid_request_error"

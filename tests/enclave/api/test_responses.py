"""OpenAI's own client against /v1/responses, and what its events look like on the wire."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from starlette.testclient import TestClient

from confide.enclave.api.answer import Serving
from confide.enclave.api.app import api_app
from confide.enclave.api.limits import Limits
from confide.errors import EngineError

from ..fake_engine import FakeEngine
from ..serving import serving

PATH = "/v1/responses"


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="module")
def client(engine: FakeEngine) -> Iterator[openai.OpenAI]:
    with serving(api_app(Serving(engine))) as url:
        with openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0) as client:
            yield client


@pytest.fixture(scope="module")
def plain(engine: FakeEngine) -> TestClient:
    return TestClient(api_app(Serving(engine)), raise_server_exceptions=False)


def test_a_text(client: openai.OpenAI, engine: FakeEngine) -> None:
    made = client.responses.create(model="echo", input="hi", instructions="be brief", temperature=0.5, top_p=0.25)
    assert made.output_text == "You said: system: be brief | user: hi"
    assert (made.status, made.object, made.model, made.store) == ("completed", "response", "echo", False)
    assert (made.instructions, made.temperature, made.top_p, made.incomplete_details) == ("be brief", 0.5, 0.25, None)
    assert made.id.startswith("resp_")
    (message,) = made.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")  # type: ignore[union-attr]
    assert made.usage is not None
    assert (made.usage.input_tokens, made.usage.output_tokens, made.usage.total_tokens) == (6, 8, 14)
    assert made.usage.input_tokens_details.cached_tokens == 2
    assert made.usage.output_tokens_details.reasoning_tokens == 0
    assert (engine.asked[-1].temperature, engine.asked[-1].top_p) == (0.5, 0.25)


def test_items_and_an_answer_that_is_given_back(client: openai.OpenAI) -> None:
    first = client.responses.create(model="echo", input="a")
    answer: Any = [item.model_dump() for item in first.output]
    made = client.responses.create(
        model="echo",
        input=[
            {"role": "developer", "content": "short"},
            {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
            *answer,
            {"type": "message", "role": "user", "content": "c"},
        ],
    )
    assert made.output_text == "You said: system: short | user: ab | assistant: You said: user: a | user: c"


def test_an_answer_that_is_cut_is_incomplete(client: openai.OpenAI) -> None:
    made = client.responses.create(model="echo", input="one two", max_output_tokens=2)
    assert (made.output_text, made.status, made.output[0].status) == ("You said:", "incomplete", "incomplete")  # type: ignore[union-attr]
    assert made.incomplete_details is not None
    assert made.incomplete_details.reason == "max_output_tokens"
    assert made.max_output_tokens == 2
    *_, last = client.responses.create(model="echo", input="one two", max_output_tokens=2, stream=True)
    assert last.type == "response.incomplete"
    assert last.response.incomplete_details is not None


def test_a_stream(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="echo", input="one two", stream=True))
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 5,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == (
        "You said: user: one two"
    )
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == "You said: user: one two"
    assert last.response.usage is not None
    assert last.response.usage.total_tokens == 8
    first = events[0]
    assert first.type == "response.created"
    assert (first.response.status, first.response.usage, first.response.id) == ("in_progress", None, last.response.id)


def test_the_sdks_own_streams(client: openai.OpenAI) -> None:
    with client.responses.stream(model="echo", input="one two") as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert snapshots[-1] == final.output_text == "You said: user: one two"


def test_probabilities(client: openai.OpenAI) -> None:
    asked: Any = {"model": "echo", "input": "a", "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    made = client.responses.create(**asked)
    told = made.output[0].content[0].logprobs  # type: ignore[union-attr]
    assert [one.token for one in told] == ["You ", "said: ", "user: ", "a"]
    assert [len(one.top_logprobs) for one in told] == [2] * 4
    events = list(client.responses.create(**asked, stream=True))
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert [one.token for event in deltas for one in event.logprobs] == [one.token for one in told]
    assert client.responses.create(model="echo", input="a").output[0].content[0].logprobs == []  # type: ignore[union-attr]
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="echo", input="a", top_logprobs=2)
    assert caught.value.param == "top_logprobs"


@pytest.mark.parametrize(
    "more",
    [
        {"previous_response_id": "resp_1"},
        {"conversation": "conv_1"},
        {"store": True},
        {"background": True},
        {"truncation": "auto"},
        {"tools": [{"type": "web_search"}]},
        {"text": {"verbosity": "high"}},
        {"text": {"format": {"type": "json_schema", "name": "x"}}},
        {"tool_choice": "required"},
        {"prompt": {"id": "pmpt_1"}},
        {"reasoning": {"effort": "high"}},
        {"include": ["file_search_call.results"]},
        {"max_tokens": 3},
        {"stop": "x"},
        {"something_new": 1},
    ],
    ids=str,
)
def test_what_is_not_offered_is_refused_by_name(plain: TestClient, engine: FakeEngine, more: dict[str, Any]) -> None:
    before = len(engine.asked)
    refused = plain.post(PATH, json={"model": "echo", "input": "hi"} | more)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"].startswith(next(iter(more)))
    assert len(engine.asked) == before


@pytest.mark.parametrize(
    "more",
    [
        {"previous_response_id": None, "store": False, "background": False, "truncation": "disabled"},
        {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "max_tool_calls": 3},
        {"reasoning": {"effort": None, "summary": None}, "include": ["reasoning.encrypted_content"]},
        {"text": {"format": {"type": "text"}}, "user": "me", "metadata": {"a": "b"}, "prompt_cache_key": "x"},
    ],
    ids=["memory", "tools", "reasoning", "text"],
)
def test_what_changes_nothing_passes(plain: TestClient, more: dict[str, Any]) -> None:
    assert plain.post(PATH, json={"model": "echo", "input": "hi"} | more).status_code == 200


@pytest.mark.parametrize(
    ("item", "named"),
    [
        ({"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}, "input_image"),
        ({"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}, "input_file"),
        ({"type": "item_reference", "id": "x"}, "item_reference"),
        ({"type": "reasoning", "summary": []}, "reasoning"),
        ({"role": "tool", "content": "x"}, "input[0].role"),
        ({"type": "function_call", "call_id": "x", "name": "y", "arguments": "[]"}, "input[0]"),
        ({"type": "function_call", "call_id": "x", "name": "y"}, "input[0]"),
        ({"type": "function_call_output", "call_id": "x", "output": "y", "role": "user"}, "input[0]"),
        ({"role": "user"}, "input[0]"),
    ],
    ids=["image", "file", "reference", "reasoning", "role", "arguments", "call", "output", "content"],
)
def test_other_items_are_refused_by_name(plain: TestClient, item: dict[str, Any], named: str) -> None:
    refused = plain.post(PATH, json={"model": "echo", "input": [item]})
    assert refused.status_code == 400
    assert f"`{named}`" in refused.json()["error"]["message"]
    assert refused.json()["error"]["param"].startswith("input[0]")


def test_limits_hold_and_are_named_as_asked() -> None:
    client = TestClient(api_app(Serving(FakeEngine(), limits=Limits(answer_tokens=9))), raise_server_exceptions=False)
    refused = client.post(PATH, json={"model": "echo", "input": "hi", "max_output_tokens": 10}).json()["error"]
    assert (refused["param"], "at most 9 tokens" in refused["message"]) == ("max_output_tokens", True)
    chat = {"model": "echo", "messages": [{"role": "user", "content": "a"}], "max_completion_tokens": 10}
    assert client.post("/v1/chat/completions", json=chat).json()["error"]["param"] == "max_completion_tokens"
    other = client.post(PATH, json={"model": "other", "input": "hi"})
    assert (other.status_code, other.json()["error"]["code"]) == (404, "model_not_found")
    long = client.post(PATH, json={"model": "echo", "input": "word " * 2000})
    assert (long.status_code, long.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_an_answer_that_breaks_off_has_failed() -> None:
    engine = FakeEngine(broken=EngineError("The model is at a loss; ask something else."))
    with serving(api_app(Serving(engine))) as url:
        client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
        *_, last = client.responses.create(model="echo", input="one", stream=True)
        assert last.type == "response.failed"
        assert last.response.status == "failed"
        assert last.response.error is not None
        assert "at a loss" in last.response.error.message
        assert last.response.output_text == "You said: "
        with pytest.raises(openai.InternalServerError, match="at a loss"):
            client.responses.create(model="echo", input="one")


def test_tokens_of_any_usual_length_have_events_of_one_length(plain: TestClient) -> None:
    words = " ".join("x" * length for length in range(1, 41))
    for path, asked in ((PATH, {"input": words}), ("/v1/messages", {"messages": [{"role": "user", "content": words}],
                                                                    "max_tokens": 99})):  # fmt: skip
        stream = plain.post(path, json={"model": "echo", "stream": True} | asked)
        deltas = [block for block in stream.content.split(b"\n\n") if b"text.delta" in block or b"text_delta" in block]
        assert len(deltas) == 43
        assert len({len(block) for block in deltas}) == 1


def test_events_have_names_and_hide_the_lengths_of_deltas(plain: TestClient) -> None:
    stream = plain.post(PATH, json={"model": "echo", "input": "a bb ccc", "stream": True})
    assert stream.headers["content-type"].startswith("text/event-stream")
    blocks = stream.content.split(b"\n\n")[:-1]
    assert len({len(block) for block in blocks if b"output_text.delta" in block}) == 1
    for block in blocks:
        name, data = block.decode().split("\n")
        assert name.removeprefix("event: ") == json.loads(data.removeprefix("data: "))["type"]
        assert (len(block) + 2) % 256 == 0

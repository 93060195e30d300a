"""What llama.cpp's own server is held to, as far as it is ours too: docs/conformance.md says which case is which test.

Behaviour alone is from there, in other words and other code. Every test asks the application that `confide serve` puts
behind its channel, over each engine that computes here.
"""

import asyncio
import base64
import json
import math
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient
from tests.enclave.engines.conftest import PROMPT, Bench, settled

from confide.enclave.api.answer import Serving
from confide.enclave.api.app import api_app

TEXT, CHAT, EMBED = "/v1/completions", "/v1/chat/completions", "/v1/embeddings"
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
TURNS = [{"role": "system", "content": "You tell tales."}, {"role": "user", "content": "Who lived in the wood?"}]
SAID = [{"role": "user", "content": "Who lived in the wood?"}]
TOKENS = 6
ASKED: dict[str, dict[str, Any]] = {
    TEXT: {"prompt": PROMPT, "max_tokens": TOKENS},
    CHAT: {"messages": TURNS, "max_tokens": TOKENS},
    MESSAGES: {"messages": SAID, "max_tokens": TOKENS},
    RESPONSES: {"input": "Who lived in the wood?", "max_output_tokens": TOKENS},
}
PAGE = Path(__file__).parents[3] / "docs" / "conformance.md"


class Api:
    """The application over one engine."""

    def __init__(self, bench: Bench, client: TestClient) -> None:
        self.bench = bench
        self.client = client

    def ask(self, path: str, **fields: Any) -> Any:
        """The answer to a request that is granted. Greedy, where nothing else is asked for."""
        return self._post(path, fields, 200).json()

    def stream(self, path: str, **fields: Any) -> list[Any]:
        """The same as it comes: what each event says."""
        lines = self._post(path, fields | {"stream": True}, 200).text.split("\n")
        said = [line.removeprefix("data: ").rstrip() for line in lines if line.startswith("data: ")]
        if path in (TEXT, CHAT):
            assert said.pop() == "[DONE]"
        return [json.loads(one) for one in said]

    def refused(self, path: str, **fields: Any) -> tuple[str, str]:
        """Of a request that is not: the field that is to blame, and the sentence."""
        error = self._post(path, fields, 400).json()["error"]
        assert error["type"] == "invalid_request_error"
        return str(error.get("param")), error["message"]

    def tokens(self, text: str) -> list[int]:
        """How the model reads a text."""
        return list(self.bench.run(lambda engine: engine.read(text)).tokens)

    def _post(self, path: str, fields: dict[str, Any], status: int) -> httpx.Response:
        greedy = {} if path == EMBED else {"temperature": 0}
        response = self.client.post(path, json={"model": "demo"} | greedy | fields)
        assert response.status_code == status, response.text
        return response


@pytest.fixture(scope="module", params=["transformers", "gguf"])
def api(request: pytest.FixtureRequest) -> Iterator[Api]:
    bench: Bench = request.getfixturevalue(f"{request.param}_bench")
    with TestClient(api_app(Serving(bench.make())), raise_server_exceptions=False) as client:
        yield Api(bench, client)


def said(path: str, answer: Any) -> str:
    """The text of a whole answer, of whichever endpoint."""
    if path == MESSAGES:
        return "".join(block["text"] for block in answer["content"])
    if path == RESPONSES:
        return "".join(part["text"] for item in answer["output"] for part in item["content"])
    [choice] = answer["choices"]
    return str(choice["text"] if path == TEXT else choice["message"]["content"])


def deltas(path: str, events: list[Any]) -> str:
    """The text of an answer that came by events."""
    if path == MESSAGES:
        return "".join(one["delta"].get("text", "") for one in events if one["type"] == "content_block_delta")
    if path == RESPONSES:
        return "".join(one["delta"] for one in events if one["type"] == "response.output_text.delta")
    choices = [choice for one in events for choice in one["choices"]]
    return "".join(one["text"] if path == TEXT else one["delta"].get("content", "") for one in choices)


# -- completions and conversations ----------------------------------------------------------------------------------


def test_a_completion_says_how_long_it_is_and_why_it_ends(api: Api) -> None:
    answer = api.ask(TEXT, **ASKED[TEXT])
    [choice] = answer["choices"]
    assert (answer["object"], answer["model"], choice["finish_reason"]) == ("text_completion", "demo", "length")
    assert answer["id"].startswith("cmpl-")
    count = len(api.tokens(PROMPT))
    assert answer["usage"] == {
        "prompt_tokens": count,
        "completion_tokens": TOKENS,
        "total_tokens": count + TOKENS,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert choice["text"]


def test_a_conversation_is_answered_in_turn(api: Api) -> None:
    answer = api.ask(CHAT, **ASKED[CHAT])
    [choice] = answer["choices"]
    assert (answer["object"], choice["message"]["role"], choice["finish_reason"]) == (
        "chat.completion",
        "assistant",
        "length",
    )
    assert answer["id"].startswith("chatcmpl-")
    assert answer["usage"]["completion_tokens"] == TOKENS
    assert answer["usage"]["prompt_tokens"] > len(api.tokens(TURNS[1]["content"]))
    parts = [{"type": "text", "text": "Who lived "}, {"type": "text", "text": "in the wood?"}]
    apart = api.ask(CHAT, **ASKED[CHAT] | {"messages": [TURNS[0], {"role": "user", "content": parts}]})
    assert apart["usage"] == answer["usage"]
    assert said(CHAT, apart) == said(CHAT, answer)


@pytest.mark.parametrize("path", [TEXT, CHAT])
def test_a_stream_is_the_whole_answer_in_chunks(api: Api, path: str) -> None:
    whole = api.ask(path, **ASKED[path])
    *chunks, last = api.stream(path, **ASKED[path], stream_options={"include_usage": True})
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    assert deltas(path, chunks) == said(path, whole)
    assert len(chunks) > 3
    assert {one["id"] for one in chunks} == {last["id"]}
    assert {one["model"] for one in chunks} == {"demo"}
    choices = [one["choices"][0] for one in chunks]
    assert [one["finish_reason"] for one in choices[:-1]] == [None] * (len(choices) - 1)
    assert choices[-1]["finish_reason"] == "length"
    if path == CHAT:
        assert [one["delta"].get("role") for one in choices] == ["assistant", *[None] * (len(choices) - 1)]
    assert not any("usage" in one for one in api.stream(path, **ASKED[path]))


@pytest.mark.parametrize("path", [TEXT, CHAT])
def test_an_answer_ends_before_a_stop_text_streamed_or_not(api: Api, path: str) -> None:
    long = said(path, api.ask(path, **ASKED[path] | {"max_tokens": 12}))
    stop = long[9:14]
    asked = ASKED[path] | {"max_tokens": 12, "stop": ["never said", stop]}
    answer = api.ask(path, **asked)
    assert (said(path, answer), answer["choices"][0]["finish_reason"]) == (long[: long.index(stop)], "stop")
    chunks = api.stream(path, **asked)
    assert (deltas(path, chunks), chunks[-1]["choices"][0]["finish_reason"]) == (long[: long.index(stop)], "stop")


def test_one_seed_gives_one_answer_and_another_another(api: Api) -> None:
    def drawn(seed: int, temperature: float = 1.0) -> str:
        return said(TEXT, api.ask(TEXT, **ASKED[TEXT], seed=seed, temperature=temperature))

    assert drawn(42) == drawn(42)
    assert len({drawn(seed) for seed in range(4)}) == 4
    assert len({drawn(seed, temperature=0) for seed in range(2)}) == 1


@pytest.mark.parametrize("path", [TEXT, CHAT])
def test_two_choices_are_two_answers(api: Api, path: str) -> None:
    asked = ASKED[path] | {"n": 2, "temperature": 1.0, "seed": 5}
    answer = api.ask(path, **asked)
    texts = [one["text"] if path == TEXT else one["message"]["content"] for one in answer["choices"]]
    assert [one["index"] for one in answer["choices"]] == [0, 1]
    assert len(set(texts)) == 2
    assert answer["usage"]["completion_tokens"] == 2 * TOKENS
    chunks = api.stream(path, **asked)
    parts = [[one for one in chunks if one["choices"][0]["index"] == index] for index in (0, 1)]
    assert [deltas(path, part) for part in parts] == texts


def test_many_at_once_are_each_answered_as_if_alone(api: Api) -> None:
    prompts = [f"{PROMPT} to the {word}" for word in ("first", "second", "third", "wolf", "fox", "miller")]
    app = api_app(Serving(api.bench.make()))

    async def at_once() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x", timeout=60) as client:
            bodies = [{"model": "demo", "prompt": prompt, "max_tokens": 6, "temperature": 0} for prompt in prompts]
            return await asyncio.gather(*(client.post(TEXT, json=body) for body in bodies))

    together = [said(TEXT, response.json()) for response in asyncio.run(at_once())]
    assert together == [said(TEXT, api.ask(TEXT, prompt=prompt, max_tokens=6)) for prompt in prompts]
    assert len(set(together)) > 1


def test_a_client_that_leaves_stops_the_work(api: Api) -> None:
    app, bench = api_app(Serving(api.bench.make())), api.bench
    body = json.dumps({"model": "demo", "prompt": PROMPT, "max_tokens": 400, "stream": True}).encode()
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": TEXT,
        "raw_path": TEXT.encode(), "query_string": b"", "headers": [], "client": ("127.0.0.1", 1), "scheme": "http",
    }  # fmt: skip

    async def leave() -> int:
        asked, begun = asyncio.Event(), asyncio.Event()

        async def receive() -> dict[str, Any]:
            if asked.is_set():
                await begun.wait()
                return {"type": "http.disconnect"}
            asked.set()
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            if message.get("body"):
                begun.set()

        await app(scope, receive, send)  # type: ignore[arg-type]
        assert begun.is_set()
        return await settled(bench)

    before = bench.computed()
    assert asyncio.run(leave()) - before < 200


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_probabilities_are_told_of_every_token(api: Api, path: str) -> None:
    asked = ASKED[path] | ({"logprobs": True, "top_logprobs": 10} if path == CHAT else {"logprobs": 5})
    answer, chunks = api.ask(path, **asked), api.stream(path, **asked)
    whole = answer["choices"][0]["logprobs"]
    parts = [one["choices"][0]["logprobs"] for one in chunks]
    if path == TEXT:
        assert "".join(whole["tokens"]) == said(path, answer)
        assert len(whole["tokens"]) == TOKENS
        assert max(whole["token_logprobs"]) <= 0
        assert [len(top) for top in whole["top_logprobs"]] == [5] * TOKENS
        assert [token for part in parts for token in part["tokens"]] == whole["tokens"]
        return
    told = whole["content"]
    assert "".join(one["token"] for one in told) == said(path, answer)
    assert [one["token"] for part in parts for one in part["content"]] == [one["token"] for one in told]
    for one in told:
        assert bytes(one["bytes"]).decode() == one["token"]
        assert len(one["top_logprobs"]) == 10
        assert max(top["logprob"] for top in one["top_logprobs"]) == one["logprob"] <= 0  # greedy
    assert "top_logprobs" in api.refused(path, **ASKED[path], top_logprobs=3)[1]


@pytest.mark.parametrize("path", [TEXT, CHAT])
def test_a_bias_keeps_words_out(api: Api, path: str) -> None:
    free = said(path, api.ask(path, **ASKED[path]))
    words = set(api.tokens(free))
    kept = said(path, api.ask(path, **ASKED[path], logit_bias={str(token): -100 for token in words}))
    assert not words & set(api.tokens(kept))
    assert api.refused(path, **ASKED[path], logit_bias={" the ": -100})[0] == "logit_bias"
    assert api.refused(path, **ASKED[path], logit_bias=[[5, -100]])[0] == "logit_bias"


# -- the context ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ASKED)
def test_a_prompt_beyond_the_context_is_refused_before_anything_is_computed(api: Api, path: str, stream: bool) -> None:
    long = f"{PROMPT} " * 60
    asked = {TEXT: {"prompt": long}, RESPONSES: {"input": long}}.get(path, {"messages": [SAID[0] | {"content": long}]})
    before = api.bench.computed()
    response = api.client.post(path, json={"model": "demo", "stream": stream} | ASKED[path] | asked)
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (400, "invalid_request_error")
    assert error.get("code") == (None if path == MESSAGES else "context_length_exceeded")
    assert re.search(r"\b5\d\d\b", error["message"])  # how long it is, or may be
    assert api.bench.computed() == before


def test_an_answer_without_a_length_goes_on_to_the_end_of_the_context(api: Api) -> None:
    prompt, [end] = PROMPT * 45, api.tokens("<|endoftext|>")
    prompt += " king" * (512 - 24 - len(api.tokens(prompt)))
    count = len(api.tokens(prompt))
    assert count == 512 - 24
    for path in (TEXT, CHAT):
        asked = {"prompt": prompt} if path == TEXT else {"messages": [{"role": "user", "content": prompt}]}
        answer = api.ask(path, **asked, logit_bias={str(end): -100})
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["total_tokens"] == 512
        assert answer["usage"]["prompt_tokens"] >= count
    assert "512" in api.refused(TEXT, prompt=PROMPT, max_tokens=512)[1]


# -- forms and tools ------------------------------------------------------------------------------------------------


def test_an_answer_has_the_form_that_is_asked_for(api: Api) -> None:
    schema = {"const": "foooooo"}
    form = {"type": "json_schema", "json_schema": {"name": "word", "schema": schema}}
    answer = api.ask(CHAT, messages=TURNS, max_tokens=40, response_format=form)
    assert (said(CHAT, answer), answer["choices"][0]["finish_reason"]) == ('"foooooo"', "stop")
    assert deltas(CHAT, api.stream(CHAT, messages=TURNS, max_tokens=40, response_format=form)) == '"foooooo"'
    text = {"format": {"type": "json_schema", "name": "word", "schema": schema}}
    assert said(RESPONSES, api.ask(RESPONSES, input="Well?", max_output_tokens=40, text=text)) == '"foooooo"'
    for path, more in (
        (CHAT, {"messages": TURNS, "max_tokens": 6, "response_format": {"type": "json_object"}}),
        (RESPONSES, {"input": "Well?", "max_output_tokens": 6, "text": {"format": {"type": "json_object"}}}),
    ):
        assert said(path, api.ask(path, **more)).startswith("{")


def test_what_is_no_form_is_refused(api: Api) -> None:
    def schema(content: object) -> dict[str, Any]:
        return {"type": "json_schema", "json_schema": {"name": "word", "schema": content}}

    for form in (
        {"type": "sound"},
        {"type": "json_object", "schema": {"const": "42"}},
        {"type": "json_schema", "json_schema": {"schema": {"const": "42"}}},
        schema(123),
        schema({"type": 123}),
        schema({"type": "hiccup"}),
    ):
        field, _ = api.refused(CHAT, **ASKED[CHAT], response_format=form)
        assert field.startswith("response_format"), form
    field, _ = api.refused(RESPONSES, input="Well?", text={"format": {"type": "json_schema", "name": "word"}})
    assert field.startswith("text")


def tool(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


SUCCEED = {"type": "object", "properties": {"success": {"type": "boolean", "const": True}}, "required": ["success"]}
RUN = {"type": "object", "properties": {"code": {"type": "string", "maxLength": 6}}, "required": ["code"]}


@pytest.mark.parametrize(("parameters", "argument"), [(SUCCEED, "success"), (RUN, "code")], ids=["constant", "text"])
def test_a_call_that_is_required_is_made(api: Api, parameters: dict[str, Any], argument: str) -> None:
    asked = {
        "messages": TURNS,
        "max_tokens": 60,
        "tools": [tool("act", parameters | {"additionalProperties": False})],
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }
    [choice] = api.ask(CHAT, **asked)["choices"]
    [call] = choice["message"]["tool_calls"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (None, "tool_calls")
    assert (call["type"], call["function"]["name"], bool(call["id"])) == ("function", "act", True)
    assert list(json.loads(call["function"]["arguments"])) == [argument]
    chunks = [one["choices"][0] for one in api.stream(CHAT, **asked)]
    parts = [part for one in chunks for part in one["delta"].get("tool_calls", ())]
    assert [part["function"]["name"] for part in parts if part.get("id")] == ["act"]
    assert "".join(part["function"]["arguments"] for part in parts) == call["function"]["arguments"]
    assert not any(one["delta"].get("content") for one in chunks)
    assert chunks[-1]["finish_reason"] == "tool_calls"


def test_no_call_is_made_where_none_may_be(api: Api) -> None:
    plain = api.ask(CHAT, **ASKED[CHAT])
    for more in ({"tools": []}, {"tools": None}, {"tools": [tool("act", RUN)], "tool_choice": "none"}):
        answer = api.ask(CHAT, **ASKED[CHAT], **more)
        assert "tool_calls" not in answer["choices"][0]["message"]
        assert said(CHAT, answer) == said(CHAT, plain)
    # of a model whose template knows no tools
    assert api.refused(CHAT, **ASKED[CHAT], tools=[tool("act", RUN)])[0] == "tools"
    other = {"type": "function", "function": {"name": "other"}}
    assert api.refused(CHAT, **ASKED[CHAT], tools=[tool("act", RUN)], tool_choice=other)[0] == "tool_choice"


def test_results_of_calls_are_turns(api: Api) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "act", "arguments": '{"code": "1+1"}'}}
    turns = [
        *TURNS,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "2"},
    ]
    told, plain = (api.ask(CHAT, messages=one, max_tokens=4)["usage"] for one in (turns, TURNS))
    assert told["prompt_tokens"] > plain["prompt_tokens"] + 10
    damaged = call | {"function": {"name": "act", "arguments": "{"}}
    messages = [*TURNS, {"role": "assistant", "content": None, "tool_calls": [damaged]}]
    assert api.refused(CHAT, messages=messages)[0].startswith("messages[2]")


# -- embeddings -----------------------------------------------------------------------------------------------------


def test_texts_have_embeddings_of_length_one_in_their_order(api: Api) -> None:
    texts = [PROMPT, "Fish swim.", "A house of bread", PROMPT]
    answer = api.ask(EMBED, input=texts)
    assert [one["index"] for one in answer["data"]] == [0, 1, 2, 3]
    vectors = [one["embedding"] for one in answer["data"]]
    assert len({len(vector) for vector in vectors}) == 1
    assert all(math.isclose(math.hypot(*vector), 1, abs_tol=1e-3) for vector in vectors)
    total = sum(len(api.tokens(text)) for text in texts)
    assert answer["usage"] == {"prompt_tokens": total, "total_tokens": total}
    [alone] = api.ask(EMBED, input=PROMPT)["data"]
    for vector in (vectors[3], alone["embedding"]):
        assert vectors[0] == pytest.approx(vector, abs=1e-3)
    assert vectors[0] != pytest.approx(vectors[1], abs=1e-2)
    [packed] = api.ask(EMBED, input=PROMPT, encoding_format="base64")["data"]
    content = base64.b64decode(packed["embedding"])
    assert struct.unpack(f"<{len(content) // 4}f", content) == pytest.approx(alone["embedding"], abs=1e-3)


def test_what_is_no_text_has_no_embedding(api: Api) -> None:
    part = {"content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}
    for given in ([], [12, 34], [[12, 34]], ["a", [12, 34]], [12, "a"], 5, {"content": "a"}, part, ["a", part]):
        field, _ = api.refused(EMBED, input=given)
        assert field.startswith("input"), given
    assert "empty" in api.refused(EMBED, input="")[1]
    assert "tokens" in api.refused(EMBED, input="This is a test. " * 512)[1]


# -- the newer APIs -------------------------------------------------------------------------------------------------


def test_a_message_in_anthropics_form(api: Api) -> None:
    answer = api.ask(MESSAGES, **ASKED[MESSAGES], system="You tell tales.", metadata={"user_id": "me"})
    assert (answer["type"], answer["role"], answer["stop_reason"]) == ("message", "assistant", "max_tokens")
    assert [block["type"] for block in answer["content"]] == ["text"]
    assert said(MESSAGES, answer) == said(CHAT, api.ask(CHAT, **ASKED[CHAT]))
    usage = answer["usage"]
    assert (usage["output_tokens"], usage["cache_read_input_tokens"]) == (TOKENS, 0)
    assert not {"object", "choices", "timings"} & answer.keys()
    asked = {"system": "You tell tales.", "messages": SAID}
    counted = api.client.post(f"{MESSAGES}/count_tokens", json={"model": "demo"} | asked).json()
    assert counted == {"input_tokens": usage["input_tokens"]}
    parts = [{"type": "text", "text": "Who lived"}, {"type": "text", "text": "in the wood?"}]
    turns = [SAID[0], {"role": "assistant", "content": "A wolf."}, {"role": "user", "content": parts}]
    longer = api.ask(MESSAGES, **ASKED[MESSAGES] | {"messages": turns})
    assert longer["usage"]["input_tokens"] > usage["input_tokens"]


def test_a_message_by_events(api: Api) -> None:
    events = api.stream(MESSAGES, **ASKED[MESSAGES])
    assert [one["type"] for one in events if one["type"] not in ("content_block_delta", "ping")] == [
        "message_start",
        "content_block_start",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start, delta = events[0]["message"], events[-2]
    assert (start["role"], start["content"], start["usage"]["input_tokens"] > 0) == ("assistant", [], True)
    assert {one["index"] for one in events if "index" in one} == {0}
    assert (delta["delta"]["stop_reason"], delta["usage"]["output_tokens"]) == ("max_tokens", TOKENS)
    assert deltas(MESSAGES, events) == said(MESSAGES, api.ask(MESSAGES, **ASKED[MESSAGES]))


def test_how_a_message_is_made_may_be_said(api: Api) -> None:
    long = said(MESSAGES, api.ask(MESSAGES, **ASKED[MESSAGES]))
    stop = long[9:14]
    answer = api.ask(MESSAGES, **ASKED[MESSAGES], stop_sequences=["END", stop])
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", stop)
    assert said(MESSAGES, answer) == long[: long.index(stop)]
    for more in ({"top_k": 1}, {"top_p": 1e-6}):
        assert said(MESSAGES, api.ask(MESSAGES, **ASKED[MESSAGES] | {"temperature": 1.0} | more)) == long
    assert api.ask(MESSAGES, **ASKED[MESSAGES] | {"temperature": 0.5, "top_p": 0.9, "top_k": 40})["content"]


def test_calls_and_results_in_anthropics_form(api: Api) -> None:
    act = {"name": "act", "description": "Runs code", "input_schema": RUN | {"additionalProperties": False}}
    one = {"disable_parallel_tool_use": True}
    asked = {"messages": SAID, "max_tokens": 60, "tools": [act], "tool_choice": {"type": "any"} | one}
    answer = api.ask(MESSAGES, **asked | {"tool_choice": {"type": "tool", "name": "act"} | one})
    assert answer["stop_reason"] == "tool_use"
    [*_, call] = answer["content"]
    assert (call["type"], call["name"], list(call["input"])) == ("tool_use", "act", ["code"])
    events = api.stream(MESSAGES, **asked)
    starts, stops = ([one["index"] for one in events if one["type"] == f"content_block_{end}"] for end in
                     ("start", "stop"))  # fmt: skip
    assert starts == stops == list(range(len(starts)))
    first = next(one["content_block"] for one in events if one["type"] == "content_block_start")
    assert (first["type"], first["name"]) == ("tool_use", "act")
    made = {"role": "assistant", "content": [{"type": "tool_use", "id": "one", "name": "act", "input": {"code": "1"}}]}
    result = {"type": "tool_result", "tool_use_id": "one", "content": "Sunny, 25\u00b0C"}
    sizes = []
    for blocks in ([result], [{"type": "text", "text": "So it says:"}, result], [result | {"is_error": True}]):
        turns = [*SAID, made, {"role": "user", "content": blocks}]
        sizes.append(api.ask(MESSAGES, messages=turns, max_tokens=4)["usage"]["input_tokens"])
    assert sizes[0] < min(sizes[1:])


def test_what_is_no_message_is_refused(api: Api) -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    for more, named in (
        ({"messages": [{"role": "user", "content": [image]}]}, "`image`"),
        ({"messages": []}, "`messages`"),
        ({"messages": None}, "`messages`"),
        ({"thinking": {"type": "enabled", "budget_tokens": 50}}, "`thinking`"),
    ):
        assert named in api.refused(MESSAGES, **ASKED[MESSAGES] | more)[1]
    assert "`messages`" in api.refused(MESSAGES, max_tokens=8)[1]


def test_a_response_by_events(api: Api) -> None:
    answer = api.ask(RESPONSES, **ASKED[RESPONSES])
    assert answer["id"].startswith("resp_")
    assert answer["output"][0]["id"].startswith("msg_")
    assert (answer["usage"]["output_tokens"], answer["incomplete_details"]) == (TOKENS, {"reason": "max_output_tokens"})
    turns = [{"role": "system", "content": "You tell tales."}, *SAID]
    told = api.ask(RESPONSES, **ASKED[RESPONSES] | {"input": turns})
    assert said(RESPONSES, told) == said(CHAT, api.ask(CHAT, **ASKED[CHAT]))
    events = api.stream(RESPONSES, **ASKED[RESPONSES])
    last = events[-1]["response"]
    assert {one["response"]["id"] for one in events if "response" in one} == {last["id"]}
    [item] = last["output"]
    ids = {one.get("item_id") or one["item"]["id"] for one in events if "item_id" in one or "item" in one}
    assert ids == {item["id"]}
    assert deltas(RESPONSES, events) == item["content"][0]["text"] == said(RESPONSES, answer)
    free = api.ask(RESPONSES, **ASKED[RESPONSES], text={"format": {"type": "text"}})
    assert said(RESPONSES, free) == said(RESPONSES, answer)


# -- what is refused, and what is not there -------------------------------------------------------------------------


def test_what_is_no_conversation_is_refused(api: Api) -> None:
    turn = {"role": "user", "content": "hi"}
    for messages in (
        None, "string", [], [123], [{}], [{"role": 123}], [{"role": "system", "content": 123}], [{"content": "hi"}],
        [turn, {}], [{"role": "wizard", "content": "hi"}],
    ):  # fmt: skip
        field, _ = api.refused(CHAT, messages=messages)
        assert field.startswith("messages"), messages
    assert "`messages`" in api.refused(CHAT)[1]


def test_a_completion_has_one_prompt_of_text(api: Api) -> None:
    for prompt in (
        [12, 34],
        [[12, 34]],
        [[12, 34], [56]],
        [PROMPT, PROMPT],
        [12, PROMPT],
        {"prompt_string": PROMPT},
        5,
    ):
        field, _ = api.refused(TEXT, prompt=prompt)
        assert field.startswith("prompt"), prompt
    assert said(TEXT, api.ask(TEXT, prompt=[PROMPT], max_tokens=4)) == said(
        TEXT, api.ask(TEXT, prompt=PROMPT, max_tokens=4)
    )
    assert "empty" in api.refused(TEXT, prompt="")[1]


THEIRS: dict[str, Any] = {
    "n_predict": 8, "n_probs": 10, "post_sampling_probs": True, "response_fields": ["content"], "return_tokens": True,
    "return_progress": True, "timings_per_token": True, "cache_prompt": True, "id_slot": 1, "lora": [{"id": 0}],
    "grammar": 'root ::= "a"', "json_schema": {"const": "42"}, "ignore_eos": True, "samplers": ["top_k"],
    "mirostat": 2, "repeat_penalty": 1.3, "dry_multiplier": 0.8, "xtc_probability": 0.5, "typical_p": 0.5,
    "speculative.n_max": 8, "speculative.p_min": 0.0, "chat_template": "chatml", "reasoning_format": "deepseek",
    "chat_template_kwargs": {"enable_thinking": False}, "add_generation_prompt": False, "n_keep": 4, "n_discard": 4,
    "suffix": "}", "input_prefix": "a", "input_suffix": "b", "input_extra": [{"text": "c"}], "t_max_predict_ms": 9,
}  # fmt: skip


def test_fields_of_theirs_are_refused_by_name(api: Api) -> None:
    some = dict(list(THEIRS.items())[:4])
    for path, asked in ASKED.items():
        for name, value in (THEIRS if path == TEXT else some).items():
            field, message = api.refused(path, **asked, **{name: value})
            assert f"`{name}`" in message, path
            assert field == ("None" if path == MESSAGES else name)
    assert api.ask(TEXT, **ASKED[TEXT], ignore_eos=False, grammar=None, repeat_penalty=1.0)


ABSENT = (
    "/completion", "/infill", "/tokenize", "/detokenize", "/apply-template", "/embedding", "/rerank", "/v1/rerank",
    "/lora-adapters", "/slots", "/slots/0?action=save", "/props", "/metrics", "/models/load", "/tools", "/cors-proxy",
    "/v1/audio/transcriptions", "/v1/stream", "/",
)  # fmt: skip


def test_endpoints_of_theirs_are_not_there(api: Api) -> None:
    for path in ABSENT:
        for response in (api.client.get(path), api.client.post(path, json={"content": "a"})):
            assert response.status_code == 404, path
            assert "/v1/chat/completions" in response.json()["error"]["message"]


def test_the_one_model_is_listed_and_another_is_unknown(api: Api) -> None:
    [model] = api.client.get("/v1/models").json()["data"]
    assert (model["id"], api.client.get("/health").json()) == ("demo", {"status": "ok"})
    for path, asked in (ASKED | {EMBED: {"input": "a"}}).items():
        response = api.client.post(path, json=asked | {"model": "non-existent/model", "stream": True})
        if path == EMBED:
            response = api.client.post(path, json=asked | {"model": "non-existent/model"})
        assert response.status_code == 404, path


def test_a_key_opens_and_closes_nothing_and_no_other_page_may_ask(api: Api) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": "wrong"}):
        response = api.client.post(TEXT, json={"model": "demo", "prompt": PROMPT, "max_tokens": 1}, headers=headers)
        assert response.status_code == 200
    origin = {"origin": "https://web.example"}
    asking = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    preflight = api.client.options(TEXT, headers=origin | asking)
    assert preflight.status_code == 405
    for response in (preflight, api.client.get("/v1/models", headers=origin)):
        assert not [name for name in response.headers if name.startswith("access-control")]


def test_no_address_in_a_request_is_ever_fetched(api: Api) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        there = f"http://127.0.0.1:{server.getsockname()[1]}/cat.png"
        for url in (there, f"file://{PAGE}", "file:////etc/passwd", "data:image/png;base64,AAAA", "malformed"):
            part = {"type": "image_url", "image_url": {"url": url}}
            messages = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, part]}]
            field, message = api.refused(CHAT, messages=messages)
            assert (field, "`image_url`" in message) == ("messages[0].content[1].type", True)
            assert url not in message
        with pytest.raises(BlockingIOError):
            server.accept()


# -- the page -------------------------------------------------------------------------------------------------------


def test_the_page_names_every_test_here_and_no_other() -> None:
    here = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    here.remove("the_page_names_every_test_here_and_no_other")
    assert set(re.findall(r"`([a-z_]{12,})`(?= *\|)", PAGE.read_text())) == here

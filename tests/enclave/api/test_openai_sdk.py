"""OpenAI's own client, unmodified, against the API."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from confide.enclave.api.answer import Serving
from confide.enclave.api.app import api_app
from confide.enclave.api.limits import Limits
from confide.errors import EngineError

from ..fake_engine import FakeEngine
from ..serving import eventually, serving

MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}]
ANSWER = "You said: system: be brief | user: hi"


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="module")
def url(engine: FakeEngine) -> Iterator[str]:
    with serving(api_app(Serving(engine))) as url:
        yield url + "/v1"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["echo"]


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="echo", messages=MESSAGES)
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (6, 8, 14)


def test_chat_as_a_stream(client: openai.OpenAI) -> None:
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(model="echo", messages=MESSAGES, stream=True, stream_options=options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices] == [None] * 7 + ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 14
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_completions(client: openai.OpenAI, engine: FakeEngine) -> None:
    answer = client.completions.create(
        model="echo", prompt="one two three", max_tokens=3, temperature=0, top_p=0.5, seed=7, stop=["nothing"]
    )
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("You said: one", "length")
    asked = engine.asked[-1]
    assert (asked.max_tokens, asked.temperature, asked.top_p, asked.seed, asked.stop) == (3, 0, 0.5, 7, ("nothing",))
    parts = client.completions.create(model="echo", prompt="one two", stream=True, stop="two")
    assert "".join(part.choices[0].text for part in parts) == "You said: one "
    assert engine.asked[-1].temperature == 1.0


def test_embeddings(client: openai.OpenAI) -> None:
    for format in ("float", "base64"):
        found = client.embeddings.create(model="echo", input=["a", "bcd"], encoding_format=format)
        if format == "float":
            assert [one.embedding for one in found.data] == [[1.0, 0.5], [3.0, 0.5]]
    found = client.embeddings.create(model="echo", input="four")
    assert found.data[0].embedding == [4.0, 0.5]
    assert found.usage.prompt_tokens == 1


def test_embeddings_count_the_tokens_of_all_texts(client: openai.OpenAI) -> None:
    found = client.embeddings.create(model="echo", input=["one two", "three", "one two"])
    assert (found.usage.prompt_tokens, found.usage.total_tokens) == (5, 5)
    assert [one.index for one in found.data] == [0, 1, 2]
    assert found.data[0].embedding == found.data[2].embedding
    for wrong in ([], {"content": "a"}, [1, 2], ["a", 1], None):
        with pytest.raises(openai.BadRequestError) as caught:
            client.embeddings.create(model="echo", input=wrong)  # type: ignore[arg-type]
        assert (caught.value.param or "").startswith("input")


@pytest.mark.parametrize(
    "messages",
    [
        None,
        "text",
        [1],
        [{}],
        [{"role": 1}],
        [{"role": "system", "content": 1}],
        [{"content": "a"}],
        [{"role": "system", "content": "a"}, {}],
        [{"role": "user", "content": {"type": "text", "text": "a"}}],
    ],
    ids=["none", "text", "number", "empty", "role", "content", "no role", "second", "part"],
)
def test_what_is_no_conversation_is_refused(client: openai.OpenAI, messages: Any) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="echo", messages=messages, stream=stream)
        assert (caught.value.param or "").startswith("messages")


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
def test_parts_that_are_no_text_are_refused_by_their_kind(client: openai.OpenAI, kind: str) -> None:
    parts: Any = [{"type": "text", "text": "a"}, {"type": kind, kind: {"url": "data:,a secret"}}]
    with pytest.raises(openai.BadRequestError, match=f"`{kind}`") as caught:
        client.chat.completions.create(model="echo", messages=[{"role": "user", "content": parts}])
    assert "secret" not in str(caught.value)


def test_parts_of_a_message_are_joined(client: openai.OpenAI) -> None:
    parts: Any = [{"type": "text", "text": "What is"}, {"type": "text", "text": " it"}]
    messages: Any = [{"role": "developer", "content": parts}, {"role": "user", "content": parts}]
    answer = client.chat.completions.create(model="echo", messages=messages)
    assert answer.choices[0].message.content == "You said: system: What is it | user: What is it"


def test_a_stream_is_what_the_whole_answer_is(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="echo", prompt="a b c", stop="c")
    parts = list(client.completions.create(model="echo", prompt="a b c", stop="c", stream=True))
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text
    assert [part.choices[0].finish_reason for part in parts][-1] == whole.choices[0].finish_reason
    assert len({part.id for part in parts}) == 1


def test_a_prompt_beyond_the_context_is_refused_before_a_stream_begins(client: openai.OpenAI) -> None:
    long: Any = [{"role": "user", "content": "word " * 1100}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=r"has 1\d{3} tokens, and 999 are taken") as caught:
            client.chat.completions.create(model="echo", messages=long, stream=stream)
        assert caught.value.code == "context_length_exceeded"


def test_stop_texts_are_sixteen_at_most(client: openai.OpenAI, engine: FakeEngine) -> None:
    stops = [f"stop {number}" for number in range(16)]
    client.chat.completions.create(model="echo", messages=MESSAGES, stop=stops)
    assert engine.asked[-1].stop == tuple(stops)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="echo", messages=MESSAGES, stop=[*stops, "one"])
    assert caught.value.param == "stop"


def test_errors_are_openais(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="not served here") as caught:
        client.chat.completions.create(model="gpt-4", messages=MESSAGES)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="echo", prompt="word " * 1000)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="echo", prompt="word", max_tokens=1000, stream=True)
    assert caught.value.code == "context_length_exceeded"
    for harmful in ({"top_logprobs": 2}, {"functions": [{"name": "f"}]}, {"presence_penalty": 2.5}):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="echo", messages=MESSAGES, **harmful)
        assert str(caught.value.param).startswith(next(iter(harmful)))


def test_several_choices(client: openai.OpenAI, engine: FakeEngine) -> None:
    before = len(engine.asked)
    answer = client.chat.completions.create(model="echo", messages=MESSAGES, n=3, seed=5)
    assert [(one.index, one.message.content) for one in answer.choices] == [(index, ANSWER) for index in range(3)]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (6, 24, 30)
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 2
    assert [asked.seed for asked in engine.asked[before:]] == [5, 6, 7]
    options = {"include_usage": True}
    *chunks, last = client.chat.completions.create(
        model="echo", messages=MESSAGES, n=2, stream=True, stream_options=options
    )
    for index in range(2):
        own = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert "".join(part.delta.content or "" for part in own) == ANSWER
        assert [part.delta.role for part in own] == ["assistant"] + [None] * 7
        assert [part.finish_reason for part in own] == [None] * 7 + ["stop"]
    assert last.usage is not None
    assert last.usage.completion_tokens == 16


def test_many_choices_are_bounded_together(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="in all"):
        client.completions.create(model="echo", prompt="a", n=16, max_tokens=600)
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="echo", prompt="a", n=17)
    assert caught.value.param == "n"


def test_logprobs_of_a_conversation(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="echo", messages=MESSAGES, logprobs=True, top_logprobs=2)
    told = answer.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    assert "".join(one.token for one in told.content) == ANSWER
    assert [one.logprob for one in told.content] == [-0.5 * index for index in range(8)]
    assert all(bytes(one.bytes or ()).decode() == one.token for one in told.content)
    assert [(top.token, top.logprob) for top in told.content[3].top_logprobs] == [("other0", -5), ("other1", -6)]
    chunks = client.chat.completions.create(model="echo", messages=MESSAGES, logprobs=True, stream=True)
    streamed = [one for chunk in chunks for one in (chunk.choices[0].logprobs.content or ())]  # type: ignore[union-attr]
    assert [one.token for one in streamed] == [one.token for one in told.content]
    assert not any(one.top_logprobs for one in streamed)
    assert client.chat.completions.create(model="echo", messages=MESSAGES).choices[0].logprobs is None


def test_logprobs_of_a_text(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="echo", prompt="één two", logprobs=1)
    told = answer.choices[0].logprobs
    assert told is not None
    assert told.tokens == ["You ", "said: ", "één ", "two"]
    assert told.text_offset == [0, 4, 10, 14]
    assert told.token_logprobs == [0, -0.5, -1, -1.5]
    assert told.top_logprobs == [{"other0": -5}] * 4
    parts = list(client.completions.create(model="echo", prompt="één two", logprobs=0, stream=True))
    assert [offset for part in parts for offset in part.choices[0].logprobs.text_offset] == [0, 4, 10, 14]  # type: ignore[union-attr]


def test_the_best_of_several(client: openai.OpenAI, engine: FakeEngine) -> None:
    answer = client.completions.create(model="echo", prompt="one", n=2, best_of=4, seed=1, max_tokens=2)
    assert [one.index for one in answer.choices] == [0, 1]
    assert all(one.logprobs is None for one in answer.choices)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    assert [asked.seed for asked in engine.asked[-4:]] == [1, 2, 3, 4]
    told = client.completions.create(model="echo", prompt="one", n=2, best_of=4, seed=-2, logprobs=0).choices
    assert [one.logprobs.token_logprobs[0] for one in told] == [2, 1]  # type: ignore[index,union-attr]
    for wrong in ({"best_of": 1, "n": 2}, {"best_of": 2, "stream": True}):
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model="echo", prompt="one", **wrong)
        assert caught.value.param == "best_of"


def test_a_text_with_its_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="echo", prompt="one two", echo=True, n=2)
    assert [one.text for one in answer.choices] == ["one twoYou said: one two"] * 2
    parts = client.completions.create(model="echo", prompt="one two", echo=True, stream=True)
    assert "".join(part.choices[0].text for part in parts) == "one twoYou said: one two"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="echo", prompt="one two", echo=True, logprobs=1)
    assert caught.value.param == "echo"


def test_how_tokens_are_chosen_reaches_the_engine(client: openai.OpenAI, engine: FakeEngine) -> None:
    client.chat.completions.create(
        model="echo",
        messages=[{"role": "developer", "content": "be brief"}, {"role": "user", "content": "hi"}],
        presence_penalty=0.5,
        frequency_penalty=-1.5,
        logit_bias={"7": -100, "12": 3.5},
        max_completion_tokens=3,
        extra_body={"min_p": 0.2, "top_k": 4},
    )
    asked = engine.asked[-1]
    assert (asked.presence_penalty, asked.frequency_penalty, asked.min_p, asked.top_k) == (0.5, -1.5, 0.2, 4)
    assert (asked.logit_bias, asked.max_tokens, asked.logprobs) == ({7: -100, 12: 3.5}, 3, None)


def test_a_form_reaches_the_engine(client: openai.OpenAI, engine: FakeEngine) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    format: Any = {"type": "json_schema", "json_schema": {"name": "it", "strict": True, "schema": schema}}
    client.chat.completions.create(model="echo", messages=MESSAGES, response_format=format)
    form = engine.asked[-1].form
    assert form is not None
    assert '"properties":{"a":{"type":"integer"}}' in form.grammar
    assert "integer" not in repr(form)
    client.chat.completions.create(model="echo", messages=MESSAGES, response_format={"type": "json_object"})
    assert engine.asked[-1].form is not None
    client.chat.completions.create(model="echo", messages=MESSAGES, response_format={"type": "text"})
    assert engine.asked[-1].form is None


class Pair(BaseModel):
    """As people write them."""

    left: int
    right: str | None


def test_the_sdks_own_forms_are_taken_and_parsed(client: openai.OpenAI) -> None:
    with serving(api_app(Serving(FakeEngine(says='{"left": 1, "right": null}')))) as url:
        own = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
        parsed = own.chat.completions.parse(model="echo", messages=MESSAGES, response_format=Pair)
        assert parsed.choices[0].message.parsed == Pair(left=1, right=None)
        with own.chat.completions.stream(model="echo", messages=MESSAGES, response_format=Pair) as stream:
            assert stream.get_final_completion().choices[0].message.parsed == Pair(left=1, right=None)


def test_what_an_engine_cannot_do_is_refused_by_name() -> None:
    fields: dict[str, Any] = {
        "logprobs": 1, "min_p": 0.1, "top_k": 3, "presence_penalty": 1.0, "frequency_penalty": 1.0,
        "logit_bias": {"1": 1}, "best_of": 2,
    }  # fmt: skip
    engine = FakeEngine(cannot=frozenset(fields))
    with serving(api_app(Serving(engine))) as url:
        client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
        for name, value in fields.items():
            with pytest.raises(openai.BadRequestError, match=f"`{name}`") as caught:
                client.completions.create(model="echo", prompt="a", extra_body={name: value})
            assert caught.value.param == name
        assert not engine.asked
        client.completions.create(model="echo", prompt="a", presence_penalty=0, logit_bias={})


def test_harmless_fields_pass(client: openai.OpenAI) -> None:
    client.chat.completions.create(
        model="echo", messages=MESSAGES, user="me", n=1, logprobs=False, extra_body={"something_new": None}
    )


def test_unknown_fields_are_refused_by_name(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="`something_new`"):
        client.chat.completions.create(model="echo", messages=MESSAGES, extra_body={"something_new": [1]})


async def ask_at_once(url: str) -> list[str]:
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        whole = await client.chat.completions.create(model="echo", messages=MESSAGES)
        assert whole.choices[0].message.content == ANSWER

        async def one(index: int) -> str:
            stream = await client.completions.create(model="echo", prompt=f"this is {index}", stream=True)
            return "".join([chunk.choices[0].text async for chunk in stream])

        return await asyncio.gather(*map(one, range(16)))


def test_sixteen_streams_at_once() -> None:
    engine = FakeEngine(pause=0.1)
    with serving(api_app(Serving(engine))) as url:
        assert asyncio.run(ask_at_once(url + "/v1")) == [f"You said: this is {index}" for index in range(16)]
    assert engine.most_running == 16


def test_an_error_within_a_stream_is_raised() -> None:
    engine = FakeEngine(broken=EngineError("The model is at a loss; ask something else."))
    with serving(api_app(Serving(engine))) as url:
        client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
        stream = client.completions.create(model="echo", prompt="one", stream=True)
        assert [next(stream).choices[0].text for _ in range(2)] == ["You ", "said: "]
        with pytest.raises(openai.APIError, match="at a loss"):
            next(stream)
        with pytest.raises(openai.InternalServerError, match="at a loss") as caught:
            client.completions.create(model="echo", prompt="one")
        assert caught.value.status_code == 502


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_the_engine(stream: bool) -> None:
    engine = FakeEngine(pause=0.05)
    with serving(api_app(Serving(engine))) as url:
        client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=0.5)
        if stream:
            answer = client.completions.create(model="echo", prompt="word " * 500, stream=True)
            assert next(iter(answer)).choices[0].text == "You "
            answer.close()
        else:
            with pytest.raises(openai.APITimeoutError):
                client.completions.create(model="echo", prompt="word " * 500)
        eventually(lambda: engine.stopped == 1)
        assert engine.running == 0


def test_the_line_is_full_before_work_is_spent() -> None:
    engine = FakeEngine(pause=0.1, parallel=1)
    with serving(api_app(Serving(engine, limits=Limits(waiting=1, answer_tokens=400)))) as url:
        client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
        with ThreadPoolExecutor(2) as others:
            begun = client.completions.create(model="echo", prompt="word " * 10, stream=True)
            waits = others.submit(client.completions.create, model="echo", prompt="word")
            eventually(lambda: httpx.get(f"{url}/health").is_success and len(engine.asked) == 1)
            time.sleep(0.3)
            with pytest.raises(openai.RateLimitError, match="line is full") as caught:
                client.completions.create(model="echo", prompt="word")
            assert 1 <= int(caught.value.response.headers["retry-after"]) <= 600
            assert len(engine.asked) == 1
            assert "word" in "".join(chunk.choices[0].text for chunk in begun)
            assert waits.result().choices[0].text == "You said: word"
        with pytest.raises(openai.BadRequestError, match="at most 400"):
            client.completions.create(model="echo", prompt="word", max_tokens=401)


def test_waiting_is_not_silence_but_silence_is() -> None:
    engine = FakeEngine(pause=0.2, parallel=1)
    with serving(api_app(Serving(engine, limits=Limits(engine_seconds=0.5)))) as url:
        client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
        with ThreadPoolExecutor(4) as users:
            asked = [users.submit(client.completions.create, model="echo", prompt="word") for _ in range(4)]
            assert [one.result().choices[0].text for one in asked] == ["You said: word"] * 4
        engine.pause = 2
        started = time.monotonic()
        with pytest.raises(openai.InternalServerError, match="stopped answering") as late:
            client.completions.create(model="echo", prompt="word")
        assert late.value.status_code == 504
        assert time.monotonic() - started < 1.5
        assert engine.running == 0

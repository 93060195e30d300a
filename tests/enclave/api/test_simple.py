"""/generate and /chat, with the plain tools people have."""

import ast
import base64
import json
import subprocess
from collections.abc import Iterator

import httpx
import pytest

from confide.enclave.api.answer import Serving
from confide.enclave.api.app import api_app
from confide.errors import EngineError

from ..fake_engine import FakeEngine
from ..serving import eventually, serving


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(api_app(Serving(FakeEngine()))) as url:
        yield url


def curl(*arguments: str) -> str:
    return subprocess.run(
        ["curl", "--silent", "--no-buffer", *arguments], capture_output=True, timeout=900, check=True, text=True
    ).stdout


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_generate(url: str) -> None:
    assert json.loads(curl(f"{url}/generate", "--data", '{"query": "héllo"}')) == {"response": "You said: héllo"}
    assert json.loads(curl(f"{url}/generate", "--data", '{"query": "a b", "max_tokens": 3}'))["response"].endswith("a")


def test_the_example_s_requests_are_answered_as_it_does() -> None:
    """Cosmian's mse-example-gpt: 64 tokens and seed 123; GET streams events data and one end, {}."""
    engine = FakeEngine()
    with serving(api_app(Serving(engine))) as url:
        words = " ".join(str(number) for number in range(100))
        assert httpx.post(f"{url}/generate", json={"query": words}).json()["response"].split()[-1] == "61"
        with httpx.stream("GET", f"{url}/generate", params={"prompt": encoded(words)}) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            *pieces, end = events(response)
        assert [name for name, _ in pieces] == ["data"] * 64
        assert "".join(ast.literal_eval(data) for _, data in pieces).split()[-1] == "61"  # as its client reads them
        assert end == ("end", "{}")
        assert httpx.get(f"{url}/health").status_code == 200
        httpx.post(f"{url}/generate", json={"query": "a", "max_tokens": 7, "seed": 0})
    assert [(asked.max_tokens, asked.seed) for asked in engine.asked] == [(64, 123), (64, 123), (7, 0)]


@pytest.mark.parametrize("words", [35, 36, 37, 200])
def test_of_a_long_history_the_end_is_taken(words: int) -> None:
    engine = FakeEngine(context=100)
    history = " ".join(f"word{number}" for number in range(words))
    with serving(api_app(Serving(engine))) as url:
        with httpx.stream("GET", f"{url}/generate", params={"prompt": encoded(history)}) as response:
            said = "".join(json.loads(data) for name, data in events(response) if name == "data")
        expected = history.split()[-36:]
        assert said.split()[2:] == expected
        assert httpx.post(f"{url}/generate", json={"query": " ".join(["a"] * 37)}).status_code == 400


@pytest.mark.parametrize("path", ["/generate", "/generate?prompt=", "/generate?prompt=%25", "/generate?query=a"])
def test_a_stream_needs_a_prompt(url: str, path: str) -> None:
    assert httpx.get(url + path).status_code == 400
    assert httpx.post(f"{url}/generate", json={"query": ""}).status_code == 400


def test_openai_by_curl(url: str) -> None:
    body = '{"model": "echo", "messages": [{"role": "user", "content": "hi"}], "stream": true}'
    lines = curl(f"{url}/v1/chat/completions", "--json", body).strip().split("\n\n")
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[0].removeprefix("data: "))["choices"][0]["delta"]["content"] == "You "
    assert json.loads(curl(f"{url}/health")) == {"status": "ok"}


def events(response: httpx.Response) -> Iterator[tuple[str, str]]:
    """Name and data, as an SSE client sees them."""
    event = {}
    for line in response.iter_lines():
        if line:
            name, _, value = line.partition(": ")
            event[name] = value.rstrip()
        else:
            yield event.get("event", "message"), event["data"]
            event = {}


def test_events_do_not_tell_the_length_of_tokens(url: str) -> None:
    prompt = "i unbelievably interdisciplinary é of internationalization"
    for path, body in (
        ("/chat", {"prompt": encoded(prompt)}),
        ("/v1/completions", {"model": "echo", "prompt": prompt, "stream": True}),
    ):
        events = httpx.post(url + path, json=body).content.removesuffix(b"data: [DONE]\n\n").split(b"\n\n")
        assert len(events) >= 8
        assert {len(event) + 2 for event in events[:-1]} == {256}
        assert events[-1] == b""


def chat(url: str, **content: object) -> tuple[str, list[tuple[str, str]]]:
    with httpx.stream("POST", f"{url}/chat", json=content) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        seen = list(events(response))
    return "".join(json.loads(data) for name, data in seen if name == "data"), seen


def test_chat_with_history(url: str) -> None:
    history = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    text, seen = chat(url, prompt=encoded("and ünow?"), history=history)
    assert text == "You said: user: hi | assistant: ho | user: and ünow?"
    assert seen[-1] == ("end", '{"finish_reason":"stop"}')
    assert {name for name, _ in seen[:-1]} == {"data"}


def test_chat_with_a_raw_prompt(url: str) -> None:
    assert chat(url, prompt=encoded("as it is"))[0] == "You said: as it is"
    assert chat(url, prompt=encoded("a turn"), history=[])[0] == "You said: user: a turn"
    with httpx.stream("GET", f"{url}/chat", params={"prompt": encoded("by EventSource")}) as response:
        assert [name for name, _ in events(response)] == ["data"] * 4 + ["end"]


@pytest.mark.parametrize("prompt", ["%%%", "abc", base64.b64encode(b"\xff\xfe").decode(), None, 5])
def test_a_prompt_that_is_not_base64(url: str, prompt: object) -> None:
    response = httpx.post(f"{url}/chat", json={"prompt": prompt})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt")


def test_an_error_within_chat_is_an_event() -> None:
    engine = FakeEngine(broken=EngineError("The model is at a loss; ask something else."))
    with serving(api_app(Serving(engine))) as url:
        _, seen = chat(url, prompt=encoded("one"))
    assert [name for name, _ in seen] == ["data", "data", "error"]
    assert json.loads(seen[-1][1])["error"]["code"] == "engine"


def test_a_crash_within_chat_cuts_the_connection() -> None:
    engine = FakeEngine(broken=ValueError("a secret"))
    with serving(api_app(Serving(engine))) as url:
        with pytest.raises(httpx.RemoteProtocolError):
            chat(url, prompt=encoded("one"))
        eventually(lambda: engine.running == 0)
        assert httpx.post(f"{url}/generate", json={"query": "one"}).status_code == 500

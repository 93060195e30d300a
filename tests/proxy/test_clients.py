"""Clients as they are, given nothing but the proxy's address: what they send is answered, or refused by a sentence.

The larger ones are installed by `make clients` into .venv-clients: they want other versions of what Confide uses.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tests.enclave.fake_engine import FakeEngine
from tests.enclave.serving import eventually, serving
from tests.proxy.local import proxied, settled

from confide.attest.simulated import SimulatedTee
from confide.enclave.api.answer import Serving
from confide.enclave.api.public import public_app
from confide.enclave.workload import Workload
from confide.proxy.workload import WorkloadAddress, WorkloadBackend

KEY = "the-key"
INSTALLED = Path(__file__).parents[2] / ".venv-clients"
SCRIPTS = Path(__file__).parent / "clients"
CHAT: dict[str, Any] = {"model": "echo", "messages": [{"role": "user", "content": "good morning"}]}
SAID = "You said: user: good morning"
LONG: dict[str, Any] = {"model": "echo", "prompt": "word " * 500}


@dataclass(frozen=True)
class Place:
    url: str
    engine: FakeEngine

    @property
    def environment(self) -> dict[str, str]:
        """What a user of the proxy exports, and nothing else."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        return kept | {"OPENAI_BASE_URL": f"{self.url}/v1", "OPENAI_API_KEY": KEY}

    def run(self, *command: object, seconds: float = 120, **more: str) -> str:
        done = subprocess.run(
            list(map(str, command)), env=self.environment | more, capture_output=True, text=True, timeout=seconds
        )
        assert not done.returncode, done.stderr[-2000:]
        return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A proxy that wants a key, before the real API of a workload in a simulated environment."""
    folder = tmp_path_factory.mktemp("tee")
    tee = SimulatedTee.create(folder)
    engine = FakeEngine(pause=0.002)
    app = public_app(Workload(tee, tee.collateral), Serving(engine))  # type: ignore[arg-type]
    with serving(app) as workload:
        address = WorkloadAddress(workload, simulated_root=folder / "root.pem")
        with proxied(lambda: [WorkloadBackend("", address, 3600)], keys=(KEY,)) as url:
            settled(url, "ready")
            yield Place(url, engine)


@pytest.fixture
def sdk(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[openai.OpenAI]:
    for name, value in place.environment.items():
        monkeypatch.setenv(name, value)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with openai.OpenAI() as client:
        yield client


def choices(text: str) -> list[Any]:
    """The first choice of each event of a stream, which has an end."""
    *events, end = [line.removeprefix("data: ").strip() for line in text.splitlines() if line]
    assert end == "[DONE]"
    return [json.loads(event)["choices"][0] for event in events]


def chatted(text: str) -> str:
    return "".join(choice["delta"].get("content", "") for choice in choices(text))


def stopped(place: Place, before: int) -> None:
    """The engine has stopped one more answer, and makes none."""
    eventually(lambda: place.engine.stopped > before and not place.engine.running)


# -- openai, Python ---------------------------------------------------------------------------------------------


def test_openai_needs_nothing_but_the_environment(sdk: openai.OpenAI) -> None:
    whole = sdk.chat.completions.create(**CHAT)
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (SAID, "stop")
    assert whole.usage is not None
    parts = list(sdk.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True}))
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == SAID
    assert parts[-1].usage == whole.usage
    assert sdk.embeddings.create(model="echo", input=["a", "b"]).data[1].embedding == [1.0, 0.5]
    assert [(model.id, model.object) for model in sdk.models.list()] == [("echo", "model")]
    with pytest.raises(openai.NotFoundError, match="/v1/models says which"):
        sdk.chat.completions.create(**CHAT | {"model": "gpt-4o"})
    with pytest.raises(openai.BadRequestError, match="`reasoning_effort` is not offered"):
        sdk.chat.completions.create(**CHAT, reasoning_effort="high")
    with pytest.raises(openai.AuthenticationError, match="OPENAI_API_KEY"):
        sdk.with_options(api_key="other").models.list()


def test_openai_keeps_its_connection(sdk: openai.OpenAI) -> None:
    def port() -> Any:
        raw = sdk.chat.completions.with_raw_response.create(**CHAT)
        return raw.http_response.extensions["network_stream"].get_extra_info("client_addr")

    assert port() == port()  # after a stream it is the SDK that opens another one


def test_whoever_leaves_a_stream_stops_the_work(place: Place, sdk: openai.OpenAI) -> None:
    before = place.engine.stopped
    stream = sdk.completions.create(**LONG, stream=True)
    next(iter(stream))
    assert place.engine.running
    stream.close()
    stopped(place, before)


def test_whoever_does_not_wait_for_a_whole_answer_stops_the_work(place: Place, sdk: openai.OpenAI) -> None:
    before = place.engine.stopped
    with pytest.raises(openai.APITimeoutError):
        sdk.with_options(timeout=0.2, max_retries=0).completions.create(**LONG)
    stopped(place, before)


# -- curl -------------------------------------------------------------------------------------------------------

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def curl(place: Place, path: str, body: dict[str, Any], *more: str) -> list[str]:
    url = f"{place.url}/v1{path}"
    head = ["-H", f"Authorization: Bearer {KEY}", "-H", "Content-Type: application/json"]
    return ["curl", "-sS", "--noproxy", "*", *more, *head, "-d", json.dumps(body), url]


@needs_curl
def test_curl(place: Place) -> None:
    asked = curl(place, "/chat/completions", CHAT, "-w", "\\n%{num_connects}\\n")
    answer, connects, again, none = place.run(*asked, asked[-1]).splitlines()
    assert json.loads(answer)["choices"][0]["message"]["content"] == SAID
    assert json.loads(again)["choices"] == json.loads(answer)["choices"]
    assert (connects, none) == ("1", "0")  # the connection is kept
    assert chatted(place.run(*curl(place, "/chat/completions", CHAT | {"stream": True}, "-N"))) == SAID
    refused = json.loads(place.run(*curl(place, "/audio/speech", CHAT)))["error"]
    assert (refused["type"], "no such endpoint" in refused["message"]) == ("invalid_request_error", True)


@needs_curl
def test_curl_that_is_stopped_stops_the_work(place: Place) -> None:
    before = place.engine.stopped
    command = curl(place, "/completions", LONG | {"stream": True}, "-N")
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=place.environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"data: ")
        process.terminate()
    stopped(place, before)


# -- Node -------------------------------------------------------------------------------------------------------

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")


@needs_node
def test_the_fetch_of_node(place: Place) -> None:
    before = place.engine.stopped
    got = json.loads(place.run("node", SCRIPTS / "fetch.mjs"))
    assert (got["whole"], got["streamed"], got["names"]) == (SAID, SAID, ["echo"])
    assert got["failure"] == "404 This model is not served here; /v1/models says which are."
    stopped(place, before)


# -- editors ----------------------------------------------------------------------------------------------------

FILL_IN = "<fim_prefix>def add(a, b):\n    return <fim_suffix>\n<fim_middle>"
STOPS = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<file_sep>", "<|endoftext|>", "/src/", "#- coding", "```"]
SHARED = {"max_tokens": 20, "temperature": 0.01, "top_p": 1, "frequency_penalty": 0, "presence_penalty": 0}


def ask(place: Place, path: str, body: dict[str, Any]) -> httpx.Response:
    head = {"authorization": f"Bearer {KEY}", "api-key": KEY}
    return httpx.post(f"{place.url}/v1{path}", json=body, headers=head, trust_env=False)


def test_an_editor_that_chats(place: Place) -> None:
    body = CHAT | SHARED | {"stream": True, "stop": STOPS, "prediction": {"type": "content", "content": "x"}}
    body["messages"] = [
        {"role": "system", "content": "You edit."},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    ]
    assert chatted(ask(place, "/chat/completions", body).text) == "You said: system: You edit. | user: hi"


def test_an_editor_that_completes_code(place: Place) -> None:
    body = {"model": "echo", "prompt": "a b c", "stream": True, "stop": STOPS, **SHARED}
    parts = choices(ask(place, "/completions", body).text)
    assert "".join(part["text"] for part in parts) == "You said: a b c"
    stopped_at = ask(place, "/completions", body | {"prompt": FILL_IN, "stream": False}).json()["choices"][0]
    assert (stopped_at["finish_reason"], "fim" in stopped_at["text"]) == ("stop", False)


@pytest.mark.parametrize(
    ("path", "more", "words"),
    [
        ("/completions", {"prompt": "a", "suffix": "b"}, "`suffix` is not offered here"),
        ("/fim/completions", {"prompt": "a", "suffix": "b"}, "no such endpoint"),
        ("/completions", {"prompt": ["a", "b"]}, "length <= 1"),
        ("/chat/completions", CHAT | {"tools": [{"type": "function", "function": {"name": "edit"}}]}, "`tools`"),
    ],
    ids=["suffix", "fim", "several prompts", "tools"],
)
def test_what_an_editor_may_not_have_is_said(place: Place, path: str, more: dict[str, Any], words: str) -> None:
    refused = ask(place, path, {"model": "echo", **more})
    assert refused.status_code in (400, 404)
    assert words in refused.json()["error"]["message"]


# -- what `make clients` installs -------------------------------------------------------------------------------


def installed(path: str) -> Path:
    """A program or folder of .venv-clients."""
    found = INSTALLED / path
    if not found.exists():
        assert "CI" not in os.environ, "The long tests need what `make clients` installs."
        pytest.skip("not installed; `make clients` does that")
    return found


def shown(place: Place, got: dict[str, Any], before: int) -> None:
    """It was answered as it should be, told what it may not have, and stopped the work that it left."""
    assert (got["whole"], got["streamed"], got["text"].strip()) == (SAID, SAID, "You said: a")
    assert got["usage"] == len(f"{SAID} user: good morning".split())
    assert got.get("embedding", [3.0, 0.5]) == [3.0, 0.5]
    assert "This model is not served here; /v1/models says which are." in got["failure"]
    stopped(place, before)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["langchain", "litellm", "llamaindex"])
def test_libraries(place: Place, name: str) -> None:
    python = installed("bin/python")
    before = place.engine.stopped
    more = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "OPENAI_API_BASE": f"{place.url}/v1"}
    shown(place, json.loads(place.run(python, SCRIPTS / "libraries.py", name, **more).splitlines()[-1]), before)


@pytest.mark.slow
@needs_node
def test_openai_for_node(place: Place) -> None:
    modules = installed("node_modules/openai").parent
    before = place.engine.stopped
    got = json.loads(place.run("node", SCRIPTS / "openai.cjs", NODE_PATH=str(modules)))
    assert (got["names"], got["failure"][:13]) == (["echo"], "NotFoundError")
    shown(place, got, before)


@pytest.mark.slow
def test_llm(place: Place, tmp_path: Path) -> None:
    """By a file of its own: it does not read the environment for where other models are."""
    llm = installed("bin/llm")
    common = {"model_name": "echo", "api_base": f"{place.url}/v1", "api_key_name": "confide"}
    models = [common | {"model_id": "private"}, common | {"model_id": "text", "completion": True}]
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(models))  # which is YAML too

    def answer(*arguments: str) -> str:
        return place.run(llm, *arguments, "--key", KEY, LLM_USER_PATH=str(tmp_path)).strip()

    assert answer("-m", "private", "good morning") == SAID
    assert answer("-m", "private", "--no-stream", "good morning") == SAID
    assert answer("-m", "text", "a") == "You said: a"

"""What only the upstream engine promises: where it goes, and what it says when the server is away."""

import asyncio
import json
from collections.abc import Callable
from contextlib import aclosing, closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from tests.enclave.engines.conftest import PROMPT, Answer, answer

from confide.enclave.engines.engine import EngineFacts, Sampling
from confide.enclave.engines.upstream import UpstreamEngine
from confide.errors import EngineError, EngineFault, InsecureConnection
from confide.models.source import open_model

FACTS = EngineFacts("demo", "fake", "f32", 512)
TOKENIZER = open_model("demo").load_tokenizer()
PLAIN = Sampling(4, 0)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy with other things takes seconds to connect to itself."""
    monkeypatch.setattr("confide.enclave.engines.upstream.CONNECT_SECONDS", 60.0)


def ask(url: str) -> EngineError:
    """The error that asking for an answer ends in. It says nothing of the prompt."""

    async def main() -> EngineError:
        engine = UpstreamEngine(url, FACTS, TOKENIZER)
        with pytest.raises(EngineError) as error:
            await answer(engine, PROMPT, Sampling(4, 0))
        await engine.close()
        return error.value

    error = asyncio.run(main())
    assert "king" not in str(error)
    return error


def respond(status: int, *chunks: object) -> Callable[[], str]:
    """A server that answers every request so, once, and quotes the prompt in what goes wrong."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))  # what is left unread at the end resets a connection
            self.send_response(status)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            for chunk in chunks:
                self.wfile.write(f"data: {chunk if isinstance(chunk, str) else json.dumps(chunk)}\n\n".encode())

        def log_message(self, *_: object) -> None:
            pass

    def serve() -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        with closing(server.socket):
            Thread(target=server.serve_forever, daemon=True).start()
            try:
                return str(ask(f"http://127.0.0.1:{server.server_port}/v1"))
            finally:
                server.shutdown()

    return serve


TEXT = {"choices": [{"text": " the king", "finish_reason": None}]}
END = {"choices": [{"text": "", "finish_reason": "length"}]}
USAGE = {"choices": [], "usage": {"completion_tokens": 2}}


@pytest.mark.parametrize(
    ("serve", "said"),
    [
        (respond(500), "status 500"),
        (respond(307), "status 307"),
        (respond(200, TEXT), "finish reason or usage"),
        (respond(200, TEXT, END), "finish reason or usage"),
        (respond(200, TEXT, USAGE), "finish reason or usage"),
        (respond(200, TEXT, {"error": {"message": "the king"}}), "broke off"),
        (respond(200, "the king"), "OpenAI protocol"),
        (respond(200, '{"x":' + "[" * 100_000), "OpenAI protocol"),
    ],
)
def test_what_goes_wrong_is_said_in_a_sentence_without_the_prompt(serve: Callable[[], str], said: str) -> None:
    assert said in serve()


def test_a_server_that_is_away() -> None:
    assert "away" in str(ask("http://127.0.0.1:9/v1"))


@pytest.mark.parametrize(
    "url", ["http://10.0.0.1:8000/v1", "https://example.org/v1", "http://127.0.0.1.example.org/v1"]
)
def test_other_machines_are_refused_unless_allowed(url: str) -> None:
    with pytest.raises(InsecureConnection):
        UpstreamEngine(url, FACTS, TOKENIZER)
    asyncio.run(UpstreamEngine(url, FACTS, TOKENIZER, insecure_remote=True).close())


def test_a_key_is_not_shown() -> None:
    engine = UpstreamEngine("http://localhost:8000/v1", FACTS, TOKENIZER, api_key="a secret")
    assert "a secret" not in repr(engine) + repr(vars(engine))
    asyncio.run(engine.close())


def answered(
    events: str,
    sampling: Sampling = PLAIN,
    asked: list[dict[str, Any]] | None = None,
    *,
    leave: bool = False,
) -> Answer:
    """An answer from a server that sends these events, byte for byte. asked: gets what it was asked. leave: after the
    first piece.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if asked is not None:
                asked.append(json.loads(body))
            self.send_response(200)
            self.send_header("content-type", "text/event-stream; charset=utf-8")
            self.end_headers()
            for byte in events.encode():
                self.wfile.write(bytes([byte]))  # wherever packets are cut

        def log_message(self, *_: object) -> None:
            pass

    async def main(url: str) -> Answer:
        engine = UpstreamEngine(url, FACTS, TOKENIZER)
        try:
            if leave:
                async with aclosing(engine.generate(PROMPT, sampling)) as pieces:
                    first = await anext(pieces)
                return Answer(first.text, first.tokens, first.finish, 1)
            return await answer(engine, PROMPT, sampling)
        finally:
            await engine.close()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    with closing(server.socket):
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            return asyncio.run(main(f"http://127.0.0.1:{server.server_port}/v1"))
        finally:
            server.shutdown()


def events(text: str, finish: str | None, *, before: str = "data: ", end: str = "\n\n") -> str:
    chunks = [{"choices": [{"text": text}]}, {"choices": [{"text": "", "finish_reason": finish}]}, USAGE]
    lines = [json.dumps(chunk, ensure_ascii=False) for chunk in chunks]
    return "".join(f"{before}{line}{end}" for line in (*lines, "[DONE]"))


def test_what_a_server_keeps_of_prompts_is_each_users_own() -> None:
    asked: list[dict[str, Any]] = []
    one, other = bytes(32), bytes([1]) * 32
    for salt in (one, one, other, None, None):
        answered(events("one", "stop"), Sampling(4, 0, salt=salt), asked)
    first, again, *rest = [request["cache_salt"] for request in asked]
    assert first == again
    assert len({first, *rest}) == 4  # and nobody's is never the same
    assert all(len(salt) == 64 for salt in (first, *rest))
    assert one.hex() not in str(asked)
    assert not any(request["cache_prompt"] for request in asked)


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_text_counts_before_the_server_says_how_much_it_is(tokens: int) -> None:
    sent = events("one", "stop").replace('"completion_tokens": 2', f'"completion_tokens": {tokens}')
    assert answered(sent).tokens == tokens
    assert answered(sent, leave=True).tokens == 1


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "🙂"])
def test_lines_of_events_end_at_carriage_returns_and_line_feeds_alone(separator: str) -> None:
    text = f"one{separator}two"
    sent = events(text, "stop") if separator > " " else events("?", "stop").replace("?", json.dumps(text)[1:-1])
    assert answered(sent).text == text


@pytest.mark.parametrize(
    "before", ["data:", "data: ", ": a comment\ndata: ", "event: x\nid: 1\ndata: ", "retry: 5\ndata:"]
)
@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n", "\r\r"])
def test_events_in_all_forms_of_the_standard(before: str, end: str) -> None:
    assert (
        answered(events("one two", "stop", before=before.replace("\n", end[: len(end) // 2]), end=end)).text
        == "one two"
    )


@pytest.mark.parametrize(
    ("said", "passed_on"),
    [("stop", "stop"), ("length", "length"), ("content_filter", "content_filter"), ("eos_token", "stop")],
)
def test_why_an_answer_ends_is_passed_on_as_it_is(said: str, passed_on: str) -> None:
    assert answered(events("one", said)).finish == passed_on


@pytest.mark.parametrize("said", ["abort", "error", "never heard of", "\x1b[2J", "tool_calls"])
def test_an_answer_that_was_given_up_is_not_whole(said: str) -> None:
    with pytest.raises(EngineFault) as fault:
        answered(events("one", said))
    assert "\x1b" not in str(fault.value)


@pytest.mark.parametrize(
    ("status", "fault"), [(400, False), (422, False), (500, True), (503, False), (401, True), (404, True)]
)
def test_whose_fault_it_is(status: int, fault: bool) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_error(status)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    with closing(server.socket):
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            error = ask(f"http://127.0.0.1:{server.server_port}/v1")
        finally:
            server.shutdown()
    assert isinstance(error, EngineFault) == fault

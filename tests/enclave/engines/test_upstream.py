"""What only the upstream engine promises: where it goes, and what it says when the server is away."""

import asyncio
import json
from collections.abc import Callable
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from tests.enclave.engines.conftest import PROMPT, answer

from confide.enclave.engines.engine import EngineFacts, Sampling
from confide.enclave.engines.upstream import UpstreamEngine
from confide.errors import EngineError, InsecureConnection
from confide.models.source import open_model

FACTS = EngineFacts("demo", "fake", "f32", 512)
TOKENIZER = open_model("demo").load_tokenizer()


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

"""A small OpenAI-compatible server, as an upstream: the completions and embeddings of an engine, over HTTP."""

import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from confide.enclave.engines.engine import Engine, Sampling


@contextmanager
def openai_server(engine: Engine, api_key: str | None = None) -> Iterator[str]:
    """Serve until the block ends; gives the URL."""

    async def completions(request: Request) -> Response:
        if api_key and request.headers.get("authorization") != f"Bearer {api_key}":
            return JSONResponse({"error": {"message": "wrong key"}}, 401)
        body = await request.json()
        assert body["model"] == engine.facts.model
        assert body["stream_options"] == {"include_usage": True}
        return StreamingResponse(_events(engine, body), media_type="text/event-stream")

    async def embeddings(request: Request) -> Response:
        rows = await engine.embed((await request.json())["input"])
        data = [{"index": index, "embedding": row} for index, row in enumerate(rows)]
        return JSONResponse({"data": data[::-1]})  # nothing says that they come in order

    app = Starlette(
        routes=[
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/embeddings", embeddings, methods=["POST"]),
        ]
    )
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.should_exit = True
        thread.join()


async def _events(engine: Engine, body: dict[str, Any]) -> AsyncIterator[str]:
    sampling = Sampling(
        max_tokens=body["max_tokens"],
        temperature=body["temperature"],
        top_p=body["top_p"],
        top_k=body.get("top_k", 0),
        seed=body.get("seed"),
        stop=tuple(body.get("stop", ())),
        min_p=body.get("min_p", 0.0),
        presence_penalty=body.get("presence_penalty", 0.0),
        frequency_penalty=body.get("frequency_penalty", 0.0),
        logit_bias={int(token): bias for token, bias in body.get("logit_bias", {}).items()},
        logprobs=body.get("logprobs"),
    )
    tokens = 0
    async with aclosing(engine.generate(body["prompt"], sampling)) as pieces:
        async for piece in pieces:
            tokens += piece.tokens
            told = {
                "tokens": [one.token.text for one in piece.chosen],
                "token_logprobs": [one.token.logprob for one in piece.chosen],
                "top_logprobs": [{top.text: top.logprob for top in one.top} for one in piece.chosen],
            }
            choice = {"index": 0, "text": piece.text, "finish_reason": piece.finish, "stop_reason": piece.stop}
            yield _event({"choices": [choice | ({"logprobs": told} if "logprobs" in body else {})]})
    yield _event({"choices": [], "usage": {"completion_tokens": tokens}})
    yield "data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"

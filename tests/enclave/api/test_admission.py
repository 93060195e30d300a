"""Clients that do not take what they asked for hold nothing for long."""

import asyncio
import json

import pytest
from starlette.types import Message

from confide.enclave.api.answer import Serving
from confide.enclave.api.app import api_app
from confide.enclave.api.limits import Limits

from ..fake_engine import FakeEngine


@pytest.mark.parametrize("path", ["/chat", "/generate"])
def test_a_client_that_reads_nothing_is_given_up(path: str) -> None:
    engine = FakeEngine(pause=0.01, parallel=1)
    serving = Serving(engine, limits=Limits(idle_seconds=0.2))
    app = api_app(serving)
    asked = [json.dumps({"prompt": "d29yZCB3b3JkIHdvcmQ=", "query": "word word"}).encode()]

    async def ask() -> int:
        sent = []

        async def receive() -> Message:
            if asked:
                return {"type": "http.request", "body": asked.pop(), "more_body": False}
            return await asyncio.Future()

        async def send(message: Message) -> None:
            sent.append(message)
            await asyncio.sleep(0 if message["type"] == "http.response.start" else 60)

        scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""}
        async with asyncio.timeout(5):
            await app(scope, receive, send)
        return len(sent)

    assert asyncio.run(ask()) == 2  # the head, and one part that nobody took
    assert engine.running == 0
    assert serving.metrics.registry.get_sample_value("confide_answers_running") == 0

"""What users see when the engine turns out to compute garbage: nothing more of it."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.enclave.fake_engine import FakeEngine

from confide.attest.configuration import Egress
from confide.attest.simulated import SimulatedTee
from confide.enclave.api.answer import Serving
from confide.enclave.api.public import public_app
from confide.enclave.configuration import configuration_with, own_configuration
from confide.enclave.self_test import SelfTest, make_known_answers
from confide.enclave.workload import Workload
from confide.errors import SelfTestFailed

PROMPTS = ["one two three four five six seven eight nine ten", "a b c d e f g h i j k"]
QUESTION = {"model": "echo", "prompt": "and so on and on and on", "max_tokens": 50}


class Scene:
    def __init__(self, folder: Path, engine: FakeEngine, **about: Any) -> None:
        self.tee = SimulatedTee.create(folder / "tee")
        self.engine = engine
        known = asyncio.run(make_known_answers(engine, PROMPTS))
        self.workload = Workload(self.tee, configuration=configuration_with(own_configuration(), engine, Egress.NONE))
        self.test = SelfTest(engine, known, self.workload, **about)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[httpx.AsyncClient]:
        await self.test.run()
        app = public_app(self.workload, Serving(self.engine, self.test), tls_ends_here=True)
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://workload") as client:
                yield client

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.01)


def garbage(scene: Scene) -> None:
    """From now on the engine answers something else."""
    scene.engine.count = lambda text: 1 / 0  # type: ignore[method-assign, assignment, return-value]


def test_it_is_run_again_and_again_and_users_notice_nothing(tmp_path: Path) -> None:
    scene = Scene(tmp_path, FakeEngine(), period=0.02)

    async def main() -> None:
        async with scene.serving() as client:
            before = len(scene.engine.asked)
            for _ in range(20):
                answer = await client.post("/v1/completions", json=QUESTION)
                assert answer.json()["choices"][0]["text"].startswith("You said: and so on")
                await asyncio.sleep(0.01)
            assert (await client.get("/health")).status_code == 200
            assert len(scene.engine.asked) - before - 20 >= 2 * len(scene.test.known.answers)
        assert scene.engine.closed
        await asyncio.sleep(0.1)
        asked = len(scene.engine.asked)
        await asyncio.sleep(0.1)
        assert len(scene.engine.asked) == asked

    asyncio.run(main())


def test_a_failure_stops_serving_and_says_so_everywhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(tmp_path, FakeEngine(), period=0.05)

    async def main() -> None:
        async with scene.serving() as client:
            assert scene.workload.configuration.self_test.outcome == "passed"
            scene.engine.weights = "12" * 32
            await scene.until(lambda: scene.test.failure)
            health = await client.get("/health")
            assert (health.status_code, health.json()) == (503, {"status": "failed", "reason": "self-test-failed"})
            for path, question in (
                ("/v1/completions", QUESTION),
                ("/v1/chat/completions", {"model": "echo", "messages": [{"role": "user", "content": "Hello"}]}),
                ("/v1/embeddings", {"model": "echo", "input": "Hello"}),
                ("/generate", {"query": "Hello"}),
                ("/chat", {"prompt": "SGVsbG8="}),
            ):
                answer = await client.post(path, json=question)
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "self-test-failed")
            shown = (await client.get("/attestation", params={"nonce": "ab" * 32})).json()
            assert shown["statement"]["configuration"]["self_test"]["outcome"] == "failed"

    with caplog.at_level(logging.CRITICAL):
        asyncio.run(main())
    assert "nothing is answered any more" in caplog.text


def test_an_answer_on_its_way_is_broken_off(tmp_path: Path) -> None:
    scene = Scene(tmp_path, FakeEngine(pause=0.02))

    async def main() -> None:
        async with scene.serving() as client:

            async def ask() -> list[str]:
                question = QUESTION | {"stream": True, "prompt": "word " * 60, "max_tokens": 70}
                async with client.stream("POST", "/v1/completions", json=question) as answer:
                    return [line async for line in answer.aiter_lines() if line]

            asking = asyncio.create_task(ask())
            await scene.until(lambda: scene.engine.running)
            scene.engine.weights = "12" * 32
            with pytest.raises(SelfTestFailed):
                await scene.test.run()
            lines = await asking
            assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "self-test-failed"
            await scene.until(lambda: not scene.engine.running)

    asyncio.run(main())


@pytest.mark.parametrize("broken", [RuntimeError("a secret"), MemoryError(), None])
def test_whatever_goes_wrong_in_it_is_a_failure(tmp_path: Path, broken: Exception | None) -> None:
    scene = Scene(tmp_path, FakeEngine(), patience=0.3)
    scene.engine.broken = broken
    if broken is None:
        scene.engine.pause = 10
    with pytest.raises(SelfTestFailed) as caught:
        asyncio.run(scene.test.run())
    assert "secret" not in str(caught.value)
    assert scene.workload.configuration.self_test.outcome == "failed"

"""What an operator can read, at the highest level of detail: never a prompt, never an answer."""

import io
import logging
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from confide.attest.simulated import SimulatedTee
from confide.enclave.api.answer import Serving
from confide.enclave.api.limits import Limits
from confide.enclave.api.public import public_app
from confide.enclave.workload import Workload

from ..encrypted_client import ask, asking, encrypted
from ..fake_engine import FakeEngine
from ..serving import eventually, serving

SECRET = "xyzzy"
_OURS = ("confide", "uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi", "asyncio", "starlette")


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """All that servers log, from uvicorn's TRACE on, with the standard library's own formatting of exceptions."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    loggers = [logging.getLogger(name) for name in _OURS]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.setLevel(1)
        logger.propagate = False
        logger.addHandler(handler)
    yield written
    for logger, (level, propagate) in zip(loggers, before, strict=True):
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


class Quoting(ValueError):
    """As libraries raise them."""

    def __init__(self) -> None:
        super().__init__(f"cannot do {SECRET}")


def test_nothing_asked_or_answered_is_logged_or_said(tmp_path: Path, log: io.StringIO) -> None:
    workload = Workload(SimulatedTee.create(tmp_path / "tee"))
    key, engine = workload.key.public, FakeEngine()
    said: list[str] = []
    with serving(
        public_app(workload, Serving(engine, limits=Limits(idle_seconds=0.5, engine_seconds=0.5)), tls_ends_here=True)
    ) as url:
        with httpx.Client(base_url=url) as client:

            def fails(path: str, content: object) -> None:
                status, error = ask(client, key, path, content)
                assert status >= 400
                said.append(str(error))

            chat = {"model": "echo", "messages": [{"role": "user", "content": SECRET}]}
            assert SECRET in str(ask(client, key, "/v1/chat/completions", chat)[1])
            assert SECRET in client.post("/generate", json={"query": SECRET}).text
            assert SECRET in client.post("/generate", json={"query": SECRET}).text
            fails("/generate", {"query": [SECRET]})
            # A field is refused by its name, which whoever sent it may hear, and no log.
            assert ask(client, key, "/generate", {"query": "a", SECRET: SECRET})[0] == 400
            fails("/v1/chat/completions", chat | {"model": SECRET})
            fails("/v1/chat/completions", chat | {"tools": [SECRET]})
            fails("/v1/chat/completions", {"model": "echo", "messages": [{"role": SECRET, "content": "a"}]})
            odd = {"model": "echo", "messages": [{"role": "user", "content": [{SECRET: 1}]}]}
            assert ask(client, key, "/v1/chat/completions", odd)[0] == 400
            fails("/generate", {"query": f"{SECRET} " * 2000})
            fails("/chat", {"prompt": SECRET})
            fails(f"/{SECRET}?{SECRET}", {})
            said.append(client.get(f"/chat?prompt={SECRET}").text)
            said.append(client.get(f"/{SECRET}").text)
            said.append(client.post("/generate", content=f'{{"{SECRET}').text)
            engine.broken = Quoting()
            fails("/generate", {"query": SECRET})
            said.append(client.post("/generate", json={"query": SECRET}).text)
            with pytest.raises(httpx.RemoteProtocolError):
                with asking(client, key, "/chat", {"prompt": "eHl6enk="}) as (_, frames):
                    list(frames)
            with pytest.raises(httpx.RemoteProtocolError):
                client.get("/chat?prompt=eHl6enk=")
            engine.broken = None
            engine.pause = 1
            fails("/generate", {"query": SECRET})
            with pytest.raises(httpx.ReadTimeout):
                client.post("/generate", json={"query": SECRET}, timeout=0.1)
            _, request = encrypted(key, "/generate", {"query": SECRET})
            said.append(client.post("/encrypted", content=request).text)
        eventually(lambda: engine.running == 0)
    lines = log.getvalue()
    assert "Answering a request failed." in lines
    assert "Quoting" in lines
    assert "Uvicorn running" in lines or "Started server process" in lines
    for text in (lines, *said):
        assert SECRET not in text
        assert "eHl6enk" not in text  # its base64
        assert "Traceback" not in text

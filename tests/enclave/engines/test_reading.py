"""Reading a long text takes long, and takes nobody else's time."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from tests.enclave.engines.conftest import PROMPT, Bench
from tests.enclave.serving import serving

from confide.enclave.api.answer import Serving
from confide.enclave.api.app import api_app
from confide.enclave.engines.engine import EngineFacts, Message
from confide.enclave.engines.prompts import BYTES_PER_TOKEN, Prompted, Prompts
from confide.errors import PromptTooLong
from confide.models.source import open_model

MIB = 1 << 20
LONG = "7" * (MIB - 200)
PARTS = ["7" * 3900] * 256


@pytest.fixture(scope="module")
def url(transformers_bench: Bench) -> Iterator[str]:
    class Kept:
        """An engine that outlives a server."""

        def __getattr__(self, name: str) -> object:
            return getattr(transformers_bench.make(), name)

        async def close(self) -> None:
            pass

    with serving(api_app(Serving(Kept()))) as url:  # type: ignore[arg-type]
        yield url


@contextmanager
def watching(url: str, waits: list[float]) -> Iterator[None]:
    """Asks for /health all the while."""
    over = threading.Event()

    def look() -> None:
        with httpx.Client(timeout=60) as client:
            while not over.is_set():
                started = time.monotonic()
                assert client.get(f"{url}/health").is_success
                waits.append(time.monotonic() - started)
                time.sleep(0.005)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"model": "demo", "prompt": LONG}),
        ("/v1/chat/completions", {"model": "demo", "messages": [{"role": "user", "content": LONG}]}),
        ("/v1/chat/completions", {"model": "demo", "messages": [{"role": "user", "content": one} for one in PARTS]}),
        ("/v1/embeddings", {"model": "demo", "input": LONG}),
        ("/v1/embeddings", {"model": "demo", "input": PARTS}),
        ("/v1/embeddings", {"model": "demo", "input": ["a", *PARTS[1:]]}),
        ("/generate", {"query": LONG}),
    ],
)
def test_a_request_of_a_mebibyte_delays_nobody(url: str, path: str, body: object) -> None:
    waits: list[float] = []
    content = json.dumps(body).encode()
    assert 0.9 * MIB < len(content) <= MIB
    with watching(url, waits):
        time.sleep(0.1)
        started = time.monotonic()
        answer = httpx.post(f"{url}{path}", content=content, timeout=60)
        took = time.monotonic() - started
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert max(waits) < 0.5  # tens of milliseconds when nothing else runs; seconds, if the text were tokenized there
    assert took < 5


def test_a_text_that_may_fit_is_read_beside_the_event_loop() -> None:
    tokenizer = open_model("demo").load_tokenizer()
    assert tokenizer is not None
    reader = Prompted(EngineFacts("m", "e", "f32", 1 << 20), Prompts(tokenizer, 1 << 20, by_text=True))
    gaps: list[float] = []

    async def look() -> None:
        while True:
            started = time.monotonic()
            await asyncio.sleep(0.005)
            gaps.append(time.monotonic() - started)

    async def read() -> float:
        looking = asyncio.create_task(look())
        started = time.monotonic()
        assert len((await reader.read(LONG)).tokens) > 300_000
        looking.cancel()
        return time.monotonic() - started

    took = asyncio.run(read())
    assert max(gaps) < max(0.15, took / 3)
    assert len(gaps) > 5


def test_texts_are_bounded_by_bytes_and_read_once() -> None:
    tokenizer = open_model("demo").load_tokenizer()
    assert tokenizer is not None
    prompts = Prompts(tokenizer, 64, by_text=True)
    most = 64 * BYTES_PER_TOKEN
    read: list[int] = []
    encode, prompts.encode = prompts.encode, lambda text: read.append(len(text)) or encode(text)  # type: ignore[method-assign, func-returns-value]
    assert prompts.read("a" * most).text == "a" * most
    around = len("User: \n\nAssistant:")
    prompts.read([Message("user", "a" * (most - around - 1))])
    assert read == [most, most - 1]
    for asked in ("a" * (most + 1), "é" * (most // 2 + 1), [Message("user", "é" * (most // 2 + 1))], "a" * (1 << 24)):
        with pytest.raises(PromptTooLong, match="bytes"):
            prompts.read(asked)  # type: ignore[arg-type]
    assert len(read) == 2


@pytest.mark.parametrize("text", ["", PROMPT, "  two  spaces\n\nand \t tabs", "日本 über 12345 😀", "<|endoftext|>x"])
def test_tokens_are_those_of_transformers(text: str) -> None:
    tokenizer = open_model("demo").load_tokenizer()
    assert tokenizer is not None
    assert Prompts(tokenizer, 64, by_text=True).encode(text) == tokenizer(text)["input_ids"]

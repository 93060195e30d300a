"""The demo model, or as much of it as is needed, in each engine, loaded once."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import copy
from typing import Any, TypeVar
from unittest import mock

import pytest
import xllamacpp
from tests.enclave.engines.openai_server import openai_server
from torch import nn
from transformers import PreTrainedModel

from confide.enclave.engines.engine import Engine, EngineFacts, Prompt, Sampling
from confide.enclave.engines.gguf_engine import GgufEngine
from confide.enclave.engines.transformers_engine import TransformersEngine
from confide.enclave.engines.upstream import UpstreamEngine
from confide.models.gguf.types import GgufType
from confide.models.gguf.write import write_gguf
from confide.models.source import DEMO_FOLDER, Source, open_model

T = TypeVar("T")
KEY = "a key"
PROMPT = "The old king called his three sons and said"


@dataclass
class Answer:
    """One answer: its text, how many tokens it has, why it ended, and in how many pieces it came."""

    text: str
    tokens: int
    finish: str | None
    pieces: int


async def answer(engine: Engine, prompt: str | Prompt, sampling: Sampling) -> Answer:
    """A whole answer. Only its last piece may say that it is over."""
    pieces = [piece async for piece in engine.generate(prompt, sampling)]
    assert all(piece.finish is None for piece in pieces[:-1])
    text = "".join(piece.text for piece in pieces)
    return Answer(text, sum(piece.tokens for piece in pieces), pieces[-1].finish, len(pieces))


@dataclass
class Bench:
    """An engine under test. computed: tokens that it has computed so far, whoever waits for them.

    server: llama.cpp's own, where the engine has one. counting: what stands before it.
    """

    make: Callable[[], Engine]
    computed: Callable[[], int]
    server: Any = None
    counting: Any = None

    def run(self, work: Callable[[Engine], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine with the engine."""

        async def main() -> T:
            return await work(self.make())

        return asyncio.run(main())


async def settled(bench: Bench) -> int:
    """What was computed once nothing is computed any more."""
    deadline = time.monotonic() + 60
    last, steady = bench.computed(), 0
    while steady < 5:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
        now = bench.computed()
        steady = steady + 1 if now == last else 0
        last = now
    return last


class CountingServer:
    """llama.cpp's server, with a count of the chunks it gives."""

    def __init__(self, server: Any) -> None:
        self.server = server
        self.handle_embeddings = server.handle_embeddings
        self.chunks = 0

    def handle_completions(self, request: dict[str, Any], deliver: Callable[[dict[str, Any]], bool]) -> None:
        """As the original does."""

        def count(chunk: dict[str, Any]) -> bool:
            self.chunks += 1
            return deliver(chunk)

        self.server.handle_completions(request, count)


@pytest.fixture(scope="session")
def short_demo(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """The demo with its first and its last layer alone: it still speaks, and takes a third of the time."""
    folder = tmp_path_factory.mktemp("short") / "demo"
    model = open_model("demo").load_model()
    layers = model.get_submodule("transformer.h")
    model.set_submodule("transformer.h", nn.ModuleList([layers[0], layers[-1]]))
    model.config.n_layer = 2
    model.save_pretrained(folder)
    for path in DEMO_FOLDER.glob("tokenizer*"):
        copy(path, folder)
    return open_model(str(folder))


@pytest.fixture(scope="session")
def demo_model(short_demo: Source) -> PreTrainedModel:
    return short_demo.load_model()


@pytest.fixture(scope="session")
def gguf_file(short_demo: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(short_demo, tmp_path_factory.mktemp("gguf") / "demo.gguf", GgufType.F16).path


@pytest.fixture(scope="session")
def transformers_bench(demo_model: PreTrainedModel) -> Iterator[Bench]:
    calls: list[None] = []
    hook = demo_model.register_forward_hook(lambda *_: calls.append(None))
    engine = TransformersEngine(demo_model, open_model("demo").load_tokenizer(), "demo")
    yield Bench(lambda: engine, lambda: len(calls))
    hook.remove()
    asyncio.run(engine.close())


@pytest.fixture(scope="session")
def gguf_bench(gguf_file: Path) -> Iterator[Bench]:
    made: list[CountingServer] = []
    load = xllamacpp.Server

    def counted(params: xllamacpp.CommonParams) -> CountingServer:
        made.append(CountingServer(load(params)))
        return made[-1]

    with mock.patch.object(xllamacpp, "Server", counted):
        engine = GgufEngine(gguf_file, "demo", threads=1)
    (counting,) = made
    yield Bench(lambda: engine, lambda: counting.chunks, counting.server, counting)
    asyncio.run(engine.close())


@pytest.fixture(scope="session")
def upstream_bench(gguf_bench: Bench) -> Iterator[Bench]:
    """A server with llama.cpp behind it, which computes a token in a tenth of transformers' time."""
    tokenizer = open_model("demo").load_tokenizer()
    facts = EngineFacts("demo", "fake", "f32", 512)
    with openai_server(gguf_bench.make(), KEY) as url:
        yield Bench(lambda: UpstreamEngine(url, facts, tokenizer, api_key=KEY), gguf_bench.computed)


@pytest.fixture(params=["transformers", "gguf", "upstream"])
def bench(request: pytest.FixtureRequest) -> Bench:
    found: Bench = request.getfixturevalue(f"{request.param}_bench")
    return found

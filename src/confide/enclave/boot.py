"""From a sealed package to a running engine: evidence first, then the key, then the model, in memory alone."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from confide.attest.configuration import UpstreamUsed
from confide.enclave.configuration import configuration_with
from confide.enclave.egress import WaysOut
from confide.enclave.engines.engine import PARALLEL, Engine, EngineFacts
from confide.enclave.self_test import PROMPTS, SelfTest, make_known_answers
from confide.enclave.workload import Workload
from confide.errors import EngineError, SelfTestMissing
from confide.packages.sealed.contents import TOKENIZER
from confide.packages.sealed.key import ModelKey
from confide.packages.sealed.known_answers import KnownAnswers
from confide.packages.sealed.manifest import WeightsFormat
from confide.packages.sealed.package import SealedPackage, UnlockedPackage
from confide.packages.sealed.reader import OnChunk

Fetch = Callable[[str, Workload], ModelKey]
"""Gets the model key of this id for a workload: see `key_release.remote.fetch_key`."""


@dataclass(frozen=True)
class Upstream:
    """A server inside the same environment that runs the model. model: its name there. context: tokens at most."""

    url: str
    model: str
    context: int
    api_key: str | None = None


@dataclass(frozen=True)
class Loaded:
    """A running engine. self_test: not run yet; None where it is left out."""

    engine: Engine
    self_test: SelfTest | None


def load_engine(
    package: SealedPackage,
    workload: Workload,
    fetch: Fetch,
    *,
    ways: WaysOut | None = None,
    upstream: Upstream | None = None,
    insecure_skip_self_test: bool = False,
    on_chunk: OnChunk | None = None,
) -> Loaded:
    """Have the key released to this workload, and run the model: safetensors by transformers, GGUF by llama.cpp.

    The workload's model digest, and what is known of its configuration, are set before it attests, so that the key's
    owner and every user see what will run; the rest of the configuration afterwards.
    ways: those out of this process; the key service's is closed once the key is here. upstream: runs the model instead;
    then only the tokenizer is taken from the package. Raises what `fetch` raises, InvalidPackage where the package is
    not what its owner signed, EngineError where no engine can run it, SelfTestMissing where nothing says that it does.
    """
    ways = ways or WaysOut()
    if package.manifest.known_answers is None and not insecure_skip_self_test:
        raise SelfTestMissing(
            f"{package.folder} was sealed without known answers, so that nobody could tell whether it is computed "
            "rightly; seal it again, or give --insecure-skip-self-test."
        )
    workload.model_digest = package.manifest.model_digest
    used = UpstreamUsed(upstream.model, upstream.url) if upstream else None
    workload.configuration = msgspec.structs.replace(workload.configuration, egress=ways.stated, upstream=used)
    unlocked = package.unlock(fetch(package.manifest.key, workload))
    ways.close_keys()
    engine = _upstream(unlocked, upstream, ways) if upstream else open_engine(unlocked, on_chunk)
    workload.configuration = configuration_with(workload.configuration, engine, ways.stated)
    known = None if insecure_skip_self_test else unlocked.known_answers()
    return Loaded(engine, SelfTest(engine, known, workload) if known else None)


def open_engine(unlocked: UnlockedPackage, on_chunk: OnChunk | None = None, *, parallel: int = PARALLEL) -> Engine:
    """The engine that serves a model. parallel: requests at once, where it takes memory for each."""
    if unlocked.manifest.weights is WeightsFormat.GGUF:
        return _llama_cpp(unlocked, on_chunk, parallel)
    return _transformers(unlocked, on_chunk)


def examine(unlocked: UnlockedPackage, prompts: Sequence[str] = PROMPTS) -> KnownAnswers | None:
    """Known answers for a package that is being sealed; None for a model without tokenizer, which nobody can serve."""
    if unlocked.manifest.weights is WeightsFormat.SAFETENSORS and TOKENIZER not in unlocked:
        return None
    engine = open_engine(unlocked, parallel=1)

    async def ask() -> KnownAnswers:
        try:
            return await make_known_answers(engine, prompts)
        finally:
            await engine.close()

    return asyncio.run(ask())


def _transformers(unlocked: UnlockedPackage, on_chunk: OnChunk | None) -> Engine:
    import torch

    from confide.enclave.engines.transformers_engine import TransformersEngine
    from confide.packages.sealed.load import load_model, load_tokenizer

    tokenizer = load_tokenizer(unlocked)
    if tokenizer is None:
        raise EngineError("The model was sealed without its tokenizer, so it cannot be served; seal it with one.")
    # On a processor half precision is slower than single, and answers are no better for what was rounded before.
    model = load_model(unlocked, dtype=torch.float32, on_chunk=on_chunk)
    return TransformersEngine(model, tokenizer, unlocked.manifest.name)


def _llama_cpp(unlocked: UnlockedPackage, on_chunk: OnChunk | None, parallel: int) -> Engine:
    from confide.enclave.engines.gguf_engine import GgufEngine
    from confide.packages.sealed.memory import open_gguf

    with open_gguf(unlocked, on_chunk) as file:
        return GgufEngine(Path(file.path), unlocked.manifest.name, parallel=parallel)


def _upstream(unlocked: UnlockedPackage, upstream: Upstream, ways: WaysOut) -> Engine:
    from confide.enclave.engines.upstream import UpstreamEngine
    from confide.packages.sealed.load import load_tokenizer

    tokenizer = load_tokenizer(unlocked)
    if tokenizer is None:
        raise EngineError("The model was sealed without its tokenizer, which counting tokens takes; seal it with one.")
    facts = EngineFacts(upstream.model, "upstream", unlocked.manifest.quantization, upstream.context)
    return UpstreamEngine(upstream.url, facts, tokenizer, api_key=upstream.api_key, connector=ways.upstream)

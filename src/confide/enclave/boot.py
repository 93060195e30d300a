"""From a sealed package to a running engine: evidence first, then the key, then the model, in memory alone."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from confide.attest.configuration import UpstreamUsed
from confide.enclave.api.limits import Limits
from confide.enclave.configuration import configuration_with
from confide.enclave.egress import WaysOut
from confide.enclave.engines.engine import Dtype, Engine, EngineFacts, EngineSettings, Message, Sampling
from confide.enclave.self_test import PROMPTS, SelfTest, make_known_answers
from confide.enclave.workload import Workload
from confide.errors import EngineError, SelfTestMissing
from confide.packages.sealed.adapter import SealedAdapter
from confide.packages.sealed.key import ModelKey
from confide.packages.sealed.known_answers import KnownAnswers
from confide.packages.sealed.manifest import WeightsFormat
from confide.packages.sealed.package import SealedPackage, UnlockedPackage
from confide.packages.sealed.reader import OnChunk

if TYPE_CHECKING:
    from confide.models.adapter import Adapter

_T = TypeVar("_T")
_TRIAL: Final = "Hello!"
_TRIAL_CONTEXT: Final = 4096
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
    adapter: SealedAdapter | None = None,
    fetch_adapter: Fetch | None = None,
    ways: WaysOut | None = None,
    upstream: Upstream | None = None,
    settings: EngineSettings | None = None,
    answer_tokens: int = Limits.answer_tokens,
    insecure_skip_self_test: bool = False,
    on_chunk: OnChunk | None = None,
) -> Loaded:
    """Have the key released to this workload, and run the model: safetensors by transformers, GGUF by llama.cpp.

    The workload's model digest, and what is known of its configuration, are set before it attests, so that the key's
    owner and every user see what will run; the rest of the configuration afterwards.
    adapter: to lay over the model; its own known answers count then. fetch_adapter: gets its key, as `fetch` without.
    ways: those out of this process; the key service's is closed once the key is here. upstream: runs the model instead;
    then only the tokenizer is taken from the package. answer_tokens: that the API grants, for the statement.

    Raises what `fetch` raises, InvalidPackage where the package is not what its owner signed, EngineError where no
    engine can run it, SelfTestMissing where nothing says that it does.
    """
    ways, settings, examined = ways or WaysOut(), settings or EngineSettings(), adapter or package
    if settings.dtype and (upstream or package.manifest.weights is WeightsFormat.GGUF):
        raise EngineError(
            "What it is computed in, an upstream chooses itself, and a GGUF file says; leave the dtype out."
        )
    if examined.manifest.known_answers is None and not insecure_skip_self_test:
        raise SelfTestMissing(
            f"{examined.folder} was sealed without known answers, so that nobody could tell whether it is computed "
            "rightly; seal it again, or give --insecure-skip-self-test."
        )
    if adapter is not None:
        adapter.require_base(package.manifest.model_digest)
        if upstream:
            raise EngineError("Another program runs the model, and lays adapters over it itself; leave --adapter out.")
    workload.model_digest = package.manifest.model_digest
    used = UpstreamUsed(upstream.model, upstream.url) if upstream else None
    workload.configuration = msgspec.structs.replace(workload.configuration, egress=ways.stated, upstream=used)
    if adapter is not None:
        stated = msgspec.structs.replace(workload.configuration, adapters=(adapter.manifest.adapter,))
        workload.configuration = stated
    unlocked = package.unlock(fetch(package.manifest.key, workload))
    opened = adapter.unlock((fetch_adapter or fetch)(adapter.manifest.key, workload)) if adapter else None
    ways.close_keys()
    if upstream:
        engine = _upstream(unlocked, upstream, ways, settings.name)
    else:
        engine = open_engine(unlocked, on_chunk, settings, opened.read() if opened else None)
    workload.configuration = configuration_with(workload.configuration, engine, ways.stated, answer_tokens)
    known = None if insecure_skip_self_test else (opened or unlocked).known_answers()
    return Loaded(engine, SelfTest(engine, known, workload) if known else None)


def open_engine(
    unlocked: UnlockedPackage,
    on_chunk: OnChunk | None = None,
    settings: EngineSettings | None = None,
    adapter: "Adapter | None" = None,
) -> Engine:
    """The engine that serves a model, under an adapter if there is one. EngineError where it takes none."""
    settings = settings or EngineSettings()
    if unlocked.manifest.weights is not WeightsFormat.GGUF:
        return _transformers(unlocked, on_chunk, settings, adapter)
    if adapter is not None:
        raise EngineError("No adapter is laid over a GGUF model; serve its safetensors.")
    return _llama_cpp(unlocked, on_chunk, settings)


def examine(
    unlocked: UnlockedPackage, prompts: Sequence[str] = PROMPTS, adapter: "Adapter | None" = None
) -> KnownAnswers | None:
    """Try a package out, and get known answers; None for a model without tokenizer, which nobody can serve.

    Raises what `try_out` raises, and SelfTestMissing for a model that is certain of too little.
    """
    return _tried(unlocked, lambda engine: make_known_answers(engine, prompts), adapter)


def try_out(unlocked: UnlockedPackage) -> None:
    """Load a package as whoever serves it will, by the same code: every weight, tokenizer, template, and a token.

    Raises InvalidPackage, ModelNotSupported and EngineError for what could not be served.
    """

    async def nothing(_: Engine) -> None:
        pass

    _tried(unlocked, nothing)


def _tried(
    unlocked: UnlockedPackage, then: Callable[[Engine], Coroutine[None, None, _T]], adapter: "Adapter | None" = None
) -> _T | None:
    from confide.packages.sealed.contents import TOKENIZER  # takes torch, which serving GGUF does not

    if unlocked.manifest.weights is WeightsFormat.SAFETENSORS and TOKENIZER not in unlocked:
        from confide.packages.sealed.load import load_model

        load_model(unlocked)
        return None
    settings = EngineSettings(context=_TRIAL_CONTEXT, parallel=1, dtype=Dtype.F32)
    engine = open_engine(unlocked, None, settings, adapter)

    async def work() -> _T:
        try:
            await _make_a_token(engine)
            return await then(engine)
        finally:
            await engine.close()

    return asyncio.run(work())


async def _make_a_token(engine: Engine) -> None:
    prompt = await engine.read([Message("user", _TRIAL)])
    if not (await engine.read(_TRIAL)).tokens or not prompt.tokens:
        raise EngineError("The tokenizer makes no tokens of words; use the one that the model was trained with.")
    async with aclosing(engine.generate(prompt, Sampling(1, temperature=0))) as pieces:
        tokens = sum([piece.tokens async for piece in pieces])
    if tokens != 1:
        raise EngineError("The engine makes no token; see that the plain model answers, and seal it again.")


def _transformers(
    unlocked: UnlockedPackage, on_chunk: OnChunk | None, settings: EngineSettings, adapter: "Adapter | None"
) -> Engine:
    import torch

    from confide.enclave.engines.dtypes import TORCH_DTYPES, fastest_dtype
    from confide.enclave.engines.transformers_engine import TransformersEngine
    from confide.models.integers import quantize_layers
    from confide.packages.sealed.load import load_empty, load_model, load_tokenizer

    tokenizer = load_tokenizer(unlocked)
    if tokenizer is None:
        raise EngineError("The model was sealed without its tokenizer, which serving it takes; seal it with one.")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    dtype = settings.dtype or fastest_dtype(load_empty(unlocked))
    model = load_model(unlocked, dtype=TORCH_DTYPES.get(dtype, torch.float32), on_chunk=on_chunk)
    if adapter is not None:
        model = adapter.merge_into(model)
    if dtype is Dtype.INT8:
        quantize_layers(model)
    name, adapters = settings.name or unlocked.manifest.name, (adapter.digest,) if adapter else ()
    return TransformersEngine(model, tokenizer, name, settings.context, adapters=adapters, parallel=settings.parallel)


def _llama_cpp(unlocked: UnlockedPackage, on_chunk: OnChunk | None, settings: EngineSettings) -> Engine:
    from confide.enclave.engines.gguf_engine import GgufEngine
    from confide.packages.sealed.memory import open_gguf

    with open_gguf(unlocked, on_chunk) as file:
        return GgufEngine(
            Path(file.path),
            settings.name or unlocked.manifest.name,
            context=settings.context,
            parallel=settings.parallel,
            threads=settings.threads,
        )


def _upstream(unlocked: UnlockedPackage, upstream: Upstream, ways: WaysOut, name: str | None) -> Engine:
    from confide.enclave.engines.upstream import UpstreamEngine
    from confide.packages.sealed.load import load_tokenizer

    tokenizer = load_tokenizer(unlocked)
    if tokenizer is None:
        raise EngineError("The model was sealed without its tokenizer, which counting tokens takes; seal it with one.")
    facts = EngineFacts(name or upstream.model, "upstream", unlocked.manifest.quantization, upstream.context)
    return UpstreamEngine(
        upstream.url, facts, tokenizer, model=upstream.model, api_key=upstream.api_key, connector=ways.upstream
    )

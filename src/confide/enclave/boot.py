"""From a sealed package to a running engine: evidence first, then the key, then the model, in memory alone."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from confide.enclave.engines.engine import Engine, EngineFacts
from confide.enclave.workload import Workload
from confide.errors import EngineError
from confide.packages.sealed.key import ModelKey
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


def load_engine(
    package: SealedPackage,
    workload: Workload,
    fetch: Fetch,
    *,
    upstream: Upstream | None = None,
    on_chunk: OnChunk | None = None,
) -> Engine:
    """Have the key released to this workload, and run the model: safetensors by transformers, GGUF by llama.cpp.

    The workload's model digest is set before it attests, so that the key's owner and every user see what will run.
    upstream: runs the model instead; then only the tokenizer is taken from the package. Raises what `fetch` raises,
    InvalidPackage where the package is not what its owner signed, EngineError where no engine can run it.
    """
    workload.model_digest = package.manifest.model_digest
    unlocked = package.unlock(fetch(package.manifest.key, workload))
    if upstream is not None:
        return _upstream(unlocked, upstream)
    if package.manifest.weights is WeightsFormat.GGUF:
        return _llama_cpp(unlocked, on_chunk)
    return _transformers(unlocked, on_chunk)


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


def _llama_cpp(unlocked: UnlockedPackage, on_chunk: OnChunk | None) -> Engine:
    from confide.enclave.engines.gguf_engine import GgufEngine
    from confide.packages.sealed.memory import open_gguf

    with open_gguf(unlocked, on_chunk) as file:
        return GgufEngine(Path(file.path), unlocked.manifest.name)


def _upstream(unlocked: UnlockedPackage, upstream: Upstream) -> Engine:
    from confide.enclave.engines.upstream import UpstreamEngine
    from confide.packages.sealed.load import load_tokenizer

    tokenizer = load_tokenizer(unlocked)
    if tokenizer is None:
        raise EngineError("The model was sealed without its tokenizer, which counting tokens takes; seal it with one.")
    facts = EngineFacts(upstream.model, "upstream", unlocked.manifest.quantization, upstream.context)
    return UpstreamEngine(upstream.url, facts, tokenizer, api_key=upstream.api_key)

"""`confide bench quantization`: what each type of weights saves, and what it costs in quality.

Times are those of the engines that serve. Perplexity is that of the weights as each type holds them, computed in
float32 (transformers' bf16: in bf16), over the same windows for all; see `confide.evaluate`.
"""

import asyncio
import hashlib
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Final

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from confide.bench.answers import answering, no_conversations, prompt_of, time_answers
from confide.bench.cells import LLAMA_CPP, TRANSFORMERS, in_dtype, model_facts, special_tokens
from confide.bench.checkout import commit
from confide.bench.machine import Machine
from confide.bench.results import (
    Interval,
    NotMeasured,
    QuantizationResult,
    QuantizationRow,
    ResultFile,
    Software,
    Timing,
    this_software,
)
from confide.bench.statistics import Sample
from confide.enclave.engines.dtypes import TORCH_DTYPES
from confide.enclave.engines.engine import Engine
from confide.enclave.engines.gguf_engine import GgufEngine, context_bytes
from confide.enclave.engines.transformers_engine import TransformersEngine
from confide.errors import EvaluationError, ModelNotSupported
from confide.evaluate.dequantized import dequantized_model
from confide.evaluate.identity import evaluation_settings
from confide.evaluate.perplexity import Perplexity, WindowLoss, compare_perplexity, measure_loss
from confide.evaluate.results import Results, Settings, keep_results
from confide.evaluate.run import Variant, measure_variants
from confide.evaluate.windows import Windows, cut_windows, model_context
from confide.models.context import require_room
from confide.models.ends import end_tokens
from confide.models.gguf.types import GgufType
from confide.models.gguf.write import write_gguf
from confide.models.source import Source

BATCHES: Final = (1, 8)
"""Requests at once."""
_KEPT: Final = "results.jsonl"
OnProgress = Callable[[str, int, int], None]
"""Called with what is measured, how many of its parts are, and how many there are."""


@dataclass(frozen=True)
class Request:
    """What to measure. text: for perplexity. prompt, answer: tokens. runs: of each number of requests at once.

    context: tokens in a window of the text, the model's up to 2048 where it is None. max_windows: all where it is None.
    """

    source: Source
    text: str
    prompt: int
    answer: int
    runs: int
    warm_ups: int
    threads: int
    context: int | None = None
    max_windows: int | None = None

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's. EvaluationError where it has none."""
        found = self.source.load_tokenizer()
        if found is None:
            raise EvaluationError(f"{self.source.name} has no tokenizer; give a model folder that has one.")
        return found

    @cached_property
    def windows(self) -> Windows:
        """Of the text."""
        context = model_context(self.source.config, self.context)
        return cut_windows(self.text, self.tokenizer, context, max_windows=self.max_windows)


@dataclass(frozen=True)
class _Candidate:
    """An engine with a type of weights. load: the model whose quality is theirs. size, context_token: in bytes.

    open: the engine, with the tokens that would end an answer.
    """

    engine: str
    quantization: str
    size: int
    context_token: int
    open: Callable[[], tuple[Engine, tuple[int, ...]]]
    load: Callable[[], PreTrainedModel]

    @property
    def name(self) -> str:
        return f"{self.engine} {self.quantization}"


def measure_quantizations(
    request: Request,
    machine: Machine,
    out: Path | None = None,
    *,
    progress: OnProgress | None = None,
    committed: Callable[[], str] = commit,
) -> ResultFile[QuantizationResult]:
    """Measure every type that an engine here has.

    out: where results are kept as they come, so that the same call goes on after an interruption; a checkout must then
    be as it was committed. Raises EvaluationError, EngineError, PromptTooLong and BenchmarkError where that cannot be.
    """
    require_room(request.source.config, request.prompt, request.answer)
    software = this_software("" if out is None else committed())
    facts = model_facts(request.source)
    with ExitStack() as stack:
        stack.enter_context(no_conversations())
        losses, speeds = Results(WindowLoss), Results(Timing)
        if out is not None:
            settings = _settings(request, machine, software)
            losses = stack.enter_context(keep_results(out / "perplexity" / _KEPT, WindowLoss, settings))
            speeds = stack.enter_context(keep_results(out / "speed" / _KEPT, Timing, settings))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="confide-bench-")))
        candidates, missing = _candidates(request, facts.weights, folder)
        for candidate in candidates:
            _measure_speed(candidate, request, speeds, progress)
        variants = [Variant(candidate.name, candidate.load) for candidate in candidates]
        quality = measure_variants(variants, request.windows, measure_loss, losses, progress)
    reference = quality[candidates[0].name]
    rows = tuple(
        _row(candidate, request, speeds, compare_perplexity(quality[candidate.name], reference))
        for candidate in candidates
    )
    return ResultFile.make(
        QuantizationResult(
            1,
            measured=datetime.now(UTC),
            machine=machine,
            software=software,
            model=facts,
            context=request.windows.context,
            prompt=request.prompt,
            answer=request.answer,
            threads=request.threads,
            runs=request.runs,
            warm_ups=request.warm_ups,
            text=hashlib.sha256(request.text.encode()).hexdigest(),
            scored_tokens=request.windows.scored_tokens,
            rows=rows,
            not_measured=tuple(missing),
        )
    )


def _settings(request: Request, machine: Machine, software: Software) -> Settings:
    """What results depend on, so that those of other settings are not taken for these."""
    return evaluation_settings(
        request.source,
        request.windows,
        processor=machine.processor,
        commit=software.commit,
        xllamacpp=software.libraries["xllamacpp"],
        prompt=str(request.prompt),
        answer=str(request.answer),
        warm_ups=str(request.warm_ups),
        threads=str(request.threads),
    )


def _candidates(request: Request, weights: int, folder: Path) -> tuple[list[_Candidate], list[NotMeasured]]:
    """The stock model's types, the reference first, and every type that files for llama.cpp are written in."""
    source, found, missing = request.source, [], []
    for name, dtype in TORCH_DTYPES.items():
        load = partial(in_dtype, source, dtype)
        opened = partial(_transformers, request, load)
        found.append(_Candidate(TRANSFORMERS, name, weights * dtype.itemsize, _cache(load()), opened, load))
    for type in GgufType:
        file = folder / f"{type}.gguf"
        try:
            size = write_gguf(source, file, type).size
        except ModelNotSupported as error:
            missing.append(NotMeasured("quantization", LLAMA_CPP, type.value, str(error)))
            continue
        opened, load = partial(_llama_cpp, request, file), partial(dequantized_model, source, file)
        found.append(_Candidate(LLAMA_CPP, type.value, size, context_bytes(file), opened, load))
    return found, missing


@torch.inference_mode()
def _cache(model: PreTrainedModel) -> int:
    """Bytes that transformers keeps of one token."""
    cache = model(torch.zeros(1, 1, dtype=torch.long), use_cache=True).past_key_values
    return sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))


def _transformers(request: Request, load: Callable[[], PreTrainedModel]) -> tuple[Engine, tuple[int, ...]]:
    torch.set_num_threads(request.threads)
    model = load()
    engine = TransformersEngine(model, request.tokenizer, request.source.name, request.prompt + request.answer)
    return engine, end_tokens(model, request.tokenizer)


def _llama_cpp(request: Request, file: Path) -> tuple[Engine, tuple[int, ...]]:
    room = request.prompt + request.answer
    engine = GgufEngine(file, request.source.name, context=room, parallel=max(BATCHES), threads=request.threads)
    return engine, special_tokens(request.tokenizer)


def _measure_speed(
    candidate: _Candidate, request: Request, speeds: Results[Timing], progress: OnProgress | None
) -> None:
    """The runs that are not kept yet; the engine is opened only for these."""
    lacking = {
        batch: [run for run in range(request.runs) if speeds.get(_speed(candidate, batch), run) is None]
        for batch in BATCHES
    }
    if not any(lacking.values()):
        return
    with asyncio.Runner() as runner:
        engine, ends = candidate.open()
        try:
            prompt = runner.run(prompt_of(engine, request.prompt))
            sampling = answering(request.answer, ends)
            for batch, runs in lacking.items():
                for _ in range(request.warm_ups if runs else 0):
                    runner.run(time_answers(engine, prompt, sampling, batch))
                for run in runs:
                    timing = runner.run(time_answers(engine, prompt, sampling, batch))
                    speeds.add(_speed(candidate, batch), run, timing)
                    if progress:
                        progress(_speed(candidate, batch), run + 1, request.runs)
        finally:
            runner.run(engine.close())


def _speed(candidate: _Candidate, batch: int) -> str:
    """By what name its runs are kept."""
    return f"{candidate.name}, {batch} at once"


def _row(candidate: _Candidate, request: Request, speeds: Results[Timing], quality: Perplexity) -> QuantizationRow:
    by_batch = {batch: speeds.of(_speed(candidate, batch), request.runs) for batch in BATCHES}
    alone = by_batch[1]
    first = Sample.of([timing.first for timing in alone])
    token = Sample.of([timing.seconds_per_token for timing in alone])
    rates = {batch: Sample.of([timing.tokens_per_second for timing in runs]) for batch, runs in by_batch.items()}
    return QuantizationRow(
        candidate.engine,
        candidate.quantization,
        candidate.size,
        candidate.context_token * request.windows.context,
        Interval.of(first.mean(), 1e3),
        Interval.of(token.mean(), 1e3),
        {str(batch): Interval.of(rate.mean()) for batch, rate in rates.items()},
        Interval.of(quality.perplexity),
        Interval.of(quality.ratio),
        sum(sample.dropped for sample in (first, token, *rates.values())),
    )

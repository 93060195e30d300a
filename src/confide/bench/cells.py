"""The runs of one cell, in this process: latency through the engine that serves, throughput by beam search.

A training makes steps as `confide train` makes them, a retrieval asks an index as `confide serve` asks a corpus.
"""

import asyncio
import importlib.util
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, Final, cast

import msgspec
import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from confide.bench.answers import answering, no_conversations, prompt_of, time_answers, time_beams
from confide.bench.results import Cell, ModelFacts, NotMeasured, Timing, Workload, WorkloadName
from confide.bench.worker import Job
from confide.enclave.engines.dtypes import TORCH_DTYPES
from confide.enclave.engines.engine import Dtype, Engine
from confide.enclave.engines.gguf_engine import GgufEngine
from confide.enclave.engines.transformers_engine import TransformersEngine
from confide.errors import BenchmarkError, ModelNotSupported
from confide.evaluate.identity import model_digest
from confide.models.context import require_room
from confide.models.ends import end_tokens
from confide.models.gguf.architectures import find_architecture
from confide.models.gguf.types import GgufType
from confide.models.integers import quantize_layers
from confide.models.sharing import empty_model
from confide.models.source import Source, open_model

TRANSFORMERS: Final = "transformers"
LLAMA_CPP: Final = "llama.cpp"
GGUF_TYPES: Final = {"bf16": GgufType.BF16, "int8": GgufType.Q8_0}
DTYPES: Final = tuple(Dtype)
ANSWERS: Final[tuple[WorkloadName, ...]] = ("throughput", "latency")
"""Workloads of a model that answers."""
_OTHERS: Final = {"training": "peft", "retrieval": "bm25s"}
"""The other ones, with what they are measured in, which is a module too; both compute in float32."""
QUESTIONS: Final = 16
"""Of a run of a retrieval."""
_STEPS: Final = 2
"""Of a run of a training."""
_BEST: Final = 10
"""Chunks that a question asks for."""


def plan_cells(
    source: Source,
    device: str,
    dtypes: Sequence[str],
    cores: Sequence[int],
    workloads: Sequence[WorkloadName] = ANSWERS,
) -> tuple[list[Cell], list[NotMeasured]]:
    """Every cell that some engine has on a device, and by name what none has."""
    cells, missing = [], []
    for workload in workloads:
        engines = (TRANSFORMERS, LLAMA_CPP) if workload in ANSWERS else (_OTHERS[workload],)
        for dtype in dtypes if workload in ANSWERS else (Dtype.F32,):
            for engine in engines:
                if reason := _lacks(source, device, workload, engine, dtype):
                    missing.append(NotMeasured(workload, engine, dtype, reason))
                else:
                    cells += [Cell(workload, engine, dtype, count) for count in cores]
    return cells, missing


def _lacks(source: Source, device: str, workload: str, engine: str, dtype: str) -> str:
    """Why an engine does not have it; empty where it does."""
    if workload in _OTHERS:
        if device != "cpu":
            return f"a {workload} computes on the processor alone here"
        return "" if importlib.util.find_spec(engine) else f"{engine} is not installed"
    if engine == TRANSFORMERS:
        return "integers are for the processor alone here" if dtype == Dtype.INT8 and device != "cpu" else ""
    if workload == "throughput":
        return "llama.cpp has no beam search"
    if device != "cpu":
        return "llama.cpp computes on the processor alone here"
    if dtype not in GGUF_TYPES:
        return f"llama.cpp's {dtype} is not among the types that models are written in here"
    try:
        find_architecture(source.config)
    except ModelNotSupported as error:
        return str(error)
    return ""


def doubling(most: int) -> tuple[int, ...]:
    """1, its doubles up to a number, and that number."""
    return tuple(sorted({most, *(1 << power for power in range(most.bit_length()))}))


def model_facts(source: Source) -> ModelFacts:
    """Which model it is. EvaluationError where nobody can tell which version of it."""
    weights = sum(parameter.numel() for parameter in empty_model(source.config).parameters())  # tied ones come once
    return ModelFacts(Path(source.name).name, model_digest(source), weights)


def in_dtype(source: Source, dtype: torch.dtype, device: str = "cpu") -> PreTrainedModel:
    """The stock model, computing in another type."""
    model: Any = source.load_model()
    return cast(PreTrainedModel, model.to(device, dtype))


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Those that may end an answer in llama.cpp, which knows some by their names whatever the model's files say."""
    return tuple(index for index, token in tokenizer.added_tokens_decoder.items() if token.special)


def run_cell(job: Job) -> Iterator[Timing]:
    """Warm up, then measure. BenchmarkError, EngineError and ModelNotSupported where that cannot be."""
    torch.set_num_threads(job.cell.cores)
    source, warm_ups = open_model(job.model), job.workload.warm_ups
    require_fit(job.cell.workload, source, job.workload)
    runs = {"throughput": _throughput, "latency": _latency, "training": _training, "retrieval": _retrieval}
    made = runs[job.cell.workload]
    with no_conversations(), asyncio.Runner() as runner, closing(made(job, source, runner)) as timings:
        yield from islice(timings, warm_ups, warm_ups + job.runs)


def require_fit(name: WorkloadName, source: Source, workload: Workload) -> None:
    """PromptTooLong for a model with less context, BenchmarkError where a workload lacks something."""
    if name in ANSWERS:
        require_room(source.config, workload.prompt, workload.answer)
    elif name == "training":
        require_room(source.config, workload.prompt, 0)
        if workload.prompt < 2:
            raise BenchmarkError("A window of one token teaches nothing; give --prompt 2 or more.")
    elif workload.chunks is msgspec.UNSET:
        raise BenchmarkError("A retrieval takes a corpus; say with --chunks how large.")


def _throughput(job: Job, source: Source, runner: asyncio.Runner) -> Generator[Timing, None, None]:
    """Runs of the stock model's own beam search, without end."""
    model, asked = _stock_model(job, source), job.workload
    engine = TransformersEngine(model, _tokenizer(source), source.name)
    prompt = runner.run(prompt_of(engine, asked.prompt))
    try:
        while True:
            yield time_beams(model, prompt, asked.answer, asked.batch, asked.beams)
    finally:
        runner.run(engine.close())


def _latency(job: Job, source: Source, runner: asyncio.Runner) -> Generator[Timing, None, None]:
    """Runs of the engine that serves, one request at a time, without end."""
    tokenizer, room = _tokenizer(source), job.workload.prompt + job.workload.answer
    engine: Engine
    if job.gguf is not None:
        ends = special_tokens(tokenizer)
        engine = GgufEngine(job.gguf, source.name, context=room, parallel=1, threads=job.cell.cores)
    else:
        model = _stock_model(job, source)
        ends = end_tokens(model, tokenizer)
        engine = TransformersEngine(model, tokenizer, source.name, room)
    prompt = runner.run(prompt_of(engine, job.workload.prompt))
    sampling = answering(job.workload.answer, ends)
    try:
        while True:
            yield runner.run(time_answers(engine, prompt, sampling, 1))
    finally:
        runner.run(engine.close())


def _training(job: Job, source: Source, _: asyncio.Runner) -> Generator[Timing, None, None]:
    """Runs of a few steps of one training, in float32."""
    from confide.attest.training import Lora
    from confide.certify.lora import Training

    model, asked = in_dtype(source, torch.float32), job.workload
    model.requires_grad_(False)
    steps = _STEPS * (asked.warm_ups + job.runs)
    window = [token % model.config.get_text_config().vocab_size for token in range(asked.prompt)]
    training = Training(model, [window] * (asked.batch * steps), Lora(batch=asked.batch, context=asked.prompt), 0)
    while True:
        started = time.perf_counter()
        training.step()
        first = time.perf_counter() - started
        for _step in range(_STEPS - 1):
            training.step()
        yield Timing(first, time.perf_counter() - started, _STEPS * asked.batch * (asked.prompt - 1))


def _retrieval(job: Job, _source: Source, _runner: asyncio.Runner) -> Generator[Timing, None, None]:
    """Runs of questions to a corpus of words that come as often as in a language, other questions in each."""
    from confide.packages.sealed.corpus import Chunk
    from confide.rag.index import Index

    draw = np.random.default_rng(0)

    def text(words: int) -> str:
        return " ".join(f"w{number}" for number in draw.zipf(1.2, words) % 20_000)

    index = Index([Chunk("a.txt", None, text(80)) for _ in range(cast(int, job.workload.chunks))])
    while True:
        questions = [text(8) for _ in range(QUESTIONS)]
        started = time.perf_counter()
        index.search(questions[0], _BEST)
        first = time.perf_counter() - started
        for question in questions[1:]:
            index.search(question, _BEST)
        yield Timing(first, time.perf_counter() - started, QUESTIONS)


def _stock_model(job: Job, source: Source) -> PreTrainedModel:
    if job.workload.device == "cuda" and not torch.cuda.is_available():
        raise BenchmarkError("torch has no CUDA device here; install its CUDA build, or measure with --device cpu.")
    if job.cell.dtype != Dtype.INT8:
        return in_dtype(source, TORCH_DTYPES[Dtype(job.cell.dtype)], job.workload.device)
    model = source.load_model()
    quantize_layers(model)
    return model


def _tokenizer(source: Source) -> PreTrainedTokenizerBase:
    tokenizer = source.load_tokenizer()
    if tokenizer is None:
        raise BenchmarkError(f"{source.name} has no tokenizer, which engines need; give a model folder that has one.")
    return tokenizer

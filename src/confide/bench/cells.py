"""The runs of one cell, in this process: latency through the engine that serves, throughput by beam search."""

import asyncio
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, Final, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from confide.bench.answers import answering, no_conversations, prompt_of, time_answers, time_beams
from confide.bench.results import Cell, ModelFacts, NotMeasured, Timing
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
WORKLOADS: Final = ("throughput", "latency")


def plan_cells(
    source: Source, device: str, dtypes: Sequence[str], cores: Sequence[int]
) -> tuple[list[Cell], list[NotMeasured]]:
    """Every cell that some engine has on a device, and by name what none has."""
    cells, missing = [], []
    for workload in WORKLOADS:
        for dtype in dtypes:
            for engine in (TRANSFORMERS, LLAMA_CPP):
                if reason := _lacks(source, device, workload, engine, dtype):
                    missing.append(NotMeasured(workload, engine, dtype, reason))
                else:
                    cells += [Cell(workload, engine, dtype, count) for count in cores]
    return cells, missing


def _lacks(source: Source, device: str, workload: str, engine: str, dtype: str) -> str:
    """Why an engine does not have it; empty where it does."""
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
    require_room(source.config, job.workload.prompt, job.workload.answer)
    runs = _throughput if job.cell.workload == "throughput" else _latency
    with no_conversations(), asyncio.Runner() as runner, closing(runs(job, source, runner)) as timings:
        yield from islice(timings, warm_ups, warm_ups + job.runs)


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

"""`confide bench tee`: the same workloads on one kind of machine after another, to see what its protection costs.

Workloads and their defaults are those of Chrapek et al., Confidential LLM Inference: Performance and Cost Across CPU
and GPU TEEs (IISWC 2025, arXiv 2509.18886): throughput in batches with beam search, latency of one request. Besides
there are steps of a LoRA training and questions to a corpus, each as it is served here.
"""

import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

import msgspec

from confide.bench.cells import ANSWERS, GGUF_TYPES, LLAMA_CPP, model_facts, plan_cells, require_fit
from confide.bench.checkout import commit
from confide.bench.machine import Arm, Environment, Machine, shown_arm
from confide.bench.results import (
    Cell,
    CellRuns,
    ModelFacts,
    NotMeasured,
    ResultFile,
    TeeResult,
    Timing,
    Workload,
    WorkloadName,
    digest_of,
    this_software,
)
from confide.bench.worker import Job, measure_apart
from confide.errors import BenchmarkError
from confide.evaluate.results import Results, Settings, keep_results
from confide.models.gguf.write import write_gguf
from confide.models.source import Source

_PARTIAL: Final = "tee-runs.jsonl"

OnProgress = Callable[[str, int, int], None]
"""Called with a cell's name, how many of its runs are measured, and how many there are to be."""


class Measure(Protocol):
    """What runs a job; `measure_apart`."""

    def __call__(self, job: Job) -> Generator[Timing, None, None]:
        """Its runs, one after the other."""
        ...


@dataclass(frozen=True)
class Request:
    """What to measure. source: of the model. cores: how many, for one cell after the other. runs: of each cell.

    workloads: a retrieval takes `workload.chunks`.
    """

    source: Source
    workload: Workload
    dtypes: Sequence[str]
    cores: Sequence[int]
    runs: int
    workloads: Sequence[WorkloadName] = ANSWERS

    def plan(self, machine: Machine) -> tuple[list[Cell], list[NotMeasured]]:
        """The cells. PromptTooLong for a model with less context; BenchmarkError for cores that are not here, and where
        no engine has anything of what is asked for.
        """
        if max(self.cores) > machine.cores:
            raise BenchmarkError(
                f"This process may use {machine.cores} of the machine's cores, and {max(self.cores)} are to be "
                "measured; give fewer with --cores."
            )
        for name in self.workloads:
            require_fit(name, self.source, self.workload)
        cells, missing = plan_cells(self.source, self.workload.device, self.dtypes, self.cores, self.workloads)
        if not cells:
            reasons = "; ".join(dict.fromkeys(one.reason for one in missing))
            raise BenchmarkError(f"No engine has any of this ({reasons}); give others with --dtypes or --workload.")
        return cells, missing


def measure_tee(
    request: Request,
    machine: Machine,
    environment: Environment,
    out: Path,
    *,
    progress: OnProgress | None = None,
    measure: Measure = measure_apart,
    committed: Callable[[], str] = commit,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> ResultFile[TeeResult]:
    """Measure what an earlier run with the same settings has not, and put it into one result.

    out: where runs are kept as they come, so that the same call goes on after an interruption. The machine proves
    itself before anything runs, and then again over what was found. Raises what `Environment.attest`, `shown_arm` and
    `commit` raise, EvaluationError for runs of other settings in `out`, BenchmarkError where a cell cannot be measured.
    """
    gpu = request.workload.device == "cuda"
    software = this_software(committed())
    cells, missing = request.plan(machine)
    arm = _arm(environment, machine, "00" * 32, now(), gpu=gpu)
    model = model_facts(request.source)
    settings = _settings(request, model, machine, arm, software.commit)
    with keep_results(out / _PARTIAL, Timing, settings) as kept, _files(request.source, cells) as files:
        for cell in cells:
            _measure_cell(cell, request, files, kept, measure, progress)
        runs = tuple(CellRuns(cell, tuple(kept.of(cell.name, request.runs))) for cell in cells)
    if committed() != software.commit:
        raise BenchmarkError("The checkout is of another commit than when measuring began; measure again.")
    result = TeeResult(1, now(), arm, machine, software, model, request.workload, runs, tuple(missing))
    attested = environment.attest(digest_of(result))
    file = ResultFile.make(result, attested)
    if attested is not None:
        shown = shown_arm(attested, file.digest, result.measured, environment.roots, gpu=gpu)
        if shown is not arm:
            raise BenchmarkError(
                f"This was a {arm} machine when measuring began, and now it is {shown}; measure again."
            )
    return file


def _arm(environment: Environment, machine: Machine, nonce: str, now: datetime, *, gpu: bool) -> Arm:
    attested = environment.attest(nonce)
    if attested is None:
        return Arm.VM if machine.virtual else Arm.BARE
    return shown_arm(attested, nonce, now, environment.roots, gpu=gpu)


def _measure_cell(
    cell: Cell,
    request: Request,
    files: dict[str, Path],
    kept: Results[Timing],
    measure: Measure,
    progress: OnProgress | None,
) -> None:
    """What of its runs is not kept yet."""
    lacking = [run for run in range(request.runs) if kept.get(cell.name, run) is None]
    if progress:
        progress(cell.name, request.runs - len(lacking), request.runs)
    if not lacking:
        return
    job = Job(cell, request.workload, request.source.name, files.get(cell.dtype), len(lacking))
    if cell.engine != LLAMA_CPP:
        job = replace(job, gguf=None)
    with closing(measure(job)) as timings:
        for run, timing in zip(lacking, timings, strict=True):
            kept.add(cell.name, run, timing)
            if progress:
                progress(cell.name, run + 1, request.runs)


@contextmanager
def _files(source: Source, cells: Sequence[Cell]) -> Iterator[dict[str, Path]]:
    """The model as a file for llama.cpp in each type that a cell needs."""
    with tempfile.TemporaryDirectory(prefix="confide-bench-") as folder:
        found = {}
        for dtype in dict.fromkeys(cell.dtype for cell in cells if cell.engine == LLAMA_CPP):
            found[dtype] = write_gguf(source, Path(folder) / f"{dtype}.gguf", GGUF_TYPES[dtype]).path
        yield found


def _settings(request: Request, model: ModelFacts, machine: Machine, arm: Arm, code: str) -> Settings:
    """What runs depend on, so that those of another machine, code or model are never taken for these."""
    workload = {name: str(value) for name, value in msgspec.to_builtins(request.workload).items()}
    return {
        "model": model.digest,
        "arm": arm.value,
        "processor": machine.processor,
        "kernel": machine.kernel,
        "commit": code,
        **this_software(code).libraries,
        **workload,
    }

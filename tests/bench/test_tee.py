"""Runs are measured once each, across interruptions too, and never mixed with those of other settings."""

import json
import multiprocessing
import os
import sys
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from tests.bench.made import MACHINE, WORKLOAD
from tests.cli.command import run

from confide.attest.simulated import SimulatedTee
from confide.attest.training import Lora
from confide.bench import cells, tee, worker
from confide.bench.cells import QUESTIONS, doubling, plan_cells, run_cell
from confide.bench.machine import Arm, Environment
from confide.bench.results import Cell, Timing, Workload, WorkloadName, read_file, require_arm
from confide.bench.tee import Request, measure_tee
from confide.bench.worker import Job, measure_apart
from confide.errors import BenchmarkError, EvaluationError, PromptTooLong
from confide.models.source import DEMO_FOLDER, open_model

SMALL = msgspec.structs.replace(WORKLOAD, prompt=16, answer=8)
NOWHERE = Environment(None)


class Measured:
    """Stands where processes measure. after: runs, until somebody presses ctrl-C."""

    def __init__(self, after: int = 10_000) -> None:
        self.left = after
        self.jobs: list[Job] = []

    def __call__(self, job: Job) -> Generator[Timing, None, None]:
        self.jobs.append(job)
        for number in range(job.runs):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            yield Timing(0.25, 1.0 + number / 64, 8)


@pytest.fixture(scope="module")
def request_() -> Request:
    return Request(open_model("demo"), SMALL, ("f32",), (1, 2), 5)


def committed() -> str:
    return "0c" * 20


def test_a_bare_machine_and_a_virtual_one_are_what_the_system_says(request_: Request, tmp_path: Path) -> None:
    bare = measure_tee(request_, MACHINE, NOWHERE, tmp_path / "a", measure=Measured(), committed=committed)
    virtual = msgspec.structs.replace(MACHINE, virtual="kvm")
    vm = measure_tee(request_, virtual, NOWHERE, tmp_path / "b", measure=Measured(), committed=committed)
    assert (bare.result.arm, vm.result.arm) == (Arm.BARE, Arm.VM)
    assert bare.result.software.commit == committed()
    assert bare.attested is None
    assert [each.cell.name for each in bare.result.cells] == [
        "throughput, transformers f32, 1 core",
        "throughput, transformers f32, 2 cores",
        "latency, transformers f32, 1 core",
        "latency, transformers f32, 2 cores",
    ]
    assert all(len(each.runs) == 5 for each in bare.result.cells)
    path = bare.write(tmp_path)
    assert read_file(path).result == bare.result
    assert path.name.startswith("tee-bare-")


def test_a_simulated_machine_signs_what_it_measured(request_: Request, tmp_path: Path) -> None:
    SimulatedTee.create(tmp_path / "tee")
    environment = Environment.find(tmp_path / "tee")
    file = measure_tee(request_, MACHINE, environment, tmp_path, measure=Measured(), committed=committed)
    assert file.result.arm is Arm.SIMULATED
    assert file.attested is not None
    assert file.attested.statement.nonce == file.digest
    require_arm(file)


def test_an_interrupted_run_goes_on_where_it_was(request_: Request, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    first = Measured(after=7)
    with pytest.raises(KeyboardInterrupt):
        measure_tee(request_, MACHINE, NOWHERE, tmp_path, measure=first, committed=committed)
    rest = Measured()
    file = measure_tee(
        request_,
        MACHINE,
        NOWHERE,
        tmp_path,
        measure=rest,
        committed=committed,
        progress=lambda *step: steps.append(step),
    )
    assert [job.runs for job in first.jobs] == [5, 5]
    assert [(job.cell.cores, job.runs) for job in rest.jobs] == [(2, 3), (1, 5), (2, 5)]
    assert [timing.seconds for timing in file.result.cells[1].runs] == [1.0, 1 + 1 / 64, 1.0, 1 + 1 / 64, 1 + 2 / 64]
    assert steps[0] == ("throughput, transformers f32, 1 core", 5, 5)
    assert steps[-1] == ("latency, transformers f32, 2 cores", 5, 5)
    assert measure_tee(request_, MACHINE, NOWHERE, tmp_path, measure=Measured(0), committed=committed).result.cells == (
        file.result.cells
    )


@pytest.mark.parametrize("what", ["commit", "kernel", "processor", "arm", "batch"])
def test_runs_of_other_settings_are_not_taken(what: str, request_: Request, tmp_path: Path) -> None:
    measure_tee(request_, MACHINE, NOWHERE, tmp_path, measure=Measured(), committed=committed)
    machine, asked, code = MACHINE, request_, committed
    if what == "commit":
        code = lambda: "1d" * 20  # noqa: E731
    elif what == "batch":
        asked = Request(request_.source, msgspec.structs.replace(SMALL, batch=2), ("f32",), (1, 2), 5)
    else:
        machine = msgspec.structs.replace(MACHINE, **{"virtual" if what == "arm" else what: "other"})
    with pytest.raises(EvaluationError, match=f"of another {what}"):
        measure_tee(asked, machine, NOWHERE, tmp_path, measure=Measured(), committed=code)


def test_a_checkout_that_changes_meanwhile_gives_no_result(request_: Request, tmp_path: Path) -> None:
    commits = iter(["0c" * 20, "1d" * 20])
    with pytest.raises(BenchmarkError, match="another commit"):
        measure_tee(request_, MACHINE, NOWHERE, tmp_path, measure=Measured(), committed=lambda: next(commits))


def test_a_changed_checkout_is_refused_before_anything_runs(request_: Request, tmp_path: Path) -> None:
    def dirty() -> str:
        raise BenchmarkError("not as it was committed")

    measured = Measured()
    with pytest.raises(BenchmarkError):
        measure_tee(request_, MACHINE, NOWHERE, tmp_path, measure=measured, committed=dirty)
    assert not measured.jobs


def test_a_machine_that_is_another_kind_at_the_end_gives_no_result(
    request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SimulatedTee.create(tmp_path / "tee")
    arms = iter([Arm.TDX, Arm.SNP])
    monkeypatch.setattr(tee, "shown_arm", lambda *_, **__: next(arms))
    with pytest.raises(BenchmarkError, match=r"was a tdx machine.*now it is snp"):
        measure_tee(
            request_, MACHINE, Environment.find(tmp_path / "tee"), tmp_path, measure=Measured(), committed=committed
        )


def test_more_cores_than_there_are_and_longer_texts_than_fit_are_refused(request_: Request, tmp_path: Path) -> None:
    machine = msgspec.structs.replace(MACHINE, cores=1)
    with pytest.raises(BenchmarkError, match="1 of the machine's cores"):
        measure_tee(request_, machine, NOWHERE, tmp_path, measure=Measured(), committed=committed)
    paper = Request(request_.source, WORKLOAD, ("f32",), (1,), 5)
    with pytest.raises(PromptTooLong):
        measure_tee(paper, MACHINE, NOWHERE, tmp_path, measure=Measured(), committed=committed)


def test_nothing_to_measure_is_no_result(request_: Request, tmp_path: Path) -> None:
    workload = msgspec.structs.replace(SMALL, device="cuda")
    asked = Request(request_.source, workload, ("int8",), (1,), 5)
    with pytest.raises(BenchmarkError, match=r"No engine has any of this .*processor alone"):
        measure_tee(asked, MACHINE, NOWHERE, tmp_path, measure=Measured(), committed=committed)


def test_what_an_engine_lacks_is_said_by_name(request_: Request) -> None:
    found, missing = plan_cells(request_.source, "cpu", ("bf16", "int8"), (1,))
    assert [(cell.workload, cell.engine, cell.dtype) for cell in found] == [
        ("throughput", "transformers", "bf16"),
        ("throughput", "transformers", "int8"),
        ("latency", "transformers", "bf16"),
        ("latency", "llama.cpp", "bf16"),
        ("latency", "transformers", "int8"),
        ("latency", "llama.cpp", "int8"),
    ]
    assert [one.reason for one in missing if (one.workload, one.engine) == ("throughput", "llama.cpp")] == [
        "llama.cpp has no beam search"
    ] * 2
    assert {one.engine for one in missing} == {"llama.cpp"}


def test_what_a_gpu_computes_is_not_mixed_with_what_the_processor_does(request_: Request) -> None:
    found, missing = plan_cells(request_.source, "cuda", ("bf16", "int8"), (1,))
    assert {(cell.engine, cell.dtype) for cell in found} == {("transformers", "bf16")}
    assert "llama.cpp computes on the processor alone here" in {one.reason for one in missing}


@pytest.mark.parametrize(("most", "counts"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))])
def test_cores_are_doubled_up_to_all(most: int, counts: tuple[int, ...]) -> None:
    assert doubling(most) == counts


def job(model: Path, runs: int = 2) -> Job:
    return Job(Cell("latency", "transformers", "f32", 1), Workload(4, 4, 1, 1, 1, "cpu"), str(model), None, runs)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that need not import torch anew."""
    monkeypatch.setattr(worker, "get_context", lambda _: multiprocessing.get_context("fork"))


@pytest.mark.usefixtures("forked")
def test_what_goes_wrong_in_the_other_process_is_said_here(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"transformers f32, 1 core cannot be measured: There is no model"):
        next(measure_apart(job(tmp_path)))


@pytest.mark.usefixtures("forked")
def test_a_process_that_dies_is_no_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(worker, "work", lambda *_: os._exit(9))
    with pytest.raises(BenchmarkError, match="ended with 9"):
        next(measure_apart(job(tmp_path)))


@pytest.mark.usefixtures("forked")
def test_a_process_has_the_cores_it_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def cores(job: Job) -> Iterator[Timing]:
        yield Timing(0.5, 1.0, 1 + len(os.sched_getaffinity(0)))

    monkeypatch.setattr(cells, "run_cell", cores)
    assert [timing.tokens for timing in measure_apart(job(tmp_path, 1))] == [2]
    assert len(os.sched_getaffinity(0)) >= 1


@pytest.mark.parametrize(
    ("workload", "dtype", "tokens"),
    [
        ("latency", "f32", 4),
        ("latency", "int8", 4),
        ("throughput", "f32", 8),
        pytest.param("training", "f32", 2 * 2 * 3, marks=pytest.mark.slow),  # peft takes seconds to be imported
        ("retrieval", "f32", QUESTIONS),
    ],
)
def test_a_cell_warms_up_and_then_measures(
    workload: WorkloadName, dtype: str, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # for the tests that come after
    asked = replace(job(DEMO_FOLDER), cell=Cell(workload, "transformers", dtype, 1))
    asked = replace(asked, workload=msgspec.structs.replace(asked.workload, batch=2, beams=2, chunks=50))
    found = list(run_cell(asked))
    assert [timing.tokens for timing in found] == [tokens] * 2
    assert all(timing.first < timing.seconds for timing in found)


def test_a_run_of_a_training_is_two_steps_of_it(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the class that trains, which is imitated here."""
    made: list[Any] = []

    class Training:
        def __init__(self, model: Any, windows: list[list[int]], lora: Lora, seed: int) -> None:
            self.windows, self.lora, self.done = windows, lora, 0
            made.append(self)

        def step(self) -> None:
            self.done += 1

    monkeypatch.setitem(sys.modules, "confide.certify.lora", SimpleNamespace(Training=Training))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    asked = replace(job(DEMO_FOLDER), cell=Cell("training", "peft", "f32", 1))
    found = list(run_cell(replace(asked, workload=msgspec.structs.replace(asked.workload, batch=3, prompt=5))))
    assert [timing.tokens for timing in found] == [2 * 3 * 4] * 2
    (training,) = made
    assert training.done == 2 * 3  # a warm-up, two that count
    assert (len(training.windows), training.lora.batch) == (3 * training.done, 3)
    assert {len(window) for window in training.windows} == {5}


def test_training_and_retrieval_join_where_they_are_asked_for(
    request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = msgspec.structs.replace(SMALL, chunks=100)
    asked = replace(request_, workload=small, workloads=("latency", "training", "retrieval"))
    file = measure_tee(asked, MACHINE, NOWHERE, tmp_path / "a", measure=Measured(), committed=committed)
    assert [each.cell.name for each in file.result.cells if each.cell.cores == 1] == [
        "latency, transformers f32, 1 core",
        "training, peft f32, 1 core",
        "retrieval, bm25s f32, 1 core",
    ]
    assert read_file(file.write(tmp_path)).result.workload == small
    # The model's context is not asked about where no model is.
    long = msgspec.structs.replace(WORKLOAD, chunks=100)
    measure_tee(
        replace(asked, workload=long, workloads=("retrieval",)),
        MACHINE,
        NOWHERE,
        tmp_path / "b",
        measure=Measured(),
        committed=committed,
    )
    for workload, name, error in (
        (long, "training", PromptTooLong),
        (SMALL, "retrieval", BenchmarkError),
        (msgspec.structs.replace(SMALL, prompt=1), "training", BenchmarkError),
    ):
        with pytest.raises(error):
            replace(asked, workload=workload, workloads=(name,)).plan(MACHINE)
    missing = plan_cells(request_.source, "cuda", ("f32",), (1,), ("training", "retrieval"))[1]
    assert [one.reason for one in missing] == [
        f"a {name} computes on the processor alone here" for name in ("training", "retrieval")
    ]
    monkeypatch.setattr(cells.importlib.util, "find_spec", lambda _: None)
    missing = plan_cells(request_.source, "cpu", ("f32",), (1,), ("training", "retrieval"))[1]
    assert [one.reason for one in missing] == ["peft is not installed", "bm25s is not installed"]


def test_results_from_before_there_were_corpora_have_their_digest() -> None:
    """A workload without one is written as it was then."""
    assert "chunks" not in msgspec.to_builtins(WORKLOAD)


@pytest.mark.slow
def test_the_whole_command_twice_and_a_comparison(tmp_path: Path) -> None:
    sizes = (
        "--prompt 8 --answer 4 --batch 2 --beams 2 --warm-ups 1 --runs 2 --cores 1 --dtypes f32,int8 --chunks 50 "
        "--workload latency,throughput,training,retrieval"
    )
    done = run("tee", "simulate", "init", tmp_path / "tee")
    assert done.returncode == 0
    found = []
    for options in ([], ["--simulated-tee", tmp_path / "tee"]):
        done = run("bench", "tee", "demo", *sizes.split(), *options, "--out", tmp_path / f"out{len(options)}", "--json")
        said = json.loads(done.stdout)
        if said.get("error", {}).get("code") == "benchmark" and "checkout" in said["error"]["message"]:
            pytest.skip("this checkout is not as it was committed")
        assert done.returncode == 0, done.stdout
        found.append(said["files"][0])
        assert said["result"]["arm"] in (("simulated",) if options else ("bare", "vm"))
    done = run("bench", "compare", *found, "--out", tmp_path / "figures", "--json")
    assert done.returncode == 0, done.stdout
    said = json.loads(done.stdout)
    assert {row["cell"]["dtype"] for row in said["rows"]} == {"f32", "int8"}
    assert sorted(Path(path).name for path in said["files"]) == [
        "latency.png",
        "retrieval.png",
        "throughput.png",
        "training.png",
    ]
    assert all(Path(path).read_bytes().startswith(b"\x89PNG") for path in said["files"])

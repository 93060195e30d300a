"""`confide bench`: what a model costs here, type of weights by type, and what a trusted environment adds to it."""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, get_args

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from confide.cli import measuring, output
from confide.cli.options import Json
from confide.cli.tee import WARNING

if TYPE_CHECKING:
    from confide.bench.compare import Comparison
    from confide.bench.machine import Machine
    from confide.bench.results import (
        AnyResult,
        Cell,
        NotMeasured,
        QuantizationResult,
        ResultFile,
        TeeResult,
        WorkloadName,
    )
    from confide.bench.tee import OnProgress
    from confide.evaluate.statistics import Estimate

app = typer.Typer(name="bench", help="Measure what a model costs here, and compare machines.", no_args_is_help=True)

Model = Annotated[str, typer.Argument(help="`demo`, a local Hugging Face folder, or a hub id.")]
Prompt = Annotated[int, typer.Option(help="Tokens of each prompt.", min=1)]
Answer = Annotated[int, typer.Option(help="Tokens of each answer.", min=2)]
Runs = Annotated[int, typer.Option(help="Runs that count.", min=1, max=1_000)]
Context = Annotated[int | None, typer.Option(help="Tokens in a window of text; the model's, up to 2048.", min=2)]
MaxWindows = Annotated[int | None, typer.Option("--windows", help="Use only so many windows, from the start.", min=2)]
WarmUps = Annotated[int, typer.Option("--warm-ups", help="Runs before them, which do not.", min=0, max=1_000)]
_UNITS: Final = {
    "throughput": (1.0, "tokens/s"),
    "latency": (1e3, "ms a token"),
    "training": (1.0, "tokens/s"),
    "retrieval": (1e3, "ms a question"),
}
_OVERHEADS: Final = {
    "throughput": "throughput lost",
    "latency": "latency added",
    "training": "tokens a second lost in training",
    "retrieval": "time added to a question",
}


@app.command("quantization")
def quantization(
    model: Model,
    text: Annotated[
        Path, typer.Option(help="A text in UTF-8, for perplexity.", exists=True, dir_okay=False, readable=True)
    ],
    prompt: Prompt = 128,
    answer: Answer = 64,
    runs: Runs = 5,
    warm_ups: WarmUps = 1,
    context: Context = None,
    windows: MaxWindows = None,
    threads: Annotated[int | None, typer.Option(help="Of the processor; all without.", min=1)] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the result and its plot, to go on in after an interruption.")
    ] = None,
    json: Json = False,
) -> None:
    """Size, memory, speed and perplexity of a model in every type of weights that an engine here has.

    With --out from a checkout, nothing in it may differ from its commit.
    """
    from confide.bench.machine import this_machine
    from confide.bench.quantization import Request, measure_quantizations
    from confide.models.source import open_model

    output.quiet_transformers()
    cores = len(os.sched_getaffinity(0))
    request = Request(
        open_model(model),
        measuring.read_text(text),
        prompt=prompt,
        answer=answer,
        runs=runs,
        warm_ups=warm_ups,
        threads=threads or cores,
        context=context,
        max_windows=windows,
    )
    with measuring.interruptible(out), _progress(quiet=json) as progress:
        file = measure_quantizations(request, this_machine(), out, progress=progress)
    written = [] if out is None else [file.write(out), _plot_quantizations(file, out)]
    if json:
        output.result(_as_json(file, written))
        return
    show_quantizations(file.result)
    _show_not_measured(file.result.not_measured)
    _show_written(written)


@app.command("tee")
def tee(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for the result, to go on in after an interruption.")],
    prompt: Prompt = 1024,
    answer: Answer = 128,
    workload: Annotated[
        str, typer.Option(help="What to measure, of throughput, latency, training and retrieval.")
    ] = "throughput,latency",
    batch: Annotated[
        int, typer.Option(help="Prompts at once, for throughput; windows in a training's step.", min=1)
    ] = 6,
    beams: Annotated[int, typer.Option(help="Beams of each, for throughput.", min=1)] = 4,
    chunks: Annotated[
        int, typer.Option(help="Of the corpus, for retrieval, of 80 words each.", min=1, max=1 << 20)
    ] = 10_000,
    warm_ups: WarmUps = 10,
    runs: Runs = 50,
    dtypes: Annotated[str, typer.Option(help="Types of weights, of f32, bf16 and int8.")] = "bf16,int8",
    cores: Annotated[
        str | None, typer.Option(help="How many, such as 1,2,4; without: 1 and its doubles, up to all.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, or cuda for what transformers computes.")] = "cpu",
    simulated_tee: Annotated[
        Path | None, typer.Option(help="A folder of `confide tee simulate init`, to try things out; proves nothing.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Take vendors' collateral from the cache.")] = False,
    json: Json = False,
) -> None:
    """What a model's answers, a training and a retrieval take on this machine, whose kind is found out and attested.

    An interrupted run goes on with the same command. A checkout must be as it was committed.
    """
    from msgspec.structs import replace

    from confide.bench.machine import Environment, this_machine
    from confide.bench.results import Workload
    from confide.bench.tee import Request, measure_tee
    from confide.models.source import open_model

    output.quiet_transformers()
    machine = this_machine()
    names = _workloads(workload)
    asked = Workload(prompt, answer, batch, beams, warm_ups, _device(device))
    if "retrieval" in names:
        asked = replace(asked, chunks=chunks)
    request = Request(open_model(model), asked, _dtypes(dtypes), _cores(cores, machine.cores), runs, names)
    environment = Environment.find(simulated_tee, offline=offline)
    with measuring.interruptible(out), _progress(quiet=json) as progress:
        file = measure_tee(request, machine, environment, out, progress=progress)
    path = file.write(out)
    if json:
        output.result(_as_json(file, [path]))
        return
    show_tee(file.result)
    _show_not_measured(file.result.not_measured)
    _show_written([path])


@app.command("compare")
def compare(
    results: Annotated[
        list[Path], typer.Argument(help="Files of `bench tee`; the first is what others are held against.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for a figure of each workload.", file_okay=False)] = None,
    json: Json = False,
) -> None:
    """By how much throughput falls and latency grows from one machine to others, with intervals of 95%.

    Files that were changed are refused, and so is a trusted environment that its own evidence does not show.
    """
    from dataclasses import asdict

    from confide.bench.compare import compare as compared
    from confide.bench.results import TeeResult, read_file, require_arm
    from confide.errors import BenchmarkError

    found: list[TeeResult] = []
    for path in results:
        file = read_file(path)
        if not isinstance(file.result, TeeResult):
            raise BenchmarkError(f"{path} is no result of `confide bench tee`; give one.")
        require_arm(file)
        found.append(file.result)
    comparison = compared(found)
    written = [] if out is None else _draw(comparison, found[0], out)
    if json:
        rows = [asdict(row) | {"cell": _cell(row.cell)} for row in comparison.rows]
        said = {"baseline": comparison.baseline, "differences": comparison.differences, "rows": rows}
        output.result(said | {"files": list(map(str, written))})
        return
    for cell in dict.fromkeys(row.cell for row in comparison.rows):
        scale, unit = _UNITS[cell.workload]
        table = measuring.table("", unit, "overhead, %", "runs", "dropped")
        for row in (row for row in comparison.rows if row.cell == cell):
            overhead = "" if row.overhead is None else measuring.percent(row.overhead, 1)
            table.add_row(row.arm, f"{row.mean.value * scale:,.1f}", overhead, str(row.runs), str(row.dropped))
        output.console.print(f"[bold]{escape(cell.name)}[/]")
        output.console.print(table)
    for difference in comparison.differences:
        output.note(f"Besides their protection these machines differ: {difference}.")
    if any(row.arm.startswith("simulated") for row in comparison.rows):
        output.note("What is simulated protects nothing; these times are of no trusted environment.")
    _show_written(written)


def _device(text: str) -> Literal["cpu", "cuda"]:
    if text not in ("cpu", "cuda"):
        raise typer.BadParameter("--device is cpu or cuda")
    return "cuda" if text == "cuda" else "cpu"


def _dtypes(text: str) -> tuple[str, ...]:
    from confide.bench.cells import DTYPES

    found = tuple(dict.fromkeys(text.split(",")))
    if not set(found) <= set(DTYPES):
        raise typer.BadParameter(f"--dtypes takes {', '.join(DTYPES)}, separated by commas")
    return found


def _workloads(text: str) -> "tuple[WorkloadName, ...]":
    from confide.bench.results import WorkloadName

    found = tuple(name for name in get_args(WorkloadName) if name in text.split(","))
    if len(found) != len(set(text.split(","))):
        raise typer.BadParameter(f"--workload takes {', '.join(get_args(WorkloadName))}, separated by commas")
    return found


def _cores(text: str | None, most: int) -> tuple[int, ...]:
    from confide.bench.cells import doubling

    if text is None:
        return doubling(most)
    if not re.fullmatch(r"[1-9]\d{0,4}(,[1-9]\d{0,4})*", text):
        raise typer.BadParameter("--cores takes numbers from 1 up, separated by commas, such as 1,2,4")
    return tuple(sorted({int(part) for part in text.split(",")}))


@contextlib.contextmanager
def _progress(*, quiet: bool) -> "Iterator[OnProgress]":
    """A bar for each thing that is measured, as soon as it begins."""
    columns = (TextColumn("{task.description}"), BarColumn(30), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=output.messages, transient=True, disable=quiet) as bars:
        tasks: dict[str, TaskID] = {}

        def update(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(escape(name), total=total)
            bars.update(tasks[name], completed=done, total=total)

        yield update


def _as_json(file: "ResultFile[AnyResult]", written: Sequence[Path]) -> dict[str, Any]:
    """The result under its digest, as in the file, but for the evidence."""
    import msgspec

    return {"digest": file.digest, "result": msgspec.to_builtins(file.result), "files": list(map(str, written))}


def _cell(cell: "Cell") -> dict[str, Any]:
    import msgspec

    return msgspec.structs.asdict(cell)


def _plot_quantizations(file: "ResultFile[QuantizationResult]", out: Path) -> Path:
    from confide.evaluate.plots import draw_quantizations

    result = file.result
    path = out / f"quantization-{file.digest[:16]}.png"
    points = {
        f"{row.engine} {row.quantization}": (row.ms_per_token.estimate, row.ratio.estimate) for row in result.rows
    }
    reference = result.rows[0].perplexity.value
    draw_quantizations(path, f"{result.model.name}, {result.machine.processor}", points, reference)
    return path


def _draw(comparison: "Comparison", result: "TeeResult", out: Path) -> list[Path]:
    from confide.evaluate.plots import draw_overheads

    out.mkdir(parents=True, exist_ok=True)
    written = []
    for workload, words in _OVERHEADS.items():
        groups: dict[str, dict[str, Estimate]] = {}
        for row in comparison.rows:
            if row.cell.workload == workload and row.overhead is not None:
                groups.setdefault(row.cell.place, {})[row.arm] = row.overhead
        if groups:
            path = out / f"{workload}.png"
            draw_overheads(path, result.model.name, f"{words}, against {comparison.baseline}", groups)
            written.append(path)
    return written


def show_quantizations(result: "QuantizationResult") -> None:
    """A table, as wide as any terminal."""
    batches = list(result.rows[0].tokens_per_second)
    table = measuring.table("", "size", "cache", "first", "next", *(f"x{batch}" for batch in batches), "perplexity")
    for engine in dict.fromkeys(row.engine for row in result.rows):
        table.add_row(engine)
        for row in (row for row in result.rows if row.engine == engine):
            table.add_row(
                f" {row.quantization}",
                output.megabytes(row.size),
                output.megabytes(row.context_memory),
                *map(_brief, (row.first_ms.value, row.ms_per_token.value)),
                *(_brief(row.tokens_per_second[batch].value) for batch in batches),
                f"{_brief(row.perplexity.value)} ({_brief(row.perplexity.low)}, {_brief(row.perplexity.high)})",
            )
    table.caption = "cache: of a full context; first, next token: ms; x8: tokens a second, 8 at once"
    output.console.print(table)
    output.note(
        f"{_described(result.machine)}; prompts of {result.prompt} tokens and answers of "
        f"{result.answer}, {result.runs} runs; memory for a context of {result.context} tokens; perplexity over "
        f"{result.scored_tokens:,} tokens, with intervals of 95%."
    )


def show_tee(result: "TeeResult") -> None:
    """A table for each workload, and what machine it was."""
    from confide.bench.compare import sample_of

    for workload, (scale, unit) in _UNITS.items():
        if workload not in {each.cell.workload for each in result.cells}:
            continue
        table = measuring.table("", unit, "runs", "dropped")
        for measured in (each for each in result.cells if each.cell.workload == workload):
            sample = sample_of(measured)
            mean = sample.mean()
            found = f"{mean.value * scale:,.1f} ({mean.low * scale:,.1f}, {mean.high * scale:,.1f})"
            table.add_row(measured.cell.place, found, str(len(measured.runs)), str(sample.dropped))
        output.console.print(f"[bold]{workload}[/]")
        output.console.print(table)
    output.note(f"This machine: {result.arm}, {_described(result.machine)}.")
    if result.arm == "simulated":
        output.note(WARNING)


def _brief(value: float) -> str:
    """Three digits at least, and none behind the point where there are as many before it."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _described(machine: "Machine") -> str:
    busy = ", which was busy with other things" if machine.load >= machine.cores else ""
    return f"{machine.processor}, {machine.cores} cores, load {machine.load:.1f}{busy}"


def _show_not_measured(missing: "Sequence[NotMeasured]") -> None:
    for one in missing:
        output.note(f"Not measured: {one.workload} in {one.engine} {one.dtype}, because {one.reason.rstrip('.')}.")


def _show_written(written: Sequence[Path]) -> None:
    for path in written:
        output.console.print(f"Written: {escape(str(path))}", soft_wrap=True)

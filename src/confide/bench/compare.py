"""`confide bench compare`: results of several machines beside each other, of the same work and nothing else.

The paper's two figures (see `tee`): by how much throughput falls and latency grows, cell by cell, with intervals; and
the same of training and retrieval where they were measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from confide.bench.results import Cell, CellRuns, TeeResult, digest_of
from confide.bench.statistics import Sample
from confide.errors import BenchmarkError
from confide.evaluate.statistics import Estimate


@dataclass(frozen=True)
class Compared:
    """A cell on one machine. mean: tokens a second for throughput and training, seconds a token or a question else.

    overhead: by what share of the baseline's throughput is lost, or latency longer; None for the baseline itself.
    """

    arm: str
    cell: Cell
    mean: Estimate
    overhead: Estimate | None
    runs: int
    dropped: int


@dataclass(frozen=True)
class Comparison:
    """Cells that all machines have, in the baseline's order. differences: in what the machines differ besides."""

    baseline: str
    rows: tuple[Compared, ...]
    differences: tuple[str, ...]


def compare(results: Sequence[TeeResult]) -> Comparison:
    """Hold every result against the first. BenchmarkError for other models or workloads, and where nothing is common.

    Whether a file is whole and its machine is what it says, `read_file` and `require_arm` tell.
    """
    baseline, *others = results
    if not others:
        raise BenchmarkError("There is nothing to compare with; give two files of results or more.")
    for other in others:
        _require_same(baseline, other)
    if len({digest_of(result) for result in results}) < len(results):
        raise BenchmarkError("One of these results is given twice; name each file once.")
    arms = _labels(results)
    cells = {each.cell: each for each in baseline.cells}
    common = [cell for cell in cells if all(cell in {each.cell for each in other.cells} for other in others)]
    if not common:
        raise BenchmarkError("These results have no cell in common; measure the same --dtypes and --cores on each.")
    rows = []
    for cell in common:
        first = sample_of(cells[cell])
        for arm, result in zip(arms, results, strict=True):
            runs = next(each for each in result.cells if each.cell == cell)
            sample = first if result is baseline else sample_of(runs)
            overhead = None if result is baseline else _overhead(cell, sample, first)
            rows.append(Compared(arm, cell, sample.mean(), overhead, len(runs.runs), sample.dropped))
    return Comparison(arms[0], tuple(rows), tuple(_differences(arms, results)))


def _require_same(one: TeeResult, other: TeeResult) -> None:
    if one.model.digest != other.model.digest:
        raise BenchmarkError(
            f"These results are of other models, {one.model.name} ({one.model.digest[:12]}) and {other.model.name} "
            f"({other.model.digest[:12]}); measure the same one on each machine."
        )
    asked, theirs = (msgspec.structs.asdict(result.workload) for result in (one, other))
    for name, value in asked.items():
        # On which device, tells a machine with its GPU from one without: that may be what is compared.
        if name != "device" and value != theirs[name]:
            raise BenchmarkError(
                f"These results are of other workloads ({name}: {value} and {theirs[name]}); measure the same one on "
                "each machine."
            )


def _labels(results: Sequence[TeeResult]) -> list[str]:
    """Arms by their names; several of one kind by their order as well."""
    arms = [result.arm.value for result in results]
    return [arm if arms.count(arm) == 1 else f"{arm} {arms[: at + 1].count(arm)}" for at, arm in enumerate(arms)]


def sample_of(measured: CellRuns) -> Sample:
    """Its runs, in tokens a second or seconds a token, without those that lie too far out."""
    if measured.cell.by_rate:
        return Sample.of([timing.tokens_per_second for timing in measured.runs])
    return Sample.of([timing.seconds_per_token for timing in measured.runs])


def _overhead(cell: Cell, sample: Sample, baseline: Sample) -> Estimate:
    more = sample.over(baseline)
    return Estimate(-more.value, -more.high, -more.low) if cell.by_rate else more


def _differences(arms: Sequence[str], results: Sequence[TeeResult]) -> list[str]:
    """Sentences; what differs besides the protection makes a difference too."""
    found = []
    baseline = _circumstances(results[0])
    for arm, result in zip(arms[1:], results[1:], strict=True):
        for name, value in _circumstances(result).items():
            if value != baseline[name]:
                found.append(f"{name}: {baseline[name] or 'none'} on {arms[0]}, {value or 'none'} on {arm}")
    return found


def _circumstances(result: TeeResult) -> dict[str, str]:
    libraries = ", ".join(f"{name} {version}" for name, version in sorted(result.software.libraries.items()))
    return {
        "processor": result.machine.processor,
        "kernel": result.machine.kernel,
        "device": result.workload.device,
        "confide": f"{result.software.confide} {result.software.commit[:12]}".strip(),
        "libraries": libraries,
    }

"""Writes docs/benchmarks.md: every result that is kept in benchmarks/results, as its file has it.

python -m tools.benchmarks_page            # writes it
python -m tools.benchmarks_page --check    # exits 1 where it is out of date; the tests do the same
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec
from benchmarks.measure import Figure
from benchmarks.peers.published import OURS, PUBLISHED

from confide.bench.compare import sample_of
from confide.bench.results import MAX_BYTES, QuantizationResult, TeeResult, read_result
from confide.disk.files import read_bounded
from confide.errors import InvalidResult

ROOT: Final = Path(__file__).resolve().parent.parent
PAGE: Final = ROOT / "docs" / "benchmarks.md"
RESULTS: Final = ROOT / "benchmarks" / "results"
NO_FIGURES: Final = frozenset({"attention_peer.json"})
"""What another library said of itself, which has a page of its own: encrypted-attention.md."""
_HEAD: Final = """# Benchmarks

Every result that is kept, made from [benchmarks/results](../benchmarks/results/README.md) by
`python -m tools.benchmarks_page`; a test compares. Figures of two processors are never compared: each row names its
own, and the day it was measured. `moonshot` and `yes` say which of its two aims it reached, `no` that it reached none.
[performance.md](performance.md) says where the time goes, [peers.md](peers.md) how one layer is measured beside others.
"""


_ABOUT_WEIGHTS: Final = """\
`confide bench quantization`. Size is that of the weights, memory that of a full context's keys and values; first and
next token are of one request alone. Perplexity is that of the weights, with its interval of 95%; the ratio to f32 is of
the same windows, and so far better known. Both say nothing where weights are random, of a shape measured for its
speed. None of these has an aim. A load as high as the number of cores says that others had the machine too: times are
then far from what it can do, and size, memory and perplexity are what they are."""


class _Machine(msgspec.Struct):
    processor: Annotated[str, msgspec.Meta(max_length=256)]


class _Figure(msgspec.Struct):
    what: str
    value: float
    unit: str
    reach: float
    moonshot: float
    detail: str
    higher_is_better: bool
    reached: str


class Figures(msgspec.Struct):
    """A file of figures with aims. measured: the day."""

    machine: _Machine
    measured: Annotated[str, msgspec.Meta(pattern=r"\A\d{4}-\d\d-\d\d\Z")]
    figures: Annotated[tuple[_Figure, ...], msgspec.Meta(min_length=1, max_length=256)]


Kept = Figures | TeeResult | QuantizationResult


def read_kept(name: str, data: bytes) -> Kept:
    """A file of figures, or of `confide bench`. InvalidResult for anything else, and for an aim that was not reached.

    name: for whoever reads the error.
    """
    if b'"digest"' in data[:64]:
        return read_result(data).result
    try:
        read = msgspec.json.decode(data, type=Figures)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidResult(f"{name} is no file of results ({error}); run its benchmark again.") from None
    for figure in read.figures:
        fields = msgspec.structs.asdict(figure)
        found = Figure(**{key: value for key, value in fields.items() if key != "reached"}).reached
        if found != figure.reached:
            raise InvalidResult(f"{name}: {figure.what} reached {found}, not {figure.reached}; run it again.")
    return read


def page(folder: Path = RESULTS) -> str:
    """The page."""
    kept = [
        (path.relative_to(folder).as_posix(), read_kept(path.name, read_bounded(path, MAX_BYTES)))
        for path in sorted(folder.glob("*/*.json"))
        if path.name not in NO_FIGURES
    ]
    figures = [(name, one) for name, one in kept if isinstance(one, Figures)]
    quantizations = [(name, one) for name, one in kept if isinstance(one, QuantizationResult)]
    machines = [(name, one) for name, one in kept if isinstance(one, TeeResult)]
    sections = [_figures(figures), _quantizations(quantizations), _machines(machines), _peers(figures)]
    return "\n".join([_HEAD, *("\n".join(section) + "\n" for section in sections)])


def _figures(kept: Sequence[tuple[str, Figures]]) -> Iterator[str]:
    yield from ("## Figures with aims", "")
    yield from _table("what", "measured", "reach", "moonshot", "reached", "when", "processor", "detail")
    for _, one in kept:
        for figure in one.figures:
            yield _row(
                figure.what,
                f"{figure.value:,.2f} {figure.unit}",
                f"{figure.reach:g}",
                f"{figure.moonshot:g}",
                figure.reached,
                one.measured,
                one.machine.processor,
                figure.detail,
            )


def _quantizations(kept: Sequence[tuple[str, QuantizationResult]]) -> Iterator[str]:
    yield from ("## Types of weights", "")
    yield _ABOUT_WEIGHTS
    for name, one in kept:
        yield ""
        yield (
            f"**{one.model.name}**, {one.model.weights:,} weights, {one.measured:%Y-%m-%d}, {one.machine.processor}, "
            f"{one.threads} threads on {one.machine.cores} cores, load {one.machine.load:.1f} before; prompts of "
            f"{one.prompt} tokens, answers of {one.answer}, {one.runs} runs; context of {one.context}; perplexity over "
            f"{one.scored_tokens:,} tokens ([file](../benchmarks/results/{name})):"
        )
        yield ""
        batches = list(one.rows[0].tokens_per_second)
        rates = [f"tokens/s, {batch} at once" for batch in batches]
        yield from _table(
            "engine", "weights", "size, MB", "memory, MB", "first, ms", "next, ms", *rates, "perplexity", "ratio to f32"
        )
        for row in one.rows:
            yield _row(
                row.engine,
                row.quantization,
                f"{row.size / 1e6:,.1f}",
                f"{row.context_memory / 1e6:,.1f}",
                f"{row.first_ms.value:,.0f}",
                f"{row.ms_per_token.value:,.1f}",
                *(f"{row.tokens_per_second[batch].value:,.1f}" for batch in batches),
                f"{row.perplexity.value:,.2f} ({row.perplexity.low:,.2f}, {row.perplexity.high:,.2f})",
                f"{row.ratio.value:.4f} ({row.ratio.low:.4f}, {row.ratio.high:.4f})",
            )


def _machines(kept: Sequence[tuple[str, TeeResult]]) -> Iterator[str]:
    yield from ("## What machines add", "")
    if not kept:
        yield "`confide bench tee` has been run on no trusted environment yet, so there is nothing to compare."
        return
    yield from _table("machine", "workload", "measured", "runs", "dropped", "when", "processor", "model")
    for _, one in kept:
        for measured in one.cells:
            sample = sample_of(measured)
            mean = sample.mean()
            latency = measured.cell.workload == "latency"
            yield _row(
                one.arm.value,
                measured.cell.name,
                f"{mean.value * 1e3:,.1f} ms a token" if latency else f"{mean.value:,.1f} tokens/s",
                str(len(measured.runs)),
                str(sample.dropped),
                f"{one.measured:%Y-%m-%d}",
                one.machine.processor,
                one.model.name,
            )


def _peers(kept: Sequence[tuple[str, Figures]]) -> Iterator[str]:
    yield from ("## Peers beside us", "")
    yield "What others publish on the same work, on their machines and by their word. None of it was run here."
    for _, one in kept:
        for figure in one.figures:
            if figure.what == OURS:
                yield ""
                where = f"{one.measured}, {one.machine.processor}"
                yield f"Ours: {figure.what} {figure.value:.2f}, {figure.detail} ({where})."
    yield ""
    yield from _table("who", "what", "their figure", "their hardware", "not comparable", "doubt", "source")
    for peer in PUBLISHED:
        source = f"[{peer.source}]({peer.address})"
        yield _row(peer.who, peer.what, peer.figure, peer.hardware, peer.apart, peer.doubt, source)


def _table(*columns: str) -> Iterator[str]:
    yield _row(*columns)
    yield "|" + " --- |" * len(columns)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|").replace("\n", " ") for cell in cells) + " |"


def main() -> int:
    """The exit status."""
    made = page()
    if "--check" in sys.argv[1:]:
        return int(not PAGE.exists() or PAGE.read_text(encoding="utf-8") != made)
    PAGE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

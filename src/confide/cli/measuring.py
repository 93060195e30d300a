"""What the measures of `confide evaluate` have in common: options, progress, interruptions and tables."""

import hashlib
import json as jsonlib
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from confide.cli import output
from confide.disk.files import replace_file
from confide.errors import EvaluationError
from confide.version import VERSION

if TYPE_CHECKING:
    from confide.evaluate.results import Settings
    from confide.evaluate.run import OnProgress
    from confide.evaluate.statistics import Estimate

FEW_WINDOWS = 20
"""With fewer, bootstrapped intervals are too narrow, and the command says so."""

Model = Annotated[str, typer.Argument(help="`demo`, a local Hugging Face folder, or a hub id.")]
TopK = Annotated[str, typer.Option(help="The sizes k to look at.")]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Folder for results and charts. What is interrupted goes on there with the same command.", file_okay=False
    ),
]


@contextmanager
def progress(names: list[str], windows: int, *, quiet: bool) -> "Iterator[OnProgress]":
    """A bar of windows for each variant."""
    columns = (TextColumn("{task.description:<10}"), BarColumn(30), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=output.messages, transient=True, disable=quiet) as bars:
        tasks = {name: bars.add_task(escape(name), total=windows, start=False) for name in names}

        def update(name: str, done: int, total: int) -> None:
            bars.start_task(tasks[name])
            bars.update(tasks[name], completed=done, total=total)

        yield update


@contextmanager
def interruptible(out: Path | None) -> Iterator[None]:
    """Says after ctrl-C whether the same command would go on, which takes a folder to keep results in."""
    try:
        yield
    except KeyboardInterrupt:
        if out is None:
            output.note("Interrupted, and nothing was kept; with --out, the same command would go on from there.")
        else:
            output.note(f"Interrupted; what was measured is kept in {out}, and the same command goes on from there.")
        sys.exit(130)  # rather than an Exit, to which a note about packs would be added


def provenance(text_file: Path | None) -> dict[str, Any]:
    """What results say of where they come from: the text's digest, the versions that computed, and when."""
    import torch
    import transformers

    return {
        "text_sha256": file_digest(text_file),
        "versions": {"confide": VERSION, "torch": torch.__version__, "transformers": transformers.__version__},
        "measured": output.utc(time.time()),
    }


def file_digest(path: Path | None) -> str:
    """SHA-256 of a file that a person named, or that there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path else "none"


def keep_results(
    out: Path, name: str, answer: Mapping[str, Any], by_variant: Mapping[str, Any], settings: "Settings", title: str
) -> list[Path]:
    """Write an answer as JSON, and its estimates by variant as CSV and LaTeX with what they depend on. The files."""
    from confide.evaluate.export import as_csv, as_latex, rows

    table = rows(by_variant)
    facts = {"text sha256": answer["text_sha256"], "confide": VERSION, "measured": answer["measured"]}
    described = {**settings, **facts}
    contents = {
        "json": jsonlib.dumps(answer, indent=2) + "\n",
        "csv": as_csv(table, described),
        "tex": as_latex(table, described, title),
    }
    files = {out / f"{name}.{kind}": content for kind, content in contents.items()}
    for path, content in files.items():
        replace_file(path, content.encode())
    return list(files)


def read_text(path: Path) -> str:
    """Raises EvaluationError for what is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise EvaluationError(f"{path} is not a text in UTF-8; convert it first.") from None


def bits_range(text: str, option: str) -> list[int]:
    """The numbers from A to B of a text A:B."""
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if found is None or int(found[1]) > int(found[2]):
        raise typer.BadParameter(f"{option} takes the first and the last number of bits, such as 2:8")
    return list(range(int(found[1]), int(found[2]) + 1))


def top_k(text: str) -> tuple[int, ...]:
    """The numbers in a text such as 1,5,10, ascending."""
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise typer.BadParameter("--top-k takes numbers from 1 up, separated by commas, such as 1,5,10")
    return tuple(sorted({int(part) for part in text.split(",")}))


def table(*columns: str) -> Table:
    """A table of numbers; columns without a name are of text."""
    made = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, caption_justify="left")
    for column in columns:
        made.add_column(column, justify="right" if column else "left", no_wrap=True)
    return made


def percent(of: "Estimate", digits: int) -> str:
    """A share and its interval."""
    return f"{of.value * 100:.{digits}f} ({of.low * 100:.{digits}f}, {of.high * 100:.{digits}f})"

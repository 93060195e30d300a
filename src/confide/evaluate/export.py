"""Results of an evaluation as tables for other programs: CSV, and LaTeX for papers.

Each row is one quantity of one variant of the model with its interval; what the results depend on goes with them, so
that a table says by itself which text, bits and versions it is of.
"""

import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from confide.evaluate.results import Settings

_COLUMNS: Final = ("variant", "quantity", "value", "low", "high")
_SPECIAL: Final = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


@dataclass(frozen=True)
class Row:
    """A quantity, such as top_1.agreement, of a variant. low, high: of its interval."""

    variant: str
    quantity: str
    value: float
    low: float
    high: float


def rows(found: Mapping[str, Any]) -> list[Row]:
    """Every estimate in what a command found: by variant, in nested objects whose leaves have value, low and high."""
    return [
        Row(variant, name, estimate["value"], estimate["low"], estimate["high"])
        for variant, of in found.items()
        for name, estimate in _estimates(of, "")
    ]


def _estimates(of: Mapping[str, Any], name: str) -> Iterator[tuple[str, Mapping[str, float]]]:
    if of.keys() == {"value", "low", "high"}:
        yield name, of
        return
    for part, inner in of.items():
        if isinstance(inner, Mapping):
            yield from _estimates(inner, f"{name}.{part}" if name else part)


def as_csv(table: list[Row], settings: Settings) -> str:
    """One line for each row, with the settings in columns of their own."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS, *(name.replace(" ", "_") for name in settings)])
    for row in table:
        writer.writerow([*(getattr(row, column) for column in _COLUMNS), *settings.values()])
    return text.getvalue()


def as_latex(table: list[Row], settings: Settings, caption: str) -> str:
    """A table that needs no package; the settings are comments above it."""
    notes = [f"% {name}: {' '.join(value.split())}" for name, value in settings.items()]
    lines = [
        f"{_escaped(row.variant)} & {_escaped(row.quantity)} & {row.value:.6g} & [{row.low:.6g}, {row.high:.6g}] \\\\"
        for row in table
    ]
    return "\n".join(
        [
            *notes,
            r"\begin{table}",
            r"\begin{tabular}{llrr}",
            r"\hline",
            r"variant & quantity & value & 95\% interval \\",
            r"\hline",
            *lines,
            r"\hline",
            r"\end{tabular}",
            rf"\caption{{{_escaped(caption)}}}",
            r"\end{table}",
            "",
        ]
    )


def _escaped(text: str) -> str:
    return re.sub(r"[\\~^&%$#_{}]", lambda found: _SPECIAL[found[0]], text)

"""Run every benchmark, or those named, and print the table."""

import sys

from rich.console import Console
from rich.table import Table

from benchmarks import one_layer, reliability, sealed, serving, whole_model
from confide.cli.output import quiet_transformers

QUESTIONS = {
    "one_layer": one_layer.main,
    "whole_model": whole_model.main,
    "serving": serving.main,
    "reliability": reliability.main,
    "sealed": sealed.main,
}


def main() -> None:
    quiet_transformers()
    table = Table("what", "measured", "reach", "moonshot", "reached", "detail")
    for name in sys.argv[1:] or QUESTIONS:
        for figure in QUESTIONS[name]():
            value = f"{figure.value:.2f} {figure.unit}"
            table.add_row(figure.what, value, str(figure.reach), str(figure.moonshot), figure.reached, figure.detail)
    Console(width=150).print(table)


main()

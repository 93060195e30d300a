"""Run every benchmark, or those named, and print the table.

`attention`, `peers`, `engines`, `soak` and `scale` run only when named: they take minutes, and the last needs
PostgreSQL's server. On its first run `peers` installs other libraries from the network, in an environment of their own.
"""

import sys

from rich.console import Console
from rich.table import Table

from benchmarks import (
    attention,
    attestation,
    large_layers,
    one_layer,
    prediction,
    reliability,
    retrieval,
    round_trip,
    scale,
    sealed,
    serving,
    soak,
    whole_model,
)
from benchmarks.confidential import run as confidential
from benchmarks.engines import run as engines
from benchmarks.peers import run as peers
from confide.cli.output import quiet_transformers

QUESTIONS = {
    "one_layer": one_layer.main,
    "whole_model": whole_model.main,
    "large_layers": large_layers.main,
    "round_trip": round_trip.main,
    "serving": serving.main,
    "reliability": reliability.main,
    "prediction": prediction.main,
    "sealed": sealed.main,
    "confidential": confidential.main,
    "attestation": attestation.main,
    "retrieval": retrieval.main,
}
ON_REQUEST = {
    "peers": peers.main,
    "attention": attention.main,
    "engines": engines.main,
    "soak": soak.main,
    "scale": scale.main,
}


def main() -> None:
    quiet_transformers()
    table = Table("what", "measured", "reach", "moonshot", "reached", "detail")
    for name in sys.argv[1:] or QUESTIONS:
        for figure in (QUESTIONS | ON_REQUEST)[name]():
            value = f"{figure.value:.2f} {figure.unit}"
            table.add_row(figure.what, value, str(figure.reach), str(figure.moonshot), figure.reached, figure.detail)
    Console(width=150).print(table)


main()

"""What does one encrypted linear layer cost with us, and with the libraries that people use for it?"""

import os
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from benchmarks.both_parties import private_weights
from benchmarks.measure import Figure, results, write
from benchmarks.peers import clear, environment, ours, report
from benchmarks.peers.layer import Layer
from benchmarks.peers.measurement import Measurement
from benchmarks.peers.published import PUBLISHED

SHAPES = ((6144, 2048), (2304, 768))
PROGRAMS = ("glwe", "ckks_vector", "ckks_diagonals")


def main() -> list[Figure]:
    figures, sides = [], {}
    load, threads = os.getloadavg()[0], torch.get_num_threads()
    for rows, columns in SHAPES:
        layer = _layer(rows, columns)
        mine, glwe, *others = _measure(layer)
        sides[layer.name] = [mine, glwe, *others]
        Console(width=170).print(report.table(layer, sides[layer.name]))
        figures += _figures(layer, mine, glwe)
    as_json = {name: [asdict(side) for side in measured] for name, measured in sides.items()}
    published = [asdict(one) for one in PUBLISHED]
    write("peers", figures, load_before=load, torch_threads=threads, sides=as_json, published=published)
    Console(width=170).print(report.published_table())
    report.plot(sides, results() / "peers.png")
    return figures


def _layer(rows: int, columns: int) -> Layer:
    """Uniform int8 weights, and activations of the most bits that such rows allow."""
    random = np.random.default_rng(columns)
    weights = random.integers(-127, 128, (rows, columns), dtype=np.int8)
    bound = private_weights(torch.from_numpy(weights)).max_activation
    return Layer(weights, random.integers(-bound, bound + 1, columns, dtype=np.int32))


def _measure(layer: Layer) -> list[Measurement]:
    """All sides, one after the other: ours, the peers, the clear."""
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder, "layer.npz")
        layer.save(saved)
        peers = [environment.measure(program, saved) for program in PROGRAMS]
    in_the_clear = [clear.measure(layer, dtype) for dtype in (torch.float32, torch.bfloat16)]
    return [ours.measure(layer), *peers, *in_the_clear]


def _figures(layer: Layer, mine: Measurement, glwe: Measurement) -> list[Figure]:
    amortised = glwe.amortised_seconds / mine.amortised_seconds
    detail = f"{mine.amortised_seconds * 1e3:.2f} ms a token against {glwe.amortised_seconds:.1f} s"
    lone = f"{mine.lone.seconds:.1f} s for a secret and a token of its own against {glwe.lone.seconds:.1f} s"
    return [
        Figure(
            f"{layer.name}, amortised: GLWE's time / ours",
            amortised,
            "ratio",
            5000,
            50000,
            detail,
            higher_is_better=True,
        ),
        Figure("the same, a lone token: ours / GLWE's", mine.lone.seconds / glwe.lone.seconds, "ratio", 1, 0.1, lone),
    ]

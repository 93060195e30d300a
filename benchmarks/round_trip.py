"""What a round trip costs beside the server's product: pads, frames, sockets, event loop, ledger, check.

The overhead of a call is its whole time at the client, from integers to integers, less the time that the server takes
in the same call for the integer matrix product W d and for adding what the token's key contributes. The layer server is
a process of its own on loopback, with `GroupMatrix.answer` under a stopwatch. GPT-2-small's shape.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import Figure, write
from benchmarks.shapes import serving_by, split_shape
from benchmarks.whole_model import decode
from confide import HybridModel
from confide.cli import output
from confide.evaluate.shapes import GPT2_SMALL
from confide.hybrid.client.product import RemoteProduct
from confide.hybrid.server import server
from confide.rlwe.online import GroupMatrix

ROUNDS = 5
TOKENS = 49
"""Of a round alone, as many as `decode` takes."""


def main() -> list[Figure]:
    with split_shape(GPT2_SMALL) as model, tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "products.npy"
        command = [sys.executable, "-m", "benchmarks.round_trip", str(model.server), str(record)]
        with serving_by(command) as url, _stopwatch(RemoteProduct, "__call__") as calls, model.open(url) as private:
            _alone(private)
            count = len(calls)
            steps = [decode(private.model) for _ in range(ROUNDS)]
        products = np.load(record)
    overhead = np.array(calls) - products
    figures = [
        _figure("round trip beside the product, alone", overhead[:count], products[:count]),
        _figure("the same, within a decode", overhead[count:], products[count:], steps),
    ]
    write("round_trip", figures)
    return figures


def _alone(private: HybridModel) -> None:
    """Call after call, layer group after layer group, and nothing in between."""
    parameters = [checked.parameters for checked in private.product.groups]
    inputs = [
        torch.randint(-group.max_activation, group.max_activation + 1, (1, group.columns), dtype=torch.int32)
        for group in parameters
    ]
    for _ in range(ROUNDS * TOKENS):
        for group, x in enumerate(inputs):
            private.product(group, x)


def _figure(what: str, overhead: np.ndarray, products: np.ndarray, steps: list[float] | None = None) -> Figure:
    low, middle, high = np.percentile(overhead, [25, 50, 75]) * 1e3
    detail = f"quartiles {low:.2f} to {high:.2f} ms; the product {np.median(products) * 1e3:.2f} ms"
    if steps:
        detail += f"; a step {statistics.median(steps) * 1e3:.1f} ms"
    return Figure(what, float(middle), "ms", 0.2, 0.1, detail)


@contextmanager
def _stopwatch(owner: object, name: str) -> Iterator[list[float]]:
    """While it lasts, the seconds of every call of a function or method."""
    times: list[float] = []
    function = getattr(owner, name)

    def timed(*arguments: object) -> object:
        started = time.perf_counter()
        result = function(*arguments)
        times.append(time.perf_counter() - started)
        return result

    setattr(owner, name, timed)
    try:
        yield times
    finally:
        setattr(owner, name, function)


def _serve(package: str, record: str) -> None:
    """Serve a package until told to stop, then write the seconds of every product."""
    services = server.load_services({"model": Path(package)}, Path(package) / "state")
    with _stopwatch(GroupMatrix, "answer") as products:
        server.serve(services, "127.0.0.1", 0, on_ready=lambda url: output.result({"url": url}))
    np.save(record, products)


if __name__ == "__main__":
    _serve(*sys.argv[1:])

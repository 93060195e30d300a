"""What an encrypted attention block takes: 768 wide, one head and twelve, up to 6, 8 and 16 tokens.

Weights are random, and strong enough that scores range as widely as a trained model's: the block needs as many levels.
Client and server share this process; the server's workers are processes of their own.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Figure, children, proportional_bytes, write
from confide.attention import cost, reference
from confide.attention.client import AttentionClient
from confide.attention.plaintexts import Plaintexts
from confide.attention.plan import compile_plan
from confide.attention.server import AttentionServer
from confide.attention.twin import twin
from confide.attention.weights import AttentionWeights

WIDTH, HEAD_WIDTH = 768, 64
HEADS = (1, 12)
TOKENS = (6, 8, 16)
CALIBRATION_TEXTS = 100
PROJECTION_STD = 1.3
"""Of queries, keys and values."""
SEED = 7


@dataclass
class Stages:
    """Seconds of every stage, from the progress that the server reports."""

    seconds: dict[str, float] = field(default_factory=dict)
    _running: str = ""
    _since: float = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running] = now - self._since
        self._running, self._since = stage, now


def main() -> list[Figure]:
    runs = [run(heads, tokens) for heads in HEADS for tokens in TOKENS]
    largest = runs[-1]
    figures = [
        Figure(
            "encrypted attention, 12 heads, 16 tokens, 768 wide",
            largest["evaluate"],
            "s",
            120,
            40,
            f"{largest['levels']} levels; twin within {largest['against_twin']:.0e}, float within "
            f"{largest['against_float']:.0e}",
        ),
        Figure("the same, peak memory", largest["peak_gib"], "GiB", 12, 4, "client, server and its workers"),
    ]
    write("attention", figures, runs=runs)
    return figures


def run(heads: int, tokens: int) -> dict[str, Any]:
    """One block, from calibration to the decrypted result."""
    generator = np.random.default_rng(SEED)
    rows = 3 * heads * HEAD_WIDTH
    matrix = generator.standard_normal((rows, WIDTH)) * PROJECTION_STD / np.sqrt(WIDTH)
    weights = AttentionWeights(heads, matrix, np.zeros(rows))
    inputs = [generator.standard_normal((tokens, WIDTH)) for _ in range(CALIBRATION_TEXTS)]
    x = generator.standard_normal((tokens, WIDTH))
    plan = compile_plan(weights, weights.shape(tokens), inputs)
    counted = cost.count(plan)
    started = time.perf_counter()
    client = AttentionClient(plan)
    with tempfile.TemporaryDirectory() as folder:
        key_bytes = client.save_evaluation_keys(Path(folder))
        keys_made = time.perf_counter()
        server = AttentionServer(plan, weights, Path(folder))
    loaded = time.perf_counter()
    message = client.encrypt(x)
    encrypted = time.perf_counter()
    stages = Stages()
    with PeakMemory() as memory:
        answer = server.evaluate(message, stages)
    evaluated = time.perf_counter()
    result = client.decrypt(answer, tokens)
    result.require_in_range()
    expected = twin(x, Plaintexts(weights, plan)).context
    return {
        "heads": heads,
        "tokens": tokens,
        "levels": plan.parameters.levels,
        "modulus_bits": plan.parameters.modulus_bits,
        "rotations": counted.rotations,
        "multiplications": counted.multiplications,
        "plain_products": counted.plain_products,
        "estimated_core_seconds": round(counted.core_seconds, 1),
        "make_keys": keys_made - started,
        "load_keys": loaded - keys_made,
        "encrypt": encrypted - loaded,
        "evaluate": evaluated - encrypted,
        "stages": stages.seconds,
        "decrypt": time.perf_counter() - evaluated,
        "peak_gib": memory.gib,
        "key_bytes": key_bytes,
        "input_bytes": len(message),
        "output_bytes": len(answer),
        "against_twin": float(np.abs(result.context - expected).max()),
        "against_float": float(np.abs(expected - reference.attention(x, weights)).max()),
    }


class PeakMemory:
    """The largest memory of this process and its children, sampled while open; shared pages count once (PSS)."""

    def __init__(self) -> None:
        self.gib = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(0.25):
            taken = proportional_bytes(str(os.getpid())) + sum(map(proportional_bytes, children()))
            self.gib = max(self.gib, taken / 2**30)


def _command() -> None:
    """`python -m benchmarks.attention [--peer | --run-peer]`: the block, and next to it one head in Concrete Python."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", action="store_true", help="compile the peer's head too, in an environment of its own")
    parser.add_argument("--run-peer", action="store_true", help="and execute it, which may take hours")
    options = parser.parse_args()
    for figure in main():
        print(f"{figure.what}: {figure.value:.1f} {figure.unit}, reached: {figure.reached} ({figure.detail})")
    if options.peer or options.run_peer:
        from benchmarks.attention_peer.run import measure

        print(json.dumps(measure(TOKENS[0], execute=options.run_peer), indent=1))


if __name__ == "__main__":
    _command()

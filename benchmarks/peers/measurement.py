"""What is measured of each side, and how a side that runs as a program of its own hands it over."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from benchmarks.peers.layer import Layer


@dataclass(frozen=True)
class Timing:
    """Wall-clock seconds of a call, and how many cores it kept busy: processor seconds by wall-clock seconds."""

    seconds: float
    cores: float


@dataclass(frozen=True)
class Traffic:
    """Bytes that would cross a network."""

    up: float
    down: float


@dataclass(frozen=True)
class Measurement:
    """One side at one layer. Seconds and bytes are per token; no network and no disk is in the times.

    lone: everything for a single token. amortised: everything, by the tokens it serves. online: what is left to do
    when the token is known. error: the largest, as a fraction of the largest exact output. keys_seconds and
    keys_bytes: once per client, in none of the other figures.
    """

    side: str
    detail: str
    lone: Timing
    amortised_seconds: float
    online_seconds: float
    lone_bytes: Traffic
    amortised_bytes: Traffic
    error: float
    keys_seconds: float
    keys_bytes: int

    @classmethod
    def from_json(cls, text: str) -> "Measurement":
        fields = json.loads(text)
        for name, kind in (("lone", Timing), ("lone_bytes", Traffic), ("amortised_bytes", Traffic)):
            fields[name] = kind(**fields[name])
        return cls(**fields)


def token_by_token(
    side: str, detail: str, timing: Timing, traffic: Traffic, error: float, keys_seconds: float, keys_bytes: int
) -> Measurement:
    """The measurement of a side that does all of its work for each token, when the token is known."""
    seconds = timing.seconds
    return Measurement(side, detail, timing, seconds, seconds, traffic, traffic, error, keys_seconds, keys_bytes)


def fastest(call: Callable[[], object], rounds: int) -> Timing:
    """The fastest of some rounds, for calls so long that there can be few."""
    return min((timed(call) for _ in range(rounds)), key=lambda timing: timing.seconds)


def median(call: Callable[[], object], rounds: int) -> Timing:
    """The middle one of some rounds, after one that does not count."""
    call()
    return sorted((timed(call) for _ in range(rounds)), key=lambda timing: timing.seconds)[rounds // 2]


def timed(call: Callable[[], object]) -> Timing:
    wall, processor = time.perf_counter(), time.process_time()
    call()
    elapsed = time.perf_counter() - wall
    return Timing(elapsed, (time.process_time() - processor) / elapsed)


def run_as_program(measure: Callable[[Layer], Measurement]) -> None:
    """Measure the layer in the file that the command line names, and print the measurement as JSON."""
    print(json.dumps(asdict(measure(Layer.load(sys.argv[1])))))

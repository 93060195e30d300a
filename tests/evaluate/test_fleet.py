"""The simulation of a fleet, against what is known exactly: queues with formulas, and traces one can reckon by hand."""

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import pytest

from confide.evaluate.fleet import NICE_SHARE, Balancing, Batching, Machine, Simulated, simulate
from confide.evaluate.trace import Arrival
from confide.hybrid.server import ahead, batch
from confide.hybrid.server.limits import Limits


@dataclass
class Fixed:
    """Times that are the same for each stage.

    product: seconds of any product. more: and of each token in it. unmade: and of each whose work ahead is part of it.
    """

    stages: int = 1
    product_seconds: float = 1.0
    more: float = 0.0
    unmade: float = 0.0
    worker: float = 0.0
    ahead_seconds: float = 0.0
    own_seconds: float = 0.0
    trip_seconds: float = 0.0
    pads_seconds: float = 0.0
    ahead_bytes: Sequence[int] = field(default_factory=list)
    batches: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ahead_bytes = self.ahead_bytes or [0] * self.stages

    def product(self, stage: int, requests: int, tokens: int, unmade: int) -> tuple[float, float]:
        self.batches.append((stage, requests))
        return self.product_seconds + self.more * tokens + self.unmade * unmade, self.worker

    def ahead(self, stage: int, tokens: int) -> float:
        return self.ahead_seconds * tokens

    def own(self, stage: int, tokens: int) -> float:
        return self.own_seconds * tokens

    def trip(self, stage: int, tokens: int) -> float:
        return self.trip_seconds

    def pads(self) -> float:
        return self.pads_seconds


ONE_BY_ONE = Machine(batching=Batching(window=0.0, least_window=0.0, most=1))


def poisson(rate: float, count: int, seed: int) -> list[Arrival]:
    chance = random.Random(seed)
    return [Arrival(at, 1, 1) for at in accumulate(chance.expovariate(rate) for _ in range(count))]


def firsts(found: Simulated) -> list[float]:
    return [one.first for one in found.requests]


@pytest.mark.parametrize("load", [0.5, 0.8], ids=["half", "most"])
def test_one_machine_that_answers_one_at_a_time_is_the_queue_m_d_1(load: float) -> None:
    """Its mean wait is load / (2 (1 - load)) of a service's time (Pollaczek and Khinchine)."""
    found = simulate(Fixed(), poisson(load, 20_000, seed=3), machine=ONE_BY_ONE)
    wait = statistics.fmean(firsts(found)) - 1
    assert wait == pytest.approx(load / (2 * (1 - load)), rel=0.08)
    assert found.busy == pytest.approx(load, rel=0.02)

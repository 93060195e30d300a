"""The simulation of a fleet, against what is known exactly: queues with formulas, and traces one can reckon by hand."""

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import pytest

from confide.evaluate.fleet import NICE, Balancing, Batching, Machine, Simulated, simulate
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
    request_seconds: float = 0.0
    batches: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ahead_bytes = self.ahead_bytes or [0] * self.stages

    def request(self, stage: int) -> float:
        return self.request_seconds

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


NICE_SHARE = NICE / (1 + NICE)
ONE_BY_ONE = Machine(batching=Batching(window=0.0, least_window=0.0, most=1))


def poisson(rate: float, count: int, seed: int) -> list[Arrival]:
    chance = random.Random(seed)
    return [Arrival(at, 1, 1) for at in accumulate(chance.expovariate(rate) for _ in range(count))]


def firsts(found: Simulated) -> list[float]:
    return [one.first for one in found.requests]


@pytest.mark.parametrize("load", [0.5, 0.8], ids=["half", "most"])
def test_one_machine_that_answers_one_at_a_time_is_the_queue_m_d_1(load: float) -> None:
    """Its mean wait is load / (2 (1 - load)) of a service's time (Pollaczek and Khinchine)."""
    found = simulate(Fixed(), poisson(load, 4_000, seed=3), machine=ONE_BY_ONE)
    wait = statistics.fmean(firsts(found)) - 1
    assert wait == pytest.approx(load / (2 * (1 - load)), rel=0.08)
    assert found.busy == pytest.approx(load, rel=0.02)


def test_a_lone_client_waits_for_what_it_needs_and_nothing_else() -> None:
    """A prompt of 40 tokens in parts of 32 and 8, and two tokens more, through three stages."""
    times = Fixed(stages=3, product_seconds=0.5, own_seconds=0.01, trip_seconds=0.1)
    found = simulate(times, [Arrival(7.0, 40, 3)])
    (one,) = found.requests
    # The second part leaves 0.2 s after the first one, and is answered right after it.
    assert one.first == pytest.approx(3 * (0.2 + 0.1 + 0.5 + 0.5))
    assert one.gaps == pytest.approx([3 * (0.01 + 0.1 + 0.5)] * 2)
    assert found.seconds == pytest.approx(7 + one.first + sum(one.gaps))
    assert found.busy == pytest.approx(3 * (2 + 2) * 0.5 / found.seconds)
    assert sorted(found.trips)[:6] == pytest.approx([0.6] * 6)
    assert times.batches == [(stage, 1) for stage in (0, 0, 1, 1, 2, 2, 0, 1, 2, 0, 1, 2)]


def test_requests_meet_in_one_product_once_everybody_who_is_active_waits() -> None:
    times = Fixed(product_seconds=0.01, more=0.001)
    found = simulate(times, [Arrival(0.0, 1, 1)] * 3)
    # The first is alone; the others come while it is answered, and wait for it to ask again, for a window at most.
    assert times.batches == [(0, 1), (0, 2)]
    assert firsts(found) == pytest.approx([0.011, *[0.011 + batch.MAX_WINDOW + 0.012] * 2])


def test_a_client_that_was_silent_is_not_waited_for() -> None:
    times = Fixed(product_seconds=0.01)
    late = batch.ACTIVE_SECONDS + 0.01
    found = simulate(times, [Arrival(0.0, 1, 1), Arrival(late, 1, 1)])
    assert firsts(found) == pytest.approx([0.01, 0.01])


def test_a_product_takes_no_more_requests_than_a_server_would() -> None:
    times = Fixed(product_seconds=0.01)
    simulate(times, [Arrival(0.0, 1, 1)] * (2 * batch.MAX_BATCH + 1))
    assert [requests for _, requests in times.batches] == [1, batch.MAX_BATCH, batch.MAX_BATCH]


def test_the_least_loaded_machine_gets_the_request() -> None:
    arrivals = [Arrival(0.0, 1, 1)] * 8
    apart = simulate(Fixed(), arrivals, machines=8, machine=ONE_BY_ONE)
    assert firsts(apart) == pytest.approx([1.0] * 8)
    random = [
        simulate(Fixed(), arrivals, machines=8, machine=ONE_BY_ONE, balancing=Balancing.RANDOM, seed=seed)
        for seed in (1, 1, 2)
    ]
    assert firsts(random[0]) == firsts(random[1]) != firsts(random[2])
    assert max(firsts(random[0])) > 1


def test_long_products_leave_the_event_loop_to_others_where_there_is_another_core() -> None:
    arrivals = [Arrival(0.0, 1, 1), Arrival(0.1, 1, 1)]
    times = Fixed(product_seconds=0.2, worker=1.0)
    several = simulate(times, arrivals, machine=Machine(2, ONE_BY_ONE.batching))
    assert firsts(several) == pytest.approx([1.2, 2.1])  # the worker has one thread
    assert several.busy == pytest.approx(1.0)
    alone = simulate(times, arrivals, machine=ONE_BY_ONE)
    assert firsts(alone) == pytest.approx([1.4, 2.3])  # which both have half of for a while


def test_work_ahead_that_has_no_room_is_part_of_the_product() -> None:
    times = Fixed(stages=2, unmade=0.25, ahead_bytes=[1, 1])
    part = ahead.PART_TOKENS

    def first(room: int, context: int = 2 * part) -> float:
        machine = Machine(2, limits=Limits(ahead_bytes=room))
        return simulate(times, [Arrival(0.0, context, 1)], machine=machine).requests[0].first

    assert first(1 << 20) == pytest.approx(4 * 1.0)
    assert first(0) == pytest.approx(4 * 1.0 + 2 * 2 * part * 0.25)
    # One stage of one part fits; once it was used, there is room for the next that was not asked for meanwhile.
    assert first(part) == pytest.approx(4 * 1.0 + part * 0.25)


def test_a_connection_that_begins_cold_has_nothing_made_ahead() -> None:
    times = Fixed(unmade=0.25, ahead_seconds=1000.0)
    assert simulate(times, [Arrival(0.0, 3, 1)], warm=False).requests[0].first > 1.75
    assert simulate(times, [Arrival(0.0, 3, 1)]).requests[0].first == pytest.approx(1.0)


def test_one_core_shares_itself_out_between_answers_and_work_ahead() -> None:
    """A step takes 32 s of it: beside that a product has what niceness leaves, and takes longer for it."""
    arrivals = [Arrival(0.0, 1, 1 + 32)]

    def first(cores: int, trip: float) -> float:
        times = Fixed(ahead_seconds=1.0, unmade=0.25, trip_seconds=trip)
        return simulate(times, arrivals, machine=Machine(cores), warm=False).requests[0].first - trip

    # All the while that the request travels, the step has the core for itself.
    assert first(1, trip=31.0) == pytest.approx(1.25 / (1 - NICE_SHARE))
    assert first(1, trip=32.5) == pytest.approx(1.0 / (1 - NICE_SHARE))  # beside the next step
    assert first(2, trip=31.0) == pytest.approx(1.25)


def test_work_ahead_gets_on_beside_answers_that_never_end() -> None:
    """With a share of the core: 32 tokens' step of 3.2 s takes 33 s."""
    times = Fixed(ahead_seconds=0.1, unmade=1.0)
    (one,) = simulate(times, [Arrival(0.0, 1, 60)], machine=Machine(1), warm=False).requests
    slow = 2 / (1 - NICE_SHARE)
    made = next(number for number, gap in enumerate(one.gaps, start=2) if gap < slow - 0.1)
    assert (made - 1) * slow == pytest.approx(3.2 / NICE_SHARE, abs=slow)


def test_pads_are_waited_for_beyond_the_first_block() -> None:
    found = simulate(Fixed(pads_seconds=0.5), [Arrival(0.0, 160, 2)], machine=Machine(2))
    (one,) = found.requests
    assert one.first == pytest.approx((160 - 128) * 0.5 + 5)
    assert one.gaps == pytest.approx([1.0])  # more than one was made during the prompt's five products
    (short,) = simulate(Fixed(pads_seconds=2.5), [Arrival(0.0, 128, 2)], machine=Machine(2)).requests
    assert short.first == pytest.approx(4.0)
    assert short.gaps == pytest.approx([1.0])


def test_gaps_are_bound_by_pads_where_these_take_longest() -> None:
    found = simulate(Fixed(pads_seconds=10.0), [Arrival(0.0, 128, 4)], machine=Machine(2))
    # Four seconds of the prompt went into the first.
    assert found.requests[0].gaps == pytest.approx([6.0 + 1, 10.0, 10.0])


def test_who_came_first_and_last_is_not_counted() -> None:
    found = simulate(Fixed(), [Arrival(float(at), 1, 1) for at in range(20)])
    assert [one.at for one in found.settled()] == [float(at) for at in range(2, 18)]

"""What a fleet is told of a model, and how many machines it is said to need."""

import math
import random
import statistics
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.evaluate.cost_model import P0_BYTES, Cut, GroupRate, GroupShape, Network, Rates, SkeletonTimes
from confide.evaluate.fleet import Balancing
from confide.evaluate.fleet_plan import (
    CELL,
    Demand,
    FleetPlan,
    FleetTimes,
    LayerMachines,
    Percentiles,
    fewest,
    share_of,
)
from confide.evaluate.trace import Arrival, synthetic_trace
from confide.hybrid.server import batch
from confide.hybrid.server.limits import Limits

from .rates import CLIENT, SERVER

RATES = Rates(
    ahead=GroupRate(0, 1e-7, 0, 0),
    token=GroupRate(3e-4, 0, 0, 1e-10),
    prompt_token=GroupRate(0, 1e-8, 1e-8, 2e-11),
    uncached=5e-11,
    kept_token=2e-10,
    kept_prompt_token=3e-11,
    server=SERVER,
    client=CLIENT,
)
SKELETON = SkeletonTimes(token=0.004, prompt=0.02, tokens=20)
GROUPS = (GroupShape(300, 100), GroupShape(100, 100), GroupShape(400, 100), GroupShape(100, 400), GroupShape(300, 100))
SMALL = Cut(GROUPS, (GroupShape(1000, 100, head=True),))


def times(cut: Cut = SMALL, network: Network | None = None, stages: int = 2, cores: int = 2) -> FleetTimes:
    return FleetTimes(cut, RATES, SKELETON, network or Network(), cores=cores, stages=stages)


def test_a_product_between_two_that_were_measured_lies_between_them() -> None:
    group = GroupShape(1000, 1000)
    measured = {tokens: rate.seconds(group) for tokens, rate in SERVER.products}
    assert {tokens: SERVER.product(group, tokens) for tokens in measured} == pytest.approx(measured)
    assert SERVER.product(group, 10) == pytest.approx((measured[4] + measured[16]) / 2)
    assert SERVER.product(group, 112) == pytest.approx(measured[64] + (measured[64] - measured[16]))


def test_stages_together_are_the_model() -> None:
    network = Network(0.01, 1e6)
    whole, parts = times(network=network, stages=1), times(network=network, stages=3)
    assert (whole.stages, parts.stages, times(stages=99).stages) == (1, 3, len(GROUPS))
    for asked in ((1, 1, 0), (3, 40, 32)):
        assert sum(parts.product(stage, *asked)[0] for stage in range(3)) == pytest.approx(whole.product(0, *asked)[0])
    for tokens in (1, 32):
        assert sum(parts.own(stage, tokens) for stage in range(3)) == pytest.approx(whole.own(0, tokens))
        assert sum(parts.trip(stage, tokens) for stage in range(3)) == pytest.approx(whole.trip(0, tokens))
        assert sum(parts.ahead(stage, tokens) for stage in range(3)) == pytest.approx(whole.ahead(0, tokens))
    assert sum(parts.ahead_bytes) == 6 * sum(group.rows for group in GROUPS)
    assert whole.batching.window == pytest.approx(len(GROUPS) * batch.MAX_WINDOW)


def test_each_time_is_what_the_rates_say() -> None:
    one = FleetTimes(Cut(GROUPS[:1], SMALL.kept), RATES, SKELETON, Network(0.01, 1e6), cores=2)
    group = GROUPS[0]
    request = SERVER.request.seconds(group)
    masks = GroupShape(group.rows, 2048)
    assert one.request(0) == pytest.approx(request)
    assert one.product(0, 3, 5, 0) == pytest.approx((SERVER.product(group, 5), 0))
    unmade = SERVER.product(masks, 4)
    assert one.product(0, 3, 5, 4) == pytest.approx((SERVER.product(group, 5) + unmade, 0))
    assert one.ahead(0, 32) == pytest.approx(SERVER.product(masks, 32) / SERVER.threads)
    assert one.trip(0, 32) == pytest.approx(5e-5 + 0.01 + 32 * group.online_bytes / 1e6)
    head = 100_000 * RATES.kept_token
    assert one.own(0, 1) == pytest.approx(CLIENT.token.seconds(group) + SKELETON.token + head)
    assert one.own(0, 40) == pytest.approx(40 * CLIENT.prompt_token.seconds(group) + 2 * SKELETON.prompt + head)
    assert one.pads() == pytest.approx(CLIENT.pads.seconds(group))


def test_a_product_as_large_as_the_server_gives_away_is_its_workers() -> None:
    wide = GroupShape(8192, 4096)
    cut = Cut((wide,), ())
    inline = batch.INLINE_WORK // wide.weights
    looping, working = times(cut).product(0, 1, inline, 0)
    assert working == 0
    assert looping > RATES.uncached * wide.weights
    looping, working = times(cut).product(0, 1, inline + 1, 0)
    assert looping == 0
    together = SERVER.product(wide, inline + 1) + RATES.uncached * wide.weights
    assert working == pytest.approx(together / SERVER.threads)
    assert times(cut, cores=1).product(0, 1, inline + 1, 0) == pytest.approx((together, 0))
    more = batch.INLINE_WORK_ALONE // wide.weights + 1
    longest = SERVER.product(wide, more) + RATES.uncached * wide.weights
    assert times(cut, cores=1).product(0, 1, more, 0) == pytest.approx((0, longest))  # torch has one thread


def test_a_head_has_one_token_of_each_request() -> None:
    head = Cut((GroupShape(1000, 100, head=True),), ())
    assert times(head).product(0, 3, 60, 0) == times(head).product(0, 3, 3, 0)


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_the_fewest_are_found_to_one_part_in_a_hundred(needed: int, start: int) -> None:
    tried: list[int] = []

    def meets(number: int) -> bool:
        tried.append(number)
        return number >= needed

    found = fewest(meets, start)
    assert found == start if start >= needed else needed <= found <= needed + needed // 99
    assert found in tried
    assert len(tried) == len(set(tried)) < 60


def test_what_no_number_meets_ends() -> None:
    with pytest.raises(OverflowError):
        fewest(lambda _: False, 3)


def test_a_share_of_the_requests_comes_as_often_as_it_should() -> None:
    trace = synthetic_trace(7, 500)
    for share in (1.0, 0.01):
        found = share_of(trace, 80.0, share, 3000, seed=5)
        assert len(found) == 3000
        assert found[0].at == 0
        assert all(one.at <= later.at for one, later in pairwise(found))
        gap = found[-1].at / 2999
        assert gap == pytest.approx(1 / (80 * share), rel=0.06)
    assert share_of(trace, 80.0, 0.01, 50, seed=5) == share_of(trace, 80.0, 0.01, 50, seed=5)
    assert share_of(trace, 80.0, 0.01, 50, seed=5) != share_of(trace, 80.0, 0.01, 50, seed=6)


def test_a_share_by_chance_comes_without_the_bursts_of_the_whole() -> None:
    """Gaps of few out of many requests have an exponential distribution, whose deviation is its mean."""
    trace = [Arrival(float(at // 100), 1, 1) for at in range(1000)]
    gaps = [later.at - one.at for one, later in pairwise(share_of(trace, 1.0, 0.001, 2000, seed=1))]
    assert statistics.stdev(gaps) == pytest.approx(statistics.fmean(gaps), rel=0.1)


def plan(users: int, **options: object) -> FleetPlan:
    trace = [Arrival(float(at), 16, 4) for at in range(50)]
    return FleetPlan(
        LayerMachines(SMALL, times(stages=1, cores=1)), Demand(users, users / 360, trace), seed=1,
        **{"balancing": Balancing.RANDOM, "requests": 60} | options,
    )  # fmt: skip


def test_more_machines_wait_less_and_the_fewest_that_do_are_found() -> None:
    one = plan(400_000)
    first, token = one.alone()
    tried: list[int] = []
    found = one.least(3 * first.p99, 3 * token.p99, tried.append)
    assert found.machines in tried
    assert found.first.p99 <= 3 * first.p99
    assert found.token.p99 <= 3 * token.p99
    fewer = one.outlook(max(1, found.machines * 9 // 10))
    assert fewer.machines < found.machines
    assert fewer.first.p99 > 3 * first.p99 or fewer.token.p99 > 3 * token.p99
    assert one.outlook(100 * found.machines).first.p99 < 1.5 * first.p99
    assert plan(400_000).least(3 * first.p99, 3 * token.p99) == found


def test_either_wait_can_ask_for_more_machines() -> None:
    one = plan(400_000)
    first, token = one.alone()
    easy = one.least(100.0, 100.0)
    assert one.least(1.5 * first.p99, 100.0).machines > easy.machines
    assert one.least(100.0, 1.5 * token.p99).machines > easy.machines


def test_what_a_machine_needs_is_counted() -> None:
    found = plan(6000).outlook(2)
    limits = Limits()
    assert found.memory == SMALL.server_bytes + limits.all_ahead_bytes
    assert plan(6).outlook(2).memory == SMALL.server_bytes + 3 * (limits.p0_bytes + limits.ahead_bytes)
    # 6000 users, one request in six minutes each; of 16 tokens and then 3 more that the server sees.
    token = SMALL.online_bytes(1) + P0_BYTES
    assert found.traffic == pytest.approx(6000 / 360 / 2 * 19 * token)
    assert found.tokens == pytest.approx(6000 / 360 * 4)


def test_a_fleet_larger_than_what_is_simulated_is_like_its_part() -> None:
    part, whole = plan(4000).outlook(CELL), plan(400_000).outlook(100 * CELL)
    assert whole.busy == pytest.approx(part.busy, rel=0.2)


def test_percentiles_of_nothing_are_no_time() -> None:
    assert Percentiles.of([]) == Percentiles(0.0, 0.0)
    assert Percentiles.of([float(number) for number in range(101)]) == Percentiles(50.0, 99.0)


def test_gathering_groups_into_stages_changes_little() -> None:
    """Of what it says of a machine that is half busy."""
    cut = Cut(GROUPS[:4] * 6, ())
    chance = random.Random(3)
    trace = [Arrival(at * 1.0, chance.choice((16, 32)), chance.choice((4, 12))) for at in range(60)]
    found = []
    for stages in (24, 8):
        fleet = FleetPlan(
            LayerMachines(cut, times(cut, Network(0.002), stages, cores=1)), Demand(1, 4.0, trace),
            balancing=Balancing.RANDOM, seed=1, requests=40,
        )  # fmt: skip
        found.append(fleet.outlook(1))
    fine, coarse = found
    assert 0.1 < fine.busy < 0.9
    assert coarse.busy == pytest.approx(fine.busy, rel=0.15)
    assert coarse.token.p50 == pytest.approx(fine.token.p50, rel=0.15)
    assert coarse.first.p50 == pytest.approx(fine.first.p50, rel=0.15)
    assert not math.isnan(coarse.token.p99)

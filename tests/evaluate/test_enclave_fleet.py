"""Enclave servers, simulated: passes that can be reckoned by hand, and times that are those of an engine."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from confide.enclave.engines.dtypes import TORCH_DTYPES
from confide.enclave.engines.engine import Dtype
from confide.enclave.engines.rows import Rows
from confide.enclave.engines.transformers_engine import PREFILL
from confide.enclave.engines.turns import FIRST_STEPS
from confide.evaluate.cost_model import Network
from confide.evaluate.enclave_fleet import (
    PROMPT_BYTES,
    REQUEST_BYTES,
    TOKEN_BYTES,
    EnclaveMachines,
    PassTimes,
    cache_bytes,
    time_passes,
)
from confide.evaluate.fleet import Balancing, Simulated
from confide.evaluate.fleet_plan import Demand, FleetPlan
from confide.evaluate.shapes import GPT2_SMALL, LLAMA_1B
from confide.evaluate.skeleton import timed
from confide.evaluate.trace import Arrival
from confide.models.source import open_model

ONE_SECOND = PassTimes(1, 0, [(1, 1.0)], [(1, 0.0)], 0.0, Dtype.F32)
"""Whatever is in it, a pass takes a second."""
WAY = Network(0.5, 1e6)


def machines(times: PassTimes = ONE_SECOND, parallel: int = 16) -> EnclaveMachines:
    return EnclaveMachines(times, Network(), 10, parallel)


def simulate(arrivals: list[Arrival], kind: EnclaveMachines | None = None, count: int = 1) -> Simulated:
    return (kind or machines()).simulate(arrivals, machines=count, balancing=Balancing.LEAST_LOADED, seed=1)


def firsts(found: Simulated) -> list[float]:
    return [one.first for one in found.requests]


def test_a_pass_takes_what_its_products_and_everything_else_take() -> None:
    times = PassTimes(100, 10, [(1, 0.01), (8, 0.02), (256, 0.2)], [(1, 0.5), (8, 4.0)], 3.0, Dtype.BF16)
    assert times.seconds(0, 0, 0) == 0
    assert times.seconds(0, 1, 0) == pytest.approx(100 * 0.01 + 10 * 0.01 + 0.5)
    assert times.seconds(0, 8, 0) == pytest.approx(110 * 0.02 + 4)
    assert times.seconds(256, 0, 0) == pytest.approx(100 * 0.2 + 3)
    assert times.seconds(128, 0, 1) == pytest.approx(100 * (0.02 + 0.18 * 120 / 248) + 10 * 0.01 + 1.5)
    assert times.seconds(248, 8, 0) == pytest.approx(100 * 0.2 + 10 * 0.02 + 3 * 248 / 256 + 4)
    apart = replace(times, together=False)
    beside = 3 + 0.5 + 3.5 * 2 / 7
    assert apart.seconds(256, 3, 1) == pytest.approx(20 + 0.1 + 3 * 1.1 + beside)


def test_a_lone_prompt_is_read_in_parts_and_its_answer_token_by_token() -> None:
    found = simulate([Arrival(7.0, 2 * PREFILL + 1, 4)])
    assert firsts(found) == [3.0]
    assert found.requests[0].gaps == [1.0] * 3
    assert (found.seconds, found.busy) == (13.0, pytest.approx(6 / 13))


def test_answers_share_passes_and_short_prompts_one_part() -> None:
    half = PREFILL // 2
    found = simulate([Arrival(0.0, half, 3)] * 3)
    # The first comes alone. The others wait for that pass, and share the next with its second token.
    assert firsts(found) == [1.0, 2.0, 2.0]
    assert [one.gaps for one in found.requests] == [[1.0, 1.0]] * 3
    assert found.seconds == 4.0
    third = simulate([Arrival(0.0, 1, 1), *[Arrival(0.5, half, 1)] * 3])
    assert firsts(third)[1:] == [1.5, 1.5, 2.5]


def test_a_long_prompt_lets_others_pass_after_some_parts() -> None:
    """And shares every second pass with them from then on, a part of each."""
    long, short = Arrival(0.0, (FIRST_STEPS + 3) * PREFILL, 1), Arrival(0.1, PREFILL, 1)
    assert firsts(simulate([long, short])) == [FIRST_STEPS + 3, pytest.approx(FIRST_STEPS + 1 - 0.1)]
    earlier = simulate([Arrival(0.0, (FIRST_STEPS - 1) * PREFILL, 1), short])
    assert firsts(earlier) == [FIRST_STEPS - 1, pytest.approx(FIRST_STEPS - 0.1)]


def test_who_has_no_turn_waits_in_line() -> None:
    found = simulate([Arrival(0.0, 1, 5), Arrival(0.0, 1, 5), Arrival(0.0, 1, 1)], machines(parallel=2))
    assert firsts(found) == [1.0, 2.0, 6.0]  # the first one's turn ends at 5


def test_more_machines_share_what_comes() -> None:
    arrivals = [Arrival(0.0, PREFILL, 1)] * 4
    assert firsts(simulate(arrivals)) == [1.0, 2.0, 3.0, 4.0]
    assert firsts(simulate(arrivals, count=4)) == [1.0] * 4
    random = machines().simulate(arrivals, machines=4, balancing=Balancing.RANDOM, seed=2)
    assert max(firsts(random)) > 1


def test_the_way_there_is_waited_for_once() -> None:
    (one,) = simulate([Arrival(0.0, 100, 2)], EnclaveMachines(ONE_SECOND, WAY, 10)).requests
    assert one.first == pytest.approx(1.5 + (REQUEST_BYTES + 100 * PROMPT_BYTES) / 1e6)
    assert one.gaps == [1.0]


def test_what_a_machine_needs() -> None:
    kind = machines(PassTimes(1000, 24, [(1, 1.0)], [(1, 0.0)], 0.0, Dtype.BF16))
    assert kind.memory(3, 50) == 2 * 1024 + 3 * 50 * 10
    assert kind.memory(300, 50) == 2 * 1024 + 16 * 50 * 10
    assert kind.request_bytes(10, 5) == REQUEST_BYTES + 10 * PROMPT_BYTES + 5 * TOKEN_BYTES
    assert kind.prompt(7) == 7
    assert machines().least_seconds(PREFILL, 16) == pytest.approx(2.0)


def test_a_plan_finds_the_fewest_that_keep_up() -> None:
    trace = [Arrival(float(at), 64, 20) for at in range(50)]
    plan = FleetPlan(machines(), Demand(1000, 3.0, trace), balancing=Balancing.LEAST_LOADED, seed=1, requests=80)
    first, token = plan.alone()
    assert (first.p99, token.p99) == (1.0, 1.0)
    found = plan.least(2.5, 1.5)
    assert found.machines >= 3 * 20 / 16
    assert found.first.p99 <= 2.5
    assert found.tokens == 60


def test_keys_and_values_are_counted_by_shape() -> None:
    assert cache_bytes(GPT2_SMALL, Dtype.F32) == 2 * 12 * 768 * 4
    assert cache_bytes(GPT2_SMALL, Dtype.BF16) == 2 * 12 * 768 * 2


def test_a_machine_is_measured_without_weights() -> None:
    times = time_passes(open_model("demo").config, 16)
    assert times.together
    assert 0 < times.weights + times.head_weights < open_model("demo").load_model().num_parameters()
    assert 0 < times.seconds(0, 1, 0) < times.seconds(0, 16, 0) < 16 * times.seconds(0, 1, 0)


@pytest.mark.slow
@pytest.mark.parametrize("config", [GPT2_SMALL, LLAMA_1B], ids=["gpt2-small", "1b"])
def test_passes_take_about_as_long_as_an_engines(config: PreTrainedConfig) -> None:
    """Of random weights, within a factor of two: this machine is nobody's alone, and was not at the same moment."""
    times = time_passes(config, 128)
    rows = Rows(AutoModelForCausalLM.from_config(config, dtype=TORCH_DTYPES[times.dtype]).eval())

    def step(count: int) -> None:
        for row in read[:count]:
            row.follow([0])
        for row in read[:count]:
            _ = row.logits

    with torch.inference_mode():
        part = min(timed(lambda: rows.row().read([0] * PREFILL))[0] for _ in range(3))
        read = [rows.row(160) for _ in range(8)]
        for row in read:
            row.read([0] * 128)
        lone, together = (sorted(timed(lambda: step(count))[0] for _ in range(7))[3] for count in (1, 8))  # noqa: B023
    for simulated, taken in (
        (times.seconds(PREFILL, 0, 1), part),
        (times.seconds(0, 1, 0), lone),
        (times.seconds(0, 8, 0), together),
    ):
        assert 0.5 < simulated / taken < 2

"""Machines are compared on the same work alone, and what differs besides is said."""

import msgspec
import pytest
from tests.bench.made import LATENCY, THROUGHPUT, tee_result

from confide.bench.compare import compare
from confide.bench.machine import Arm
from confide.errors import BenchmarkError


def test_throughput_lost_and_latency_added_are_what_they_were_made_to_be() -> None:
    found = compare([tee_result(Arm.BARE), tee_result(Arm.TDX, slower=1.25, seed=7)])
    assert (found.baseline, found.differences) == ("bare", ())
    by_cell = {(row.cell, row.arm): row for row in found.rows}
    assert len(found.rows) == 4
    lost = by_cell[THROUGHPUT, "tdx"].overhead
    added = by_cell[LATENCY, "tdx"].overhead
    assert lost is not None
    assert added is not None
    assert lost.low < lost.value < lost.high
    assert added.low < added.value < added.high
    assert lost.value == pytest.approx(1 - 1 / 1.25, abs=0.01)  # 80% of the tokens a second are left
    assert added.value == pytest.approx(0.25, abs=0.02)
    assert by_cell[THROUGHPUT, "bare"].overhead is None
    assert by_cell[THROUGHPUT, "bare"].mean.value == pytest.approx(768 / 30, rel=0.01)
    assert by_cell[LATENCY, "bare"].mean.value == pytest.approx(2 * 0.9 / 127, rel=0.01)


def test_two_machines_of_a_kind_are_told_apart() -> None:
    found = compare([tee_result(Arm.VM), tee_result(Arm.TDX, seed=3), tee_result(Arm.TDX, seed=5)])
    assert [row.arm for row in found.rows[:3]] == ["vm", "tdx 1", "tdx 2"]


@pytest.mark.parametrize("name", ["prompt", "answer", "batch", "beams", "warm_ups"])
def test_other_workloads_are_refused(name: str) -> None:
    one = tee_result()
    workload = msgspec.structs.replace(one.workload, **{name: getattr(one.workload, name) + 1})
    with pytest.raises(BenchmarkError, match=f"other workloads .{name}"):
        compare([one, msgspec.structs.replace(tee_result(seed=2), workload=workload)])


def test_another_model_is_refused_whatever_it_is_called() -> None:
    other = msgspec.structs.replace(tee_result().model, digest="d2" * 32)
    with pytest.raises(BenchmarkError, match="other models"):
        compare([tee_result(), msgspec.structs.replace(tee_result(seed=2), model=other)])
    renamed = msgspec.structs.replace(tee_result().model, name="copy")
    compare([tee_result(), msgspec.structs.replace(tee_result(seed=2), model=renamed)])


def test_one_result_or_the_same_twice_is_no_comparison() -> None:
    with pytest.raises(BenchmarkError, match="two files"):
        compare([tee_result()])
    with pytest.raises(BenchmarkError, match="twice"):
        compare([tee_result(), tee_result()])


def test_only_what_all_have_is_compared() -> None:
    first, second = tee_result(), tee_result(seed=2)
    alone = msgspec.structs.replace(second, cells=second.cells[1:])
    assert {row.cell for row in compare([first, alone]).rows} == {LATENCY}
    none = msgspec.structs.replace(first, cells=first.cells[:1])
    with pytest.raises(BenchmarkError, match="no cell in common"):
        compare([none, alone])


def test_what_differs_besides_the_protection_is_said() -> None:
    one, other = tee_result(Arm.BARE), tee_result(Arm.TDX)
    machine = msgspec.structs.replace(other.machine, processor="Another CPU", cores=64)
    software = msgspec.structs.replace(other.software, commit="ff" * 20)
    found = compare([one, msgspec.structs.replace(other, machine=machine, software=software)])
    assert [line.partition(":")[0] for line in found.differences] == ["processor", "confide"]
    assert "Another CPU on tdx" in found.differences[0]

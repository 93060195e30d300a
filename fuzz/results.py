"""Files of results that somebody else measured, or says so, and traces of requests."""

from datetime import UTC, datetime

import msgspec

from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence, Family
from confide.attest.statement import Statement
from confide.attest.wire import Attested
from confide.bench.compare import compare
from confide.bench.machine import Arm, Machine
from confide.bench.results import (
    Cell,
    CellRuns,
    Interval,
    ModelFacts,
    QuantizationResult,
    QuantizationRow,
    ResultFile,
    Software,
    TeeResult,
    Timing,
    Workload,
    read_result,
    require_arm,
)
from confide.evaluate.trace import read_trace, synthetic_trace, write_trace


def bench_result(data: bytes) -> None:
    """A file, and its comparison with a slower machine."""
    read = read_result(data)
    require_arm(read)
    if isinstance(read.result, TeeResult):
        if read.result.arm.proven:
            raise AssertionError("a trusted environment that nothing shows")
        compare([read.result, _tee(2.0)])


def trace(data: bytes) -> None:
    """Requests, in order, the first of them at once."""
    arrivals = read_trace(data)
    times = [one.at for one in arrivals]
    if times != sorted(times) or times[0] != 0:
        raise AssertionError("a trace that does not begin with its first request")


def _traces() -> list[bytes]:
    made = write_trace(synthetic_trace(1, 4))
    return [made, made.replace(b"0,", b"0+02:00,", 2), made.replace(b"\n", b"\r\n")]


def _tee(seconds: float, arm: Arm = Arm.VM) -> TeeResult:
    return TeeResult(
        1,
        datetime(2026, 11, 29, tzinfo=UTC),
        arm,
        *_PLACE,
        Workload(4, 4, 1, 1, 0, "cpu"),
        (CellRuns(Cell("latency", "llama.cpp", "int8", 1), (Timing(0.5, seconds, 4), Timing(0.5, seconds + 1, 4))),),
        (),
    )


_PLACE = (
    Machine("A CPU", 2, 1 << 30, "6.18", "kvm", 0.5),
    Software("0.1.0", "0c" * 20, "3.11.7", {"torch": "2.13.0"}),
    ModelFacts("demo", "d1" * 32, 100),
)


def _quantization() -> QuantizationResult:
    one = Interval(1.5, 1.0, 2.0)
    row = QuantizationRow("llama.cpp", "q8_0", 1, 1, one, one, {"1": one}, one, one, 0)
    return QuantizationResult(
        1, datetime(2026, 11, 29, tzinfo=UTC), *_PLACE, 1, 2, 3, 4, 5, 6, "7e" * 32, 9, (row,), ()
    )


def _files() -> list[bytes]:
    shown = Attested.make(Evidence(Family.TDX, b"\4\0\2\0"), Statement("00" * 32), Collateral({"dcap": b"{}"}))
    made = [ResultFile.make(_tee(1.0)), ResultFile.make(_tee(1.0, Arm.TDX), shown), ResultFile.make(_quantization())]
    return [msgspec.json.encode(file) for file in made]


TARGETS = {"bench-result": bench_result, "trace": trace}
SEEDS = {"bench-result": _files, "trace": _traces}

"""Results as they could have been measured."""

from datetime import UTC, datetime

import numpy as np

from confide.bench.machine import Arm, Machine
from confide.bench.results import (
    Cell,
    CellRuns,
    Interval,
    ModelFacts,
    NotMeasured,
    QuantizationResult,
    QuantizationRow,
    Software,
    TeeResult,
    Timing,
    Workload,
)

AT = datetime(2026, 11, 29, 20, 30, 1, 123456, tzinfo=UTC)
MACHINE = Machine("A Fine CPU (avx512_vnni)", 4, 1 << 34, "6.18.0", "", 0.25)
SOFTWARE = Software("0.1.0", "0c" * 20, "3.11.7", {"torch": "2.13.0", "transformers": "5.20.0", "xllamacpp": "1"})
MODEL = ModelFacts("demo", "d1" * 32, 5_918_720)
WORKLOAD = Workload(1024, 128, 6, 4, 10, "cpu")
THROUGHPUT = Cell("throughput", "transformers", "bf16", 2)
LATENCY = Cell("latency", "llama.cpp", "int8", 2)


def runs(seconds: float, tokens: int, seed: int, count: int = 20) -> tuple[Timing, ...]:
    generator = np.random.default_rng(seed)
    return tuple(Timing(seconds / 10, float(each), tokens) for each in generator.normal(seconds, seconds / 100, count))


def tee_result(arm: Arm = Arm.VM, slower: float = 1.0, seed: int = 1) -> TeeResult:
    """slower: than the usual machine, by this factor in both workloads."""
    return TeeResult(
        1,
        AT,
        arm,
        MACHINE,
        SOFTWARE,
        MODEL,
        WORKLOAD,
        (
            CellRuns(THROUGHPUT, runs(30.0 * slower, 768, seed)),
            CellRuns(LATENCY, runs(2.0 * slower, 128, seed + 1)),
        ),
        (NotMeasured("throughput", "llama.cpp", "int8", "llama.cpp has no beam search"),),
    )


def quantization_result() -> QuantizationResult:
    one = Interval(1.5, 1.25, 2.0)
    row = QuantizationRow("llama.cpp", "q8_0", 6_000_000, 3_145_728, one, one, {"1": one, "8": one}, one, one, 0)
    return QuantizationResult(
        1,
        measured=AT,
        machine=MACHINE,
        software=SOFTWARE,
        model=MODEL,
        context=512,
        prompt=128,
        answer=64,
        threads=2,
        runs=5,
        warm_ups=1,
        text="7e" * 32,
        scored_tokens=4088,
        rows=(row,),
        not_measured=(),
    )

"""Timing both sides of a comparison in one run: turn by turn, medians and ratios."""

import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from confide.bench.machine import processor

_RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True)
class Figure:
    """One row of the table: what was measured, what to reach, and what it is compared with."""

    what: str
    value: float
    unit: str
    reach: float
    moonshot: float
    detail: str
    higher_is_better: bool = False

    @property
    def reached(self) -> str:
        if self._at_least(self.moonshot):
            return "moonshot"
        return "yes" if self._at_least(self.reach) else "no"

    def _at_least(self, aim: float) -> bool:
        return self.value >= aim if self.higher_is_better else self.value <= aim


def in_turn(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> tuple[float, float, float]:
    """Median seconds of both, run alternately, and the median of the ratios ours / theirs."""
    ours(), theirs()
    pairs = []
    for _ in range(rounds):
        pairs.append((seconds(ours), seconds(theirs)))
    mine, other = zip(*pairs, strict=True)
    return statistics.median(mine), statistics.median(other), statistics.median(a / b for a, b in pairs)


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def children() -> list[str]:
    """The processes that this one started, by number."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def proportional_bytes(process: str) -> int:
    """A process's memory now; pages that others share count in part (PSS). 0 once it has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:")), 0)


def results() -> Path:
    """The folder for this machine's processor: figures of two processors are never mixed."""
    folder = _RESULTS / re.sub(r"[^a-z0-9]+", "-", processor().lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write(name: str, figures: list[Figure], **details: object) -> None:
    """Write one question's figures, and what else is to be kept of it, to results/PROCESSOR/NAME.json."""
    machine = {"processor": processor(), "cores": os.cpu_count(), "python": platform.python_version()}
    today = datetime.now(UTC).date().isoformat()
    rows = [asdict(figure) | {"reached": figure.reached} for figure in figures]
    content: dict[str, object] = {"machine": machine, "measured": today, "figures": rows}
    content |= details
    (results() / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")

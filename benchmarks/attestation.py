"""How long a verdict takes: a TDX quote whose collateral is at hand, and reading a policy of 64 kB.

Both are computing alone, so processor time is what is taken: on a shared machine it moves less than the clock's.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.measure import Figure, write
from confide.attest.policy import SimulatedPolicy
from confide.attest.policy_toml import policy_from_toml
from confide.attest.simulated import SimulatedTee
from confide.attest.simulated_vendor import Listing
from confide.attest.verifier import Verifier

ROUNDS = 300
POLICY_BYTES = 64_000
NOW = datetime(2026, 6, 1, tzinfo=UTC)


def main() -> list[Figure]:
    figures = [appraisal(), reading()]
    write("attestation", figures)
    return figures


def appraisal(rounds: int = ROUNDS) -> Figure:
    """The whole verdict: signatures, chains, lists, levels and the policy's defaults."""
    with tempfile.TemporaryDirectory() as folder:
        tee = SimulatedTee.create(Path(folder) / "tee", NOW - timedelta(days=9))
    evidence, collateral = tee.quote(bytes(64)), tee.collateral(Listing(NOW - timedelta(days=1)))
    verifier, policy = Verifier(tee.roots()), SimulatedPolicy()

    def verdict() -> None:
        if not verifier.appraise(evidence, collateral, policy, NOW).trusted:
            raise RuntimeError("The quote is not trusted, so its time says nothing.")

    return _figure("verdict on a TDX quote, collateral at hand", verdict, rounds, 5.0, 2.5)


def reading(rounds: int = ROUNDS // 5) -> Figure:
    """A policy of chips by their ids, which is what makes policies long."""
    head = 'confide-policy = 1\nkind = "production"\n[[all]]\nrequire = "chip-id-in"\nallowed = ['
    ids = ", ".join(f'"{index:0128x}"' for index in range((POLICY_BYTES - len(head)) // 132))
    text = f"{head}{ids}]\n"
    return _figure(f"policy of {len(text) // 1000} kB read", lambda: policy_from_toml(text), rounds, 50.0, 10.0)


def _figure(what: str, call: Callable[[], object], rounds: int, reach: float, moonshot: float) -> Figure:
    call()
    times = sorted(_milliseconds(call) for _ in range(rounds))
    detail = f"median of {rounds}; best {times[0]:.2f} ms, one in ten above {times[-1 - rounds // 10]:.2f} ms"
    return Figure(what, statistics.median(times), "ms", reach, moonshot, detail)


def _milliseconds(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return 1e3 * (time.process_time() - began)

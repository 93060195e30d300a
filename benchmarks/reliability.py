"""What reliability costs while decoding, GPT-2-small's shape: checking answers, keeping the ledger, preparing ahead.

Both sides of each ratio alternate in one session with one server.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from confide.hybrid.server.ledger.journal import Entry
from confide.rlwe.masks import Int32Array
from numpy.typing import NDArray

from benchmarks.measure import Figure, write
from benchmarks.shapes import GPT2_SMALL, serving, split_shape
from benchmarks.whole_model import decode
from confide import HybridModel
from confide.hybrid.server.ledger import Ledger
from confide.hybrid.server.ledger.usage import Answerable
from confide.rlwe.freivalds import AnswerCheck

ROUNDS = 7
SPENDS = 4000


def main() -> list[Figure]:
    with split_shape(GPT2_SMALL) as model, serving(model.server) as url, model.open(url, refill_ahead=True) as private:
        private.prepare(1)
        figures = _measure(private)
    figures.append(_ledger(statistics.median(_decode_seconds)))
    write("reliability", figures)
    return figures


_decode_seconds: list[float] = []


def _measure(private: HybridModel) -> list[Figure]:
    refill = private.client._refill
    assert refill is not None
    keep_ahead, private.client._refill = private.client._refill, None  # not before it is its turn
    checks = _share_of_checks(private)
    private.client._refill = keep_ahead
    refill.start()
    time.sleep(25)  # until the other process is in the midst of a layer group
    assert refill.running
    beside = [decode(private.model) for _ in range(ROUNDS)]
    assert refill.running, "the pack was ready before the measurement was over"
    refill.close()
    alone = [decode(private.model) for _ in range(ROUNDS)]
    return [
        checks,
        _ratio("decoding while a pack is prepared / alone", beside, alone, 1.2, 1.05),
    ]


def _ratio(what: str, ours: list[float], theirs: list[float], reach: float, moonshot: float) -> Figure:
    mine, other = statistics.median(ours), statistics.median(theirs)
    detail = f"{mine * 1e3:.1f} ms against {other * 1e3:.1f} ms a token"
    return Figure(what, mine / other, "ratio", reach, moonshot, detail)


def _share_of_checks(private: HybridModel) -> Figure:
    """The time inside checks, of that of whole runs: the difference between runs is smaller than their noise."""
    spent: list[float] = []
    check = AnswerCheck.__call__

    def timed(self: AnswerCheck, y: Int32Array, x: Int32Array) -> NDArray[np.bool_]:
        started = time.perf_counter()
        verdict = check(self, y, x)
        spent.append(time.perf_counter() - started)
        return verdict

    AnswerCheck.__call__ = timed  # type: ignore[method-assign]
    try:
        _decode_seconds.extend(decode(private.model) for _ in range(ROUNDS))
    finally:
        AnswerCheck.__call__ = check  # type: ignore[method-assign]
    step, each = statistics.median(_decode_seconds), statistics.median(spent)
    share = 48 * each / step
    return Figure(
        "checking answers, of decoding",
        100 * share,
        "%",
        3,
        1,
        f"48 checks of {each * 1e6:.0f} us in {step * 1e3:.1f} ms",
    )


def _ledger(decode_seconds: float) -> Figure:
    """Recording an answer, as the server does for each layer group, against the whole step."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder))
        account = ledger.anonymous()
        pack, answerable = os.urandom(16), Answerable(4096)
        ledger.bind_request(account, pack, 0, os.urandom(32))
        started = time.perf_counter()
        for index in range(SPENDS):
            ledger.spend(account, Entry(pack, 0, index, 1, bytes(16)), answerable)
        spend = (time.perf_counter() - started) / SPENDS
        ledger.close()
    step = 48 * spend
    return Figure(
        "decoding with the ledger / without",
        decode_seconds / (decode_seconds - step),
        "ratio",
        1.05,
        1.01,
        f"{spend * 1e6:.0f} us a record, leases included; 48 of them in {decode_seconds * 1e3:.1f} ms",
    )

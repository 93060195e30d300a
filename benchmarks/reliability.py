"""What reliability costs while decoding, GPT-2-small's shape: the checking of answers."""

import statistics
import time

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import Figure, write
from benchmarks.shapes import serving, split_shape
from benchmarks.whole_model import decode
from confide import HybridModel
from confide.evaluate.shapes import GPT2_SMALL
from confide.rlwe.freivalds import AnswerCheck
from confide.rlwe.pads import Int32Array

ROUNDS = 7


def main() -> list[Figure]:
    with split_shape(GPT2_SMALL) as model, serving(model.server) as url, model.open(url) as private:
        figures = [_share_of_checks(private)]
    write("reliability", figures)
    return figures


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
        steps = [decode(private.model) for _ in range(ROUNDS)]
    finally:
        AnswerCheck.__call__ = check  # type: ignore[method-assign]
    step, each = statistics.median(steps), statistics.median(spent)
    share = 48 * each / step
    return Figure(
        "checking answers, of decoding",
        100 * share,
        "%",
        3,
        1,
        f"48 checks of {each * 1e6:.0f} us in {step * 1e3:.1f} ms",
    )

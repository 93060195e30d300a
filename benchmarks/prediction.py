"""What `confide plan` predicts against what then happens: GPT-2-small's shape and the demo model, all of it protected.

Prediction and measurement follow each other in one run, the server a process of its own on loopback.
"""

import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

from benchmarks.measure import Figure, write
from benchmarks.shapes import SplitModel, serving, split_shape, split_source
from benchmarks.whole_model import PREFILL_TOKENS, decode, prefill
from confide import HybridModel
from confide.evaluate.calibrate import calibrate
from confide.evaluate.cost_model import Network
from confide.evaluate.plan import Outlook, make_plan
from confide.evaluate.shapes import GPT2_SMALL
from confide.models.source import open_model

ROUNDS = 5
MODELS: dict[str, Callable[[], AbstractContextManager[SplitModel]]] = {
    "GPT-2-small shape": partial(split_shape, GPT2_SMALL),
    "demo model": lambda: split_source(open_model("demo")),
}


@dataclass(frozen=True)
class Measured:
    """Seconds of a token's work ahead, of a step of decoding and of a prompt; bytes of a token."""

    ahead: float
    token: float
    prompt: float
    token_bytes: int


def main() -> list[Figure]:
    figures = []
    for name, split in MODELS.items():
        with split() as model:
            predicted = _predict(model)
            with serving(model.server) as url, model.open(url) as private:
                figures += _compare(name, predicted, _measure(private))
    write("prediction", figures)
    return figures


def _predict(model: SplitModel) -> Outlook:
    outlooks = make_plan(model.source, calibrate(), Network(), tokens=1, prompt=PREFILL_TOKENS)
    return next(outlook for outlook in outlooks if outlook.choice.protect == "all")


def _measure(private: HybridModel) -> Measured:
    before = private.traffic.bytes_up - private.traffic.bytes_ahead + private.traffic.bytes_down
    prompts = [prefill(private.model) for _ in range(ROUNDS)]
    prompt_bytes = private.traffic.bytes_up - private.traffic.bytes_ahead + private.traffic.bytes_down - before
    return Measured(
        ahead=private.product.ms_ahead_per_token / 1e3,
        token=statistics.median(decode(private.model) for _ in range(ROUNDS)),
        prompt=statistics.median(prompts),
        token_bytes=prompt_bytes // (ROUNDS * PREFILL_TOKENS),
    )


def _compare(name: str, predicted: Outlook, measured: Measured) -> list[Figure]:
    times = (
        ("ahead, a token", predicted.ahead.seconds, measured.ahead),
        ("decoding, a token", predicted.token.seconds, measured.token),
        (f"prefill of {PREFILL_TOKENS} tokens", predicted.prompt.seconds, measured.prompt),
    )
    return [
        _difference(f"{name}: {what}", one, other, 25, 10, f"{one * 1e3:.2f} ms predicted, {other * 1e3:.2f} measured")
        for what, one, other in times
    ] + [
        _difference(
            f"{name}: bytes of a token",
            predicted.token.bytes,
            measured.token_bytes,
            0,
            0,
            f"{predicted.token.bytes:,} predicted, {measured.token_bytes:,} measured",
        )
    ]


def _difference(what: str, predicted: float, measured: float, reach: float, moonshot: float, detail: str) -> Figure:
    return Figure(f"{what}, predicted", 100 * abs(predicted / measured - 1), "% off", reach, moonshot, detail)

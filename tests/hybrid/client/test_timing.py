"""Whether a server with a clock, or one beside the client on its machine, finds the last token of an answer."""

import random
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import TextStreamer

from confide.errors import IntegrityError
from confide.hybrid import wire
from confide.hybrid.client.padding import Padding
from confide.hybrid.client.refusals import RefusalList
from confide.models.clear import load_clear
from confide.models.source import open_model
from confide.models.split import SplitSummary

from .conftest import Open
from .fake import FakeServer, FromFrame
from .test_generation import generate

RUNS = 200
TOKENS = 32
EDGE = 3
"""Stops are drawn from what leaves so many steps on either side."""


class _Silent(TextStreamer):
    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        pass


@dataclass
class Clock:
    """What a server sees with each step: its own time, and the client's processor time. Both in seconds."""

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._clock = time.pthread_getcpuclockid(threading.get_ident())

    def __call__(self, message: wire.Online) -> None:
        if message.group == 0:
            self.wall.append(time.perf_counter())
            self.processor.append(time.clock_gettime(self._clock))


def run(
    kind: str, parts: SplitSummary, server: FakeServer, open_shell: Open, *, streaming: bool
) -> list[tuple[int, NDArray[np.float64], NDArray[np.float64]]]:
    """For each run where its text ended, and the steps' durations by either clock."""
    sample = kind == "sampling"
    clear = load_clear(parts.client, parts.server)
    model = open_shell(parts, server, padding=Padding(16, None))
    tokenizer = open_model("demo").load_tokenizer()
    choose = random.Random(1)
    seen = []
    while len(seen) < RUNS:
        seed = choose.randrange(1 << 30)
        prompt = torch.tensor([[choose.randrange(1, 97) for _ in range(6)]])
        options = {"do_sample": sample, "temperature": 2.0} if sample else {}
        torch.manual_seed(seed)
        text = generate(clear, prompt, max_new_tokens=TOKENS, eos_token_id=None, **options)[0, 6:].tolist()
        stops = [place for place in range(EDGE, TOKENS - EDGE) if text[place] not in text[:place]]
        if not stops:  # greedy texts of so small a model go in circles
            continue
        stop = choose.choice(stops)
        server.before = clock = Clock()
        torch.manual_seed(seed)
        streamer = _Silent(tokenizer) if streaming else None  # type: ignore[arg-type]
        if kind == "failing":
            server.tamper = FromFrame((stop + 1) * 4)
            with pytest.raises(IntegrityError):
                generate(model, prompt, max_new_tokens=TOKENS, eos_token_id=None, streamer=streamer)
            RefusalList().clear()
            server.tamper = None
            model = open_shell(parts, server, padding=Padding(16, None))
        else:
            result = generate(
                model, prompt, max_new_tokens=TOKENS, eos_token_id=text[stop], streamer=streamer, **options
            )
            assert result.shape[1] == 6 + stop + 1
        # The first step is the prompt's.
        seen.append((stop, np.diff(clock.wall)[1:], np.diff(clock.processor)[1:]))
    return seen


def change_point(series: NDArray[np.float64]) -> int:
    """Where the means before and after differ most, in standard errors, of ranks, which outliers do not drown."""
    ranks = series.argsort().argsort().astype(float)
    best, place = -1.0, 0
    for split in range(2, len(ranks) - 2):
        before, after = ranks[:split], ranks[split:]
        error = (before.var() / len(before) + after.var() / len(after)) ** 0.5
        score = abs(before.mean() - after.mean()) / (error + 1e-12)
        if score > best:
            best, place = score, split
    return place


def outlier(series: NDArray[np.float64]) -> int:
    """The step that took longest."""
    return int(series.argmax())


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True], ids=["", "streaming"])
@pytest.mark.parametrize("kind", ["greedy", "sampling", "failing"])
def test_a_clock_does_not_find_the_end(
    parts: SplitSummary,
    server: FakeServer,
    open_shell: Open,
    kind: str,
    streaming: bool,
    record_property: Callable[[str, object], None],
) -> None:
    seen = run(kind, parts, server, open_shell, streaming=streaming)
    stops = [stop for stop, _, _ in seen]
    for name, attack in (("change point", change_point), ("outlier", outlier)):
        for which, clock in enumerate(("frame times", "processor time")):
            places = [attack(one[1 + which]) for one in seen]
            # Best over where a stop would show: the offset is the attacker's to learn.
            hits, chance = max(
                (_hits(places, stops, offset), _chance(places, stops, offset)) for offset in range(-2, 3)
            )
            record_property(f"{clock}, {name}: found, by chance", f"{hits:.3f}, {chance:.3f}")
            noise = (chance * (1 - chance) / RUNS) ** 0.5
            assert hits <= chance + 0.05 + 2 * noise
    for which, clock in enumerate(("frame times", "processor time")):
        # Steps become faster as a run goes on, whatever ends; hence the same of other runs' ends.
        own, others = (
            statistics.median(_after_to_before(one[1 + which], stop) for one, stop in zip(seen, ends, strict=True))
            for ends in (stops, stops[1:] + stops[:1])
        )
        record_property(f"{clock}, after / before the end; at another run's", f"{own:.4f}; {others:.4f}")


def _after_to_before(series: NDArray[np.float64], stop: int) -> float:
    return float(np.median(series[stop + 1 :]) / np.median(series[: stop - 1]))


def _hits(places: list[int], stops: list[int], offset: int) -> float:
    return statistics.mean(abs(place - stop - offset) <= 1 for place, stop in zip(places, stops, strict=True))


def _chance(places: list[int], stops: list[int], offset: int) -> float:
    """Of the same guesses about the other runs."""
    return statistics.mean(abs(place - stop - offset) <= 1 for place in places for stop in stops)


def test_the_attacks_find_what_there_is() -> None:
    """A step that takes a tenth longer after the end is found, and so is one odd step."""
    random = np.random.default_rng(1)
    found = {change_point: 0, outlier: 0}
    for _ in range(100):
        end = int(random.integers(EDGE, TOKENS - EDGE))
        steps = random.normal(1, 0.03, TOKENS)
        later = np.where(np.arange(TOKENS) < end, steps, 1.1 * steps)
        found[change_point] += abs(change_point(later) - end) <= 1
        steps[end] += 0.3
        found[outlier] += outlier(steps) == end
    assert min(found.values()) > 80

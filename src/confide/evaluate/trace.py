"""When requests come and how long they are, in the format of Azure's public traces of LLM inference.

CSV with the header TIMESTAMP,ContextTokens,GeneratedTokens, a request each line (github.com/Azure/AzurePublicDataset,
AzureLLMInferenceDataset2023). No trace is part of this repository: one is made up, the same from each seed.
"""

import csv
import io
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from confide.errors import BenchmarkError

HEADER: Final = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
MAX_BYTES: Final = 64 << 20
MAX_ARRIVALS: Final = 1 << 20
MAX_TOKENS: Final = 1 << 24
_LONGEST_LINE: Final = 128
_MICROSECONDS: Final = 6
_START: Final = datetime(2023, 11, 16, tzinfo=UTC)


@dataclass(frozen=True)
class Arrival:
    """A request. at: seconds after the first one. context, generated: tokens of its prompt and its answer."""

    at: float
    context: int
    generated: int


def read_trace(data: bytes) -> list[Arrival]:
    """A trace in the order of its times. BenchmarkError for one that is too large or not in the format."""
    if len(data) > MAX_BYTES:
        raise BenchmarkError(f"A trace has at most {MAX_BYTES >> 20} MiB here; cut a part out of it.")
    try:
        lines = data.decode("ascii").splitlines()
    except UnicodeDecodeError:
        raise BenchmarkError("A trace is CSV in ASCII; this is something else.") from None
    if not lines or tuple(lines[0].split(",")) != HEADER:
        raise BenchmarkError(f"A trace begins with the line {','.join(HEADER)}; this one does not.")
    if not 1 < len(lines) <= MAX_ARRIVALS + 1:
        raise BenchmarkError(f"A trace has 1 to {MAX_ARRIVALS} requests here; cut a part out of it.")
    rows = [_row(number, line) for number, line in enumerate(lines[1:], start=2)]
    start = min(at for at, _, _ in rows)
    arrivals = [Arrival((at - start).total_seconds(), context, generated) for at, context, generated in rows]
    return sorted(arrivals, key=lambda arrival: arrival.at)


def _row(number: int, line: str) -> tuple[datetime, int, int]:
    try:
        if len(line) > _LONGEST_LINE:
            raise ValueError(number)
        at, context, generated = line.split(",")
        return _time(at), _tokens(context), _tokens(generated)
    except (ValueError, OverflowError):
        raise BenchmarkError(
            f"Line {number} of the trace is not a time and two numbers of tokens, 1 to {MAX_TOKENS}; correct it."
        ) from None


def _time(text: str) -> datetime:
    """With up to seven digits of a second, as .NET writes them, and with an offset or without, which is UTC."""
    whole, dot, rest = text.partition(".")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    offset = rest[len(digits) :]
    read = datetime.fromisoformat(f"{whole}{dot}{digits[:_MICROSECONDS].ljust(_MICROSECONDS * bool(dot), '0')}{offset}")
    return read if read.tzinfo else read.replace(tzinfo=UTC)


def _tokens(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= MAX_TOKENS):
        raise ValueError(text)
    return int(text)


def write_trace(arrivals: Sequence[Arrival]) -> bytes:
    """In the format, its first request at the time of Azure's first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for one in arrivals:
        at = (_START + timedelta(seconds=one.at)).strftime("%Y-%m-%d %H:%M:%S.%f")
        writer.writerow((f"{at}0", one.context, one.generated))
    return text.getvalue().encode()


def synthetic_trace(seed: int, requests: int, context: int = 160, generated: int = 16) -> list[Arrival]:
    """Requests that come in bursts, a second apart in the mean. context, generated: the median's tokens.

    Gaps are of two exponential distributions (one in five of 4 seconds, the others of a quarter), lengths are
    log-normal with a standard deviation of 0.8: a few requests are many times as long as most, as in real traces.
    """
    chance, at, arrivals = random.Random(seed), 0.0, []  # noqa: S311 - the same from each seed
    for _ in range(requests):
        arrivals.append(Arrival(round(at, _MICROSECONDS), _length(chance, context), _length(chance, generated)))
        at += chance.expovariate(1 / 4 if chance.random() < 1 / 5 else 4)
    return arrivals


def _length(chance: random.Random, median: int) -> int:
    return max(1, round(chance.lognormvariate(math.log(median), 0.8)))

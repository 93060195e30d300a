"""`confide top`: what servers are doing now, from what they show their operator: /metrics and /health.

Two readings make one line: what is counted is shown by the second. What answers is read within bounds.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Final

import httpx
import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from confide.cli import output
from confide.cli.options import Json
from confide.errors import ConfideError
from confide.net.metrics import Reading, Sample, read_server

_SECONDS: Final = 5.0
_SERVERS_FAULT: Final = 500


@dataclass(frozen=True)
class Kind:
    """Where a kind of server has what is shown; an empty name for what it has not."""

    name: str
    requests: str
    seconds: str
    tokens: Sequence[str]
    refusals: str
    running: str = ""
    waiting: str = ""
    connections: str = ""


KINDS: Final = (
    Kind(
        "enclave", "confide_requests_total", "confide_first_piece_seconds",
        ("confide_prompt_tokens_total", "confide_answer_tokens_total"), "confide_channel_refusals_total",
        running="confide_answers_running", waiting="confide_requests_waiting",
    ),
    Kind(
        "layers", "confide_online_answers_total", "confide_online_seconds", ("confide_online_rows_total",),
        "confide_refusals_total", connections="confide_connections",
    ),
)  # fmt: skip
"""Models in trusted environments; layer servers, whose tokens are counted for each layer group (rows)."""


@dataclass(frozen=True)
class Line:
    """What is shown of a server; None for what is not known.

    errors_per_second: its own faults (status 5xx), and errors of the protocol. half_within_seconds: in what time half
    of the answers were there, or their first pieces; most_within_seconds: 95 % of them.
    """

    url: str
    kind: str
    health: str
    up_seconds: float | None = None
    running: int | None = None
    waiting: int | None = None
    connections: int | None = None
    requests_per_second: float | None = None
    errors_per_second: float | None = None
    tokens_per_second: float | None = None
    half_within_seconds: float | None = None
    most_within_seconds: float | None = None


def command(
    servers: Annotated[
        list[str],
        typer.Argument(
            help="Metrics ports on this machine, or addresses such as http://127.0.0.1:9470.", metavar="PORT..."
        ),
    ],
    interval: Annotated[float, typer.Option(help="Seconds between two readings.", min=0.1, max=3600)] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Show one interval, and leave; so too in a pipe.")] = False,
    json: Json = False,
) -> None:
    """Show what servers are doing: health, answers being made + in line, and by the second, until Ctrl-C.

    Tokens are those of prompts and answers, in thousands as they are counted; of a layer server, rows.
    """
    urls = [_address(server) for server in servers]
    with httpx.Client(timeout=_SECONDS, trust_env=False) as client:
        before = [read_server(client, url) for url in urls]
        if json or once or not output.console.is_terminal:
            time.sleep(interval)
            lines = [line(url, old, read_server(client, url)) for url, old in zip(urls, before, strict=True)]
            if json:
                output.result({"servers": [asdict(one) for one in lines]})
            else:
                output.console.print(_table(lines))
            return
        with Live(console=output.console, auto_refresh=False) as live:
            while True:
                try:
                    time.sleep(interval)
                except KeyboardInterrupt:
                    return
                after = [read_server(client, url) for url in urls]
                live.update(_table([line(*one) for one in zip(urls, before, after, strict=True)]), refresh=True)
                before = after


def line(url: str, before: Reading | ConfideError, after: Reading | ConfideError) -> Line:
    """What two readings of a server show."""
    if isinstance(after, ConfideError):
        return Line(url, "unknown", after.code)
    kind = next((kind for kind in KINDS if any(one.name == kind.requests for one in after.samples)), None)
    if kind is None:
        # A counter with labels is not there before its first event.
        kind = next((kind for kind in KINDS if kind.seconds and after.buckets(kind.seconds)), None)
    if kind is None:
        return Line(url, "unknown", after.health)
    known = {name: int(after.total(metric)) for name in ("running", "waiting", "connections")
             if (metric := getattr(kind, name))}  # fmt: skip
    up = max(0.0, time.time() - after.total("confide_started_seconds"))
    if isinstance(before, ConfideError):
        return Line(url, kind.name, after.health, up, **known)
    seconds = max(after.at - before.at, 1e-3)

    def rate(*names: str) -> float:
        return sum(_grown(before.total(name), after.total(name)) for name in names) / seconds

    faults = [Reading(one.at, "", [s for s in one.samples if _is_fault(s)]) for one in (before, after)]
    times = {most: _grown(before.buckets(kind.seconds).get(most, 0.0), count)
             for most, count in after.buckets(kind.seconds).items()}  # fmt: skip
    return Line(
        url,
        kind.name,
        after.health,
        up,
        **known,
        requests_per_second=rate(kind.requests),
        errors_per_second=_grown(*(one.total(kind.requests) for one in faults)) / seconds + rate(kind.refusals),
        tokens_per_second=rate(*kind.tokens),
        half_within_seconds=quantile(0.5, times),
        most_within_seconds=quantile(0.95, times),
    )


def quantile(share: float, buckets: Mapping[float, float]) -> float | None:
    """In how many seconds so many of them were done, by the buckets of a histogram, evenly within each.

    None where there was none; the last bound for those beyond it.
    """
    ordered = sorted(buckets.items())
    total = ordered[-1][1] if ordered else 0.0
    if total <= 0:
        return None
    below, counted = 0.0, 0.0
    for most, count in ordered:
        if count >= share * total:
            if math.isinf(most):
                return below
            return below + (most - below) * (share * total - counted) / max(count - counted, 1e-9)
        below, counted = most, count
    return below


def _address(server: str) -> str:
    if server.isascii() and server.isdigit() and len(server) <= len("65535"):
        return f"http://127.0.0.1:{int(server)}"
    if not server.startswith(("http://", "https://")):
        raise typer.BadParameter(f"{server!r} is no port and no address; give the server's --metrics-port")
    return server.rstrip("/").removesuffix("/metrics")


def _grown(before: float, after: float) -> float:
    """By how much a counter went up; one that is less has begun anew with its server."""
    return after - before if after >= before else after


def _is_fault(sample: Sample) -> bool:
    status = sample.labels.get("status", "")
    return status.isdecimal() and int(status) >= _SERVERS_FAULT


def _table(lines: Sequence[Line]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("server", "health"):
        table.add_column(name, overflow="fold")
    for name in ("up", "now", "req/s", "errors/s", "tokens/s", "half in", "95 % in"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in lines:
        table.add_row(
            Text(one.url.removeprefix("http://")),
            Text(one.health, "green" if one.health == "ok" else "bold red"),
            "" if one.up_seconds is None else output.duration(one.up_seconds),
            _now(one),
            *map(_rate, (one.requests_per_second, one.errors_per_second, one.tokens_per_second)),
            *map(_time, (one.half_within_seconds, one.most_within_seconds)),
        )
    return table


def _now(one: Line) -> str:
    """Answers being made and those that wait, or connections."""
    if one.connections is not None:
        return f"{one.connections:,} open"
    return "" if one.running is None else f"{one.running:,} + {one.waiting or 0:,}"


def _rate(rate: float | None) -> str:
    return "" if rate is None else f"{rate:,.1f}"


def _time(seconds: float | None) -> str:
    return "" if seconds is None else output.duration(seconds)

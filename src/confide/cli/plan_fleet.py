"""`confide plan --users`: the machines that so many users of a protected model need, by simulation."""

import math
import os
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer
from rich.table import Table

from confide.cli import output
from confide.errors import BenchmarkError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from confide.evaluate.cost_model import Network
    from confide.evaluate.fleet_plan import FleetOutlook, FleetPlan, Machines, Percentiles
    from confide.evaluate.trace import Arrival
    from confide.models.source import Source

ANSWER: Final = 128
PER_HOUR: Final = 10.0
MADE_UP: Final = 2000
"""Requests of a trace that is made up."""
REQUESTS: Final = 120
"""Simulated for each number of machines."""
TIMES_ALONE: Final = 2.0
"""What nobody waits longer than, by default, times what a lone user waits."""


class Mode(StrEnum):
    """What machines serve: layers of a split model, or a sealed one as a whole."""

    HYBRID = "hybrid"
    ENCLAVE = "enclave"


@dataclass(frozen=True)
class FleetOptions:
    """As the command's options; all but `prompt` belong to `users`."""

    users: int | None
    mode: str | None
    protect: str | None
    trace: Path | None
    answer: int | None
    per_hour: float | None
    machines: int | None
    p99: float | None
    p99_first: float | None
    balancing: str | None
    price: float | None
    seed: int | None
    prompt: int

    def require_usable(self) -> None:
        """Wrong usage where an option means nothing beside the others."""
        from confide.evaluate.fleet import Balancing

        *own, _ = fields(self)
        given = [field.name for field in own if getattr(self, field.name) is not None]
        if given and self.users is None:
            raise typer.BadParameter(f"--{given[0].replace('_', '-')} goes with --users")
        if self.trace is not None and self.answer is not None:
            raise typer.BadParameter("a trace says how long answers are; leave --answer out")
        if self.machines is not None and (self.p99 is not None or self.p99_first is not None):
            raise typer.BadParameter("give --machines, or what --p99 and --p99-first they have to meet")
        if self.mode not in (None, *Mode):
            raise typer.BadParameter(f"--mode is one of {', '.join(Mode)}")
        if self.mode == Mode.ENCLAVE and self.protect is not None:
            raise typer.BadParameter("an enclave server runs all layers; leave --protect out")
        if self.balancing not in (None, *Balancing):
            raise typer.BadParameter(f"--balancing is one of {', '.join(Balancing)}")


def plan_fleet(
    source: "Source", network: "Network", settings: dict[str, Any], options: FleetOptions, *, json: bool
) -> None:
    """Measure, simulate, and print one fleet."""
    from confide.evaluate.fleet import Balancing
    from confide.evaluate.fleet_plan import Demand, FleetPlan

    assert options.users is not None  # noqa: S101 - as the command has seen to
    seed, per_hour = options.seed or 0, options.per_hour or PER_HOUR
    arrivals, too_long = _arrivals(source.config, options, seed)
    demand = Demand(options.users, options.users * per_hour / 3600, arrivals)
    balancing = Balancing(options.balancing or Balancing.LEAST_LOADED)
    mode = Mode(options.mode or Mode.HYBRID)
    measure = _enclaves if mode is Mode.ENCLAVE else _layer_servers
    with output.messages.status("measuring this machine, about five seconds") as status:
        kind = measure(source, network, options)
        plan = FleetPlan(kind.machines, demand, balancing=balancing, seed=seed, requests=REQUESTS)
        status.update("simulating a lone user")
        alone = plan.alone()
        if options.machines is not None:
            status.update(f"simulating {options.machines:,} machines")
            found = plan.outlook(options.machines)
        else:
            found = _fewest(plan, alone, options, lambda machines: status.update(f"simulating {machines:,} machines"))
    cost = None if options.price is None else options.price * found.machines
    if json:
        output.result(
            settings
            | {
                "mode": mode,
                "users": options.users,
                "requests_per_hour": per_hour,
                "balancing": balancing,
                "seed": seed,
                "requests_too_long": too_long,
                "fleet": asdict(found),
                "alone": {"first": asdict(alone[0]), "token": asdict(alone[1])},
                "cost_per_hour": cost,
                "cost_per_million_tokens": None if cost is None else cost / (found.tokens * 3600) * 1e6,
            }
            | kind.result
        )
        return
    output.console.print(_table(found, alone, options.users, cost))
    output.console.print()
    output.note(
        f"{options.users:,} users, each with {per_hour:g} requests an hour, {_lengths(arrivals)}; "
        f"{too_long} of the trace are too long for the model. Machines and users' machines are as fast as this one, "
        f"with {_cores()} cores; every machine holds the whole model. {kind.note}"
    )


@dataclass(frozen=True)
class _Kind:
    """One kind of machine, measured. note: what holds for it. result: what `--json` says of it alone."""

    machines: "Machines"
    note: str
    result: dict[str, Any]


def _layer_servers(source: "Source", network: "Network", options: FleetOptions) -> _Kind:
    from confide.evaluate.calibrate import calibrate
    from confide.evaluate.cost_model import disclosure
    from confide.evaluate.fleet_plan import FleetTimes, LayerMachines
    from confide.evaluate.plan import cut_by
    from confide.evaluate.skeleton import time_skeleton
    from confide.ledger.licences import DEFAULT_DISCLOSURE
    from confide.models.roles import find_layers

    protect = options.protect or "all"
    cut = cut_by(find_layers(source.config), protect)
    rates, skeleton = calibrate(), time_skeleton(source.config, options.prompt)
    tokens = disclosure(cut.protected, 1).licence_tokens
    return _Kind(
        LayerMachines(cut, FleetTimes(cut, rates, skeleton, network, cores=_cores())),
        "Users' connections are never idle for long. By default a licence lasts "
        f"{tokens:,} tokens, until {DEFAULT_DISCLOSURE:.0%} of what solves a layer is disclosed: `confide plan` "
        "without --users says more.",
        {"protect": protect, "licence_tokens": tokens, "rates": asdict(rates)},
    )


def _enclaves(source: "Source", network: "Network", options: FleetOptions) -> _Kind:
    from confide.enclave.engines.engine import PARALLEL
    from confide.evaluate.enclave_fleet import EnclaveMachines, cache_bytes, time_passes

    times = time_passes(source.config, options.prompt)
    return _Kind(
        EnclaveMachines(times, network, cache_bytes(source.config, times.dtype)),
        f"They compute in {times.dtype}, up to {PARALLEL} answers at once, by the transformers engine. This machine "
        "was measured as it is; where memory is encrypted all takes longer, which `confide bench tee` measures there.",
        {"parallel": PARALLEL, "passes": asdict(times)},
    )


def _fewest(
    plan: "FleetPlan",
    alone: "tuple[Percentiles, Percentiles]",
    options: FleetOptions,
    on_try: Callable[[int], None],
) -> "FleetOutlook":
    first, token = alone
    return plan.least(
        _target("--p99-first", options.p99_first, first.p99), _target("--p99", options.p99, token.p99), on_try
    )


def _target(name: str, asked: float | None, least: float) -> float:
    """Seconds; wrong usage where no number of machines would do."""
    if asked is not None and asked < least:
        raise typer.BadParameter(
            f"{name} {asked:g} cannot be met: with a machine of its own, one request in a hundred takes "
            f"{output.duration(least)}; allow more, protect fewer layers, or measure a faster machine"
        )
    return TIMES_ALONE * least if asked is None else asked


def _arrivals(config: "PreTrainedConfig", options: FleetOptions, seed: int) -> "tuple[list[Arrival], int]":
    """The requests that fit the model's context, and how many do not."""
    from confide.disk.files import read_bounded
    from confide.evaluate.trace import MAX_BYTES, read_trace, synthetic_trace
    from confide.models.context import longest_context

    if options.trace is not None:
        arrivals = read_trace(read_bounded(options.trace, MAX_BYTES))
    else:
        arrivals = synthetic_trace(seed, MADE_UP, options.prompt, options.answer or ANSWER)
    most = longest_context(config) or math.inf
    fitting = [one for one in arrivals if one.context + one.generated <= most]
    if not fitting:
        raise BenchmarkError(f"No request fits the model's context of {most:,} tokens; give others.")
    return fitting, len(arrivals) - len(fitting)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _lengths(arrivals: "list[Arrival]") -> str:
    asked, answered = (sum(numbers) / len(arrivals) for numbers in list(zip(*map(astuple, arrivals), strict=True))[1:])
    return f"prompts of {asked:,.0f} tokens and answers of {answered:,.0f} in the mean"


def _table(found: "FleetOutlook", alone: "tuple[Percentiles, Percentiles]", users: int, cost: float | None) -> Table:
    def both(one: "Percentiles") -> str:
        return f"{output.duration(one.p50)}, {output.duration(one.p99)}"

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    rows = [
        ("machines", f"{found.machines:,}"),
        ("users a machine", f"{users / found.machines:,.1f}"),
        ("memory a machine", output.megabytes(found.memory)),
        ("network a machine, mean", f"{found.traffic * 8 / 1e6:,.1f} Mbit/s"),
        ("answering", f"{found.busy:.0%} of the time"),
        ("tokens of all machines", f"{found.tokens:,.1f}/s"),
        ("first token, p50 and p99", both(found.first)),
        ("  of a lone user", both(alone[0])),
        ("later tokens, p50 and p99", both(found.token)),
        ("  of a lone user", both(alone[1])),
    ]
    if cost is not None:
        rows.append(("cost an hour", f"{cost:,.2f}"))
        rows.append(("cost of a million tokens", f"{cost / (found.tokens * 3600) * 1e6:,.2f}"))
    for row in rows:
        table.add_row(*row)
    return table

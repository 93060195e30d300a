"""`confide plan`: what protecting a model would cost, before anything runs, and what machines its users would need."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from confide.cli import output
from confide.cli.options import Json
from confide.cli.plan_machines import Machines, PlacementOut, PlannedServers, plan_machines
from confide.ledger.licences import DEFAULT_DISCLOSURE

POOL_TOKENS = 256
"""Tokens ahead that the memory of a client's pool is given for."""

if TYPE_CHECKING:
    from confide.evaluate.cost_model import Cost, Network, Rates
    from confide.evaluate.plan import Outlook, Warned
    from confide.models.source import Source


def command(
    model: Annotated[
        str | None,
        typer.Argument(
            help="`demo`, a local Hugging Face folder, or a hub id; with --machines alone, the server folder of "
            "`confide split`. No weight is read."
        ),
    ] = None,
    model_shape: Annotated[
        str | None, typer.Option(help="Instead of a model, published dimensions: gpt2-small, 1b, 8b or 70b.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens to plan for, of prompts and answers together.", min=1)] = 4096,
    prompt: Annotated[int, typer.Option(help="Tokens of the prompt before the first token.", min=1)] = 128,
    rtt: Annotated[float, typer.Option(help="Milliseconds of a round trip to the server.", min=0)] = 0.0,
    bandwidth: Annotated[
        float | None, typer.Option(help="Mbit/s to and from the server; loopback's without.", min=0.001)
    ] = None,
    users: Annotated[
        int | None, typer.Option(help="Plan the machines for so many users at once, by simulation.", min=1, max=10**9)
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(help="With --users: hybrid, for layer servers, or enclave, for servers of sealed models; hybrid."),
    ] = None,
    protect: Annotated[str | None, typer.Option(help="With --users: what to protect, as in `split`; all.")] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="With --users: CSV of TIMESTAMP,ContextTokens,GeneratedTokens that says how requests come; made up "
            "without, from --prompt and --answer.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    answer: Annotated[int | None, typer.Option(help="With --users: the median answer's tokens; 128.", min=1)] = None,
    per_hour: Annotated[
        float | None, typer.Option(help="With --users: requests of one user in an hour; 10.", min=0.001, max=10**5)
    ] = None,
    machines: Machines = None,
    server: PlannedServers = None,
    out: PlacementOut = None,
    p99: Annotated[
        float | None,
        typer.Option(help="With --users: seconds of a later token, of 99 in 100; twice a lone user's.", min=0.001),
    ] = None,
    p99_first: Annotated[
        float | None,
        typer.Option(help="With --users: seconds to the first token, of 99 in 100; twice a lone user's.", min=0.001),
    ] = None,
    balancing: Annotated[
        str | None, typer.Option(help="With --users: how a request finds its machine, least-loaded or random.")
    ] = None,
    price: Annotated[float | None, typer.Option(help="With --users: of a machine for an hour.", min=0)] = None,
    seed: Annotated[int | None, typer.Option(help="With --users: of everything that is left to chance; 0.")] = None,
    json: Json = False,
) -> None:
    """Say what protecting a model would cost, for each choice of layers: time, network, hint, and what is disclosed.

    With --users: how many machines these need, and what they wait. With --machines alone: share the layer groups of a
    split model out, and write the placement that clients connect by.
    """
    from confide.cli.plan_fleet import FleetOptions, plan_fleet
    from confide.evaluate.cost_model import Network

    shared_out, simulated = (machines, None) if users is None else (None, machines)
    fleet = FleetOptions(
        users, mode, protect, trace, answer, per_hour, simulated, p99, p99_first, balancing, price, seed, prompt
    )
    fleet.require_usable()
    if shared_out is not None:
        if model is None or model_shape is not None:
            raise typer.BadParameter("--machines shares out a split model; name its server folder, or give --users")
        plan_machines(Path(model), shared_out, server or [], out, json=json)
        return
    if server or out:
        raise typer.BadParameter("--server and --out go with --machines, and not with --users")
    output.quiet_transformers()
    network = Network(rtt / 1e3, math.inf if bandwidth is None else bandwidth * 1e6 / 8)
    source = _source(model, model_shape)
    settings = {"model": source.name, "prompt": prompt, "rtt_ms": rtt, "bandwidth_mbit": bandwidth}
    if users is None:
        _plan_choices(source, network, settings | {"tokens": tokens}, tokens=tokens, prompt=prompt, json=json)
    else:
        plan_fleet(source, network, settings, fleet, json=json)


def _source(model: str | None, shape: str | None) -> "Source":
    from confide.evaluate.shapes import SHAPES
    from confide.models.source import Source, open_model

    if model is not None and shape is None:
        return open_model(model)
    if model is not None or shape is None:
        raise typer.BadParameter("name a MODEL, or its --model-shape")
    if shape not in SHAPES:
        raise typer.BadParameter(f"there is no shape {shape!r}; there are {', '.join(SHAPES)}")
    return Source(shape, "", SHAPES[shape])


def _plan_choices(
    source: "Source", network: "Network", settings: dict[str, Any], *, tokens: int, prompt: int, json: bool
) -> None:
    from confide.evaluate.calibrate import calibrate
    from confide.evaluate.cost_model import Network
    from confide.evaluate.plan import make_plan, warnings

    if prompt > tokens:
        raise typer.BadParameter("--tokens counts the prompt's too, so it cannot be less than --prompt")
    with output.messages.status("measuring this machine, about five seconds"):
        rates = calibrate()
        outlooks = make_plan(source, rates, network, tokens=tokens, prompt=prompt)
    warned = warnings(outlooks, network, tokens)
    if json:
        output.result(settings | _as_json(outlooks, warned, rates))
        return
    output.console.print(_table(outlooks, tokens, prompt))
    output.console.print()
    for warning in warned:
        output.console.print(f"[yellow]![/] {escape(warning.message)}")
    for remark in _remarks(remote=network != Network()):
        output.note(remark)
    one_layer = escape(outlooks[0].choice.protect)
    output.messages.print(f"[dim]One layer is --protect '{one_layer}'[/]", soft_wrap=True)  # in one piece, to copy


def _as_json(outlooks: Sequence["Outlook"], warned: Sequence["Warned"], rates: "Rates") -> dict[str, Any]:
    from confide.rlwe.packed import chosen_kernel

    return {
        "choices": [
            {
                "name": one.choice.name,
                "protect": one.choice.protect,
                "protected_parameters": one.choice.cut.protected_weights,
                "protected_share": one.share,
                "round_trips_per_token": one.round_trips,
                "work_ahead": asdict(one.ahead),
                "prompt": asdict(one.prompt),
                "token": asdict(one.token),
                "hint_bytes": one.choice.cut.hint_bytes,
                "pool_bytes": one.choice.cut.pool_bytes(POOL_TOKENS),
                "server_bytes": one.choice.cut.server_bytes,
                "disclosed": asdict(one.disclosure),
            }
            for one in outlooks
        ],
        "warnings": [asdict(warning) for warning in warned],
        "rates": asdict(rates),
        "int8_by": chosen_kernel(),
    }


def _table(outlooks: Sequence["Outlook"], tokens: int, prompt: int) -> Table:
    """A row for each choice, or a column where the terminal is too narrow for that: no unit is ever cut off."""
    headings: dict[str, Callable[[Outlook], str]] = {
        "weights\nprotected": lambda one: f"{_count(one.choice.cut.protected_weights)}\n{one.share:.1%}",
        "trips\na token": lambda one: f"{one.round_trips:,}",
        f"first token,\nprompt {prompt:,}": lambda one: _cost(one.prompt),
        "later\ntokens": lambda one: _cost(one.token),
        "ahead; hint,\nonce": lambda one: (
            f"{output.duration(one.ahead.seconds)}\n{output.megabytes(one.choice.cut.hint_bytes)}"
        ),
        f"disclosed by\n{tokens:,} tokens": _disclosed,
        "licence\nlasts": lambda one: f"{one.disclosure.licence_tokens:,}\ntokens",
    }
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("--protect", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for one in outlooks:
        table.add_row(one.choice.name, *(tell(one) for tell in headings.values()), end_section=True)
    unbounded = output.console.options.update_width(1 << 12)
    if Measurement.get(output.console, unbounded, table).maximum <= output.console.width:
        return table
    table = Table(box=None, pad_edge=False)
    table.add_column("--protect", no_wrap=True)
    for one in outlooks:
        table.add_column(one.choice.name, justify="right", no_wrap=True)
    for heading, tell in headings.items():
        table.add_row(heading, *(tell(one) for one in outlooks))
    return table


def _disclosed(one: "Outlook") -> str:
    said = one.disclosure
    colour = "red" if said.share >= DEFAULT_DISCLOSURE else "green"
    return f"{_count(said.bits)}bit\n[{colour}]{said.share:,.0%}[/]"


def _remarks(*, remote: bool) -> Iterator[str]:
    from confide.rlwe.packed import chosen_kernel

    yield (
        "Bytes are exact; times are estimates from a short measurement, for "
        + ("a server as fast as this machine, behind that network." if remote else "a server on this machine.")
        + f" It multiplies bytes by {chosen_kernel()}, which is the fastest exact way here."
    )
    yield (
        "The work ahead of a token, of both parties, is done in pauses, and that of the first ones while the model "
        "loads. The hint comes with the shell, once."
    )
    yield (
        "The share disclosed is of what solves the layer that is solved first, if its weights have all of 8 bits; by "
        f"default, a licence lasts until {DEFAULT_DISCLOSURE:.0%} of that is disclosed."
    )


def _cost(cost: "Cost") -> str:
    return f"{output.duration(cost.seconds)}\n{output.megabytes(cost.bytes)}"


def _count(number: float) -> str:
    """Such as 4.72 M."""
    for unit, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number:,} "

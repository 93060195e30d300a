"""`confide cluster`: servers on one machine or on a Ray cluster, as many as there is work for."""

import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from confide.cli import output
from confide.cli.options import Json
from confide.cluster.ray_settings import remembered, set_before_ray, started_here
from confide.errors import ClusterUnavailable

app = typer.Typer(name="cluster", help="Servers on one machine or on a Ray cluster.", no_args_is_help=True)

OnRay = Annotated[
    str | None,
    typer.Option(
        "--ray",
        help="The Ray cluster's address, auto for the one on this machine; without, that of `confide cluster up` here.",
        metavar="ADDRESS",
    ),
]


@app.callback()
def cluster() -> None:
    """Servers on one machine or on a Ray cluster."""


@app.command("up")
def up(
    file: Annotated[Path, typer.Argument(help="TOML: which servers, and how many.", metavar="FILE")],
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            help="The Ray cluster's address, auto for the one on this machine; without, one is started here, and ends "
            "with this command.",
            metavar="ADDRESS",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Start what a file says, or change what runs to that: what changed is replaced one by one, what went is ended."""
    from confide.cluster.configuration import read_cluster

    servers = read_cluster(file)
    set_before_ray(ray)
    from confide.cluster.ray_cluster import connected, take_down, want

    with connected(ray) as address:
        want(servers)
        if ray is not None:
            found = _settled()
            _show(found, json=json)
            raise typer.Exit(any(state.startswith("failed") for state in found["states"].values()))
        try:
            with remembered(address):
                _show(_settled(), json=json)
                if not json:
                    output.console.print("Ctrl-C stops them all")
                _wait_for_a_signal()
        finally:
            with suppress(ClusterUnavailable):  # `confide cluster down` was quicker
                take_down()


@app.command("status")
def status(ray: OnRay = None, json: Json = False) -> None:
    """Show which servers run, where they are, and how much they have to do."""
    ray = ray or started_here()
    set_before_ray(ray)
    from confide.cluster.ray_cluster import connected, shown

    with connected(ray):
        _show(shown(), json=json)


@app.command("down")
def down(ray: OnRay = None, json: Json = False) -> None:
    """End all of them, once their answers have ended."""
    ray = ray or started_here()
    set_before_ray(ray)
    from confide.cluster.ray_cluster import connected, take_down

    with connected(ray), output.messages.status("[dim]stopping"):
        names = take_down()
    if json:
        output.result({"stopped": names})
    else:
        output.console.print(f"Stopped {escape(', '.join(names))}", soft_wrap=True)


def _wait_for_a_signal() -> None:
    """Ctrl-C, or what a service manager sends."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    while not ended.wait(1):  # a wait without end would not notice
        pass


def _settled() -> dict[str, Any]:
    """What runs, once each server does, or has failed to."""
    from confide.cluster.ray_cluster import shown

    with output.messages.status("[dim]starting") as status:
        while True:
            found = shown()
            waiting = [name for name, state in found["states"].items() if state in ("starting", "changing", "stopping")]
            if not waiting:
                return found
            status.update(f"[dim]starting {escape(', '.join(waiting))}")
            time.sleep(0.5)


def _show(found: dict[str, Any], *, json: bool) -> None:
    if json:
        output.result(found)
        return
    table = Table(box=None, pad_edge=False)
    for name in ("server", "address"):
        table.add_column(name, overflow="fold")
    table.add_column("load", justify="right")
    for one in found["running"]:
        table.add_row(one["server"], escape(one["url"]), f"{one['load']:g}")
    output.console.print(table)
    for name, state in found["states"].items():
        if state != "running":
            output.console.print(f"{name}: {escape(state)}", soft_wrap=True)

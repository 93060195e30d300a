"""`confide tee`: trusted execution environments, and simulated ones for development."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from confide.cli import output
from confide.cli.options import Json

WARNING = "SIMULATED: this protects nothing. It is for development and tests; never put real data behind it."

app = typer.Typer(name="tee", help="Trusted execution environments.", no_args_is_help=True)
simulate = typer.Typer(name="simulate", help="A simulated environment, for development.", no_args_is_help=True)
app.add_typer(simulate)


@app.callback()
def tee() -> None:
    """Trusted execution environments."""


@simulate.callback()
def simulated() -> None:
    """A simulated environment, for development. It protects nothing."""


@simulate.command("init")
def init(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.", metavar="DIR")],
    json: Json = False,
) -> None:
    """Make a simulated TEE: a root of its own, and a machine that makes evidence under it."""
    from confide.attest.evidence import Family
    from confide.attest.simulated import SimulatedTee

    output.messages.print(f"[bold red]{WARNING}[/]")
    tee = SimulatedTee.create(folder)
    if json:
        output.result({"simulated": True, "folder": str(folder), "root": str(folder / "root.pem")})
        return
    output.console.print(f"A simulated {Family.TDX} machine: [bold]{escape(str(folder))}[/]")
    output.console.print(f"Its root's fingerprint:  {tee.fingerprint}", soft_wrap=True)

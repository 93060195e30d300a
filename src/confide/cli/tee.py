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


@simulate.command("quote")
def quote(
    folder: Annotated[Path, typer.Argument(help="What `init` made.", metavar="DIR")],
    out: Annotated[Path, typer.Option(help="The quote to write.")],
    collateral: Annotated[Path, typer.Option(help="The collateral to write that goes with it.")],
    report_data: Annotated[str, typer.Option(help="What the quote signs: up to 64 bytes in hexadecimal.")] = "",
    json: Json = False,
) -> None:
    """Sign a quote, and make collateral that is good for the next days, to try verification with."""
    from confide.attest.simulated import SimulatedTee

    try:
        data = bytes.fromhex(report_data).ljust(64, b"\0")
    except ValueError:
        raise typer.BadParameter("--report-data is hexadecimal") from None
    if len(data) > 64:
        raise typer.BadParameter("--report-data is at most 64 bytes")
    tee = SimulatedTee.open(folder)
    output.messages.print(f"[bold red]{WARNING}[/]")
    out.write_bytes(tee.quote(data).raw)
    collateral.write_bytes(tee.collateral().documents["dcap"])
    if json:
        output.result({"simulated": True, "quote": str(out), "collateral": str(collateral)})

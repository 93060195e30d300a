"""`confide ledger`: backups of what a layer server must not forget, and going on from one."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from confide.cli import output
from confide.cli.options import Json, ServerPlace
from confide.ledger import backup as work
from confide.ledger.address import parse_place
from confide.ledger.place import state_of

app = typer.Typer(name="ledger", help="Backups of a layer server's ledger.", no_args_is_help=True)


@app.command("backup")
def backup(
    server: ServerPlace,
    out: Annotated[Path, typer.Option(help="The file to write; it must not exist.")],
    json: Json = False,
) -> None:
    """Write licences and usage to a file, while the server goes on."""
    work.backup(state_of(parse_place(server)), out)
    if json:
        output.result({"backup": str(out), "bytes": out.stat().st_size})
    else:
        output.console.print(f"Backup written to [bold]{escape(str(out))}[/].", soft_wrap=True)


@app.command("restore")
def restore(
    server: ServerPlace,
    source: Annotated[
        Path | None, typer.Option("--from", help="The backup; without, the ledger that lies in the folder.")
    ] = None,
    json: Json = False,
) -> None:
    """Go on from a backup, or from the ledger of a folder that was copied, with the server stopped."""
    restored = work.restore(state_of(parse_place(server)), source)
    if json:
        output.result(
            {
                "licences": restored.licences,
                "tokens_used": restored.tokens_used,
                "known_until": output.utc(restored.known_until) if restored.known_until else None,
            }
        )
        return
    counted = f"{restored.licences} licence{'' if restored.licences == 1 else 's'}"
    output.console.print(f"Restored {counted} with {restored.tokens_used:,} tokens used.")
    if restored.known_until:
        output.console.print(f"What was used after {output.utc(restored.known_until)} is unknown and not billed.")


@app.command("accept-clock")
def accept_clock(server: ServerPlace, json: Json = False) -> None:
    """Take the present time for right, although the ledger's last record is later."""
    work.accept_clock(state_of(parse_place(server)))
    if json:
        output.result({"accepted": output.utc(time.time())})
    else:
        output.console.print("Accepted; the server can start.")

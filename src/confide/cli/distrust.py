"""`confide distrust`: the servers whose answers were wrong, and forgiving them."""

from typing import Annotated

import msgspec
import typer
from rich.markup import escape

from confide.cli import output
from confide.cli.options import Json


def command(
    clear: Annotated[bool, typer.Option("--clear", help="Connect to all of them again.")] = False,
    json: Json = False,
) -> None:
    """List the servers that you refuse because an answer was wrong, or clear the list."""
    from confide.hybrid.client.refusals import RefusalList

    refused = RefusalList()
    entries = [] if clear else refused.entries()
    if clear:
        refused.clear()
    if json:
        output.result({"distrusted": msgspec.to_builtins(entries)})
        return
    for entry in entries:
        output.console.print(
            f"[bold]{escape(entry.server)}[/]  {escape(entry.time)}  {escape(entry.group)} "
            f"({escape(', '.join(entry.layers))}), token {entry.token}"
        )
    if not entries:
        output.note("No server is refused.")

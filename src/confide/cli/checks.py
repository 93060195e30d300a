"""`confide checks`: a licensee's own secret for checking answers."""

from pathlib import Path
from typing import Annotated

import typer

from confide.cli import output
from confide.cli.options import Json
from confide.errors import ConfideError


def command(
    package: Annotated[
        Path, typer.Argument(help="The server folder that `confide split` wrote.", metavar="SERVER_FOLDER")
    ],
    out: Annotated[Path, typer.Option(help="File to write, for one licensee; it must not exist.")],
    json: Json = False,
) -> None:
    """Make check vectors with a fresh secret: once for each licensee, and never for whoever runs the server."""
    if out.exists():
        raise ConfideError(f"{out} exists already; choose another name, or remove it first.")
    from confide.packages.checks import checks_for, write_checks
    from confide.packages.server_package import ServerPackage

    checks = checks_for(ServerPackage.open(package))
    write_checks(out, checks)
    if json:
        output.result({"checks": str(out), "groups": len(checks.vectors), "bytes": out.stat().st_size})
    else:
        output.console.print(
            f"Wrote [bold]{out}[/]: check vectors of {len(checks.vectors)} layer groups. "
            "Put it in the client folder as checks.msgpack, or give it with --checks."
        )

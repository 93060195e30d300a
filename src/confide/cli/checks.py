"""`confide checks`: a licensee's own secret for checking answers."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from confide.cli import output
from confide.cli.options import Json, OwnerFile
from confide.errors import ConfideError
from confide.packages.manifest import PackageKind
from confide.packages.signing import open_package


def command(
    package: Annotated[
        Path, typer.Argument(help="The server folder that `confide split` wrote.", metavar="SERVER_FOLDER")
    ],
    out: Annotated[Path, typer.Option(help="File to write, for one licensee; it must not exist.")],
    licence: Annotated[str, typer.Option(help="Name or id of the licence it is for.")] = "",
    serial: Annotated[int, typer.Option(help="Which one of this licence's sets it is.", min=0, max=2**32 - 1)] = 0,
    owner: OwnerFile = None,
    json: Json = False,
) -> None:
    """Make check vectors with a fresh secret: once for each licensee, and never for whoever runs the server."""
    if out.exists():
        raise ConfideError(f"{out} exists already; choose another name, or remove it first.")
    from confide.cli.owner import read_key
    from confide.packages.checks import checks_for, write_checks
    from confide.packages.server_package import ServerPackage

    key = read_key(owner)
    signed = ServerPackage(package, open_package(package, PackageKind.SERVER, {key.public}))
    checks = checks_for(signed, licence, serial)
    write_checks(out, checks, key)
    if json:
        output.result(
            {
                "checks": str(out),
                "groups": len(checks.vectors),
                "bytes": out.stat().st_size,
                "licence": licence,
                "serial": serial,
            }
        )
    else:
        output.console.print(
            f"Wrote [bold]{escape(str(out))}[/]: check vectors of {len(checks.vectors)} layer groups. "
            "Put it in the client folder as checks.msgpack, or give it with --checks."
        )

"""The options that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]
Shell = Annotated[Path, typer.Argument(help="The client folder that `confide split` wrote.", metavar="SHELL")]
Packs = Annotated[Path | None, typer.Option(help="Folder of the mask packs; SHELL/packs by default.")]
Checks = Annotated[Path | None, typer.Option(help="Check vectors of the model; SHELL/checks.msgpack by default.")]
InsecureNoTls = Annotated[
    bool, typer.Option("--insecure-no-tls", help="Allow a plain connection beyond this machine. Not for production.")
]

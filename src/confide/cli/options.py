"""The options that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]
Shell = Annotated[Path, typer.Argument(help="The client folder that `confide split` wrote.", metavar="SHELL")]
Packs = Annotated[Path | None, typer.Option(help="Folder of the mask packs; SHELL/packs by default.")]
InsecureNoTls = Annotated[
    bool, typer.Option("--insecure-no-tls", help="Allow a plain connection beyond this machine. Not for production.")
]
Licence = Annotated[
    str, typer.Option(envvar="CONFIDE_LICENCE", show_default=False, help="The licence key that the model's owner gave.")
]
State = Annotated[Path, typer.Argument(help="The layer server's state folder.", metavar="STATE")]

"""The options that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]
Shell = Annotated[Path, typer.Argument(help="The client folder that `confide split` wrote.", metavar="SHELL")]
OwnerFile = Annotated[
    Path | None, typer.Option("--owner", help="The owner's private key file; owner.key in your Confide folder if not.")
]
TrustedOwner = Annotated[
    str | None,
    typer.Option("--owner", help="Public key that must have signed the shell; any of `confide owner list` without."),
]
Packs = Annotated[Path | None, typer.Option(help="Folder of the mask packs; SHELL/packs by default.")]
InsecureNoTls = Annotated[
    bool, typer.Option("--insecure-no-tls", help="Allow a plain connection beyond this machine. Not for production.")
]
Licence = Annotated[
    str, typer.Option(envvar="CONFIDE_LICENCE", show_default=False, help="The licence key that the model's owner gave.")
]
State = Annotated[Path, typer.Argument(help="The layer server's state folder.", metavar="STATE")]

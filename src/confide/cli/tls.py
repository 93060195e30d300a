"""`confide tls`: certificates for servers without a public name."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from confide.cli import output
from confide.cli.options import Json

app = typer.Typer(name="tls", help="Certificates for servers without a public name.", no_args_is_help=True)


@app.callback()
def tls() -> None:
    """Certificates for servers without a public name."""


@app.command("make-local")
def make_local(
    out: Annotated[Path, typer.Option(help="Where to write ca.pem, server.pem and server.key.")] = Path("tls"),
    name: Annotated[
        list[str] | None, typer.Option(help="A host name or address of the server, besides this machine's own.")
    ] = None,
    days: Annotated[int, typer.Option(help="How long the certificate is good for.", min=1, max=3650)] = 365,
    json: Json = False,
) -> None:
    """Make a certificate for a layer server, and an authority of its own that clients trust with --ca.

    The authority's key is not kept, so nobody can make another certificate for it. A new certificate comes with a new
    ca.pem.
    """
    from confide.net.tls import make_certificates

    paths = make_certificates(name or [], days=days).write(out)
    if json:
        output.result(dict(zip(("ca", "certificate", "key"), map(str, paths), strict=True)))
        return
    ca, chain, key = (escape(str(path)) for path in paths)
    output.console.print(f"For the server:  confide serve ... --tls-cert [bold]{chain}[/] --tls-key [bold]{key}[/]")
    output.console.print(f"For clients:     give them [bold]{ca}[/], for --ca   (the authority's key is not kept)")

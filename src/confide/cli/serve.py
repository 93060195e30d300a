"""`confide serve`: serve what a package's manifest says it is."""

from pathlib import Path
from typing import Annotated

import typer

from confide.cli import output
from confide.cli.options import InsecureNoTls, Json


def command(
    package: Annotated[Path, typer.Argument(help="The server folder that `confide split` wrote.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8470,
    state: Annotated[
        Path | None, typer.Option(help="Folder of the ledger and the server key; PACKAGE/state by default.")
    ] = None,
    record: Annotated[
        Path | None, typer.Option(help="Append everything the server sees online to this file, for audits.")
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="PEM file of the server's certificate chain; with it, --host may be public.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of the certificate's private key.")] = None,
    insecure_no_tls: InsecureNoTls = False,
    json: Json = False,
) -> None:
    """Serve the protected layers of a model. Sees uniform numbers, answers with masked products."""
    if (tls_cert is None) != (tls_key is None):
        raise typer.BadParameter("give both --tls-cert and --tls-key")
    from confide.hybrid.record import Recorder
    from confide.hybrid.server import load_service, require_loopback, serve
    from confide.hybrid.tls import server_context

    tls = server_context(tls_cert, tls_key) if tls_cert and tls_key else None
    if tls is None:
        require_loopback(host, insecure_no_tls=insecure_no_tls)
    recorder = Recorder(record) if record else None
    service = load_service(package, state or package / "state", recorder)

    def ready(url: str) -> None:
        if json:
            output.result({"url": url, "groups": len(service.manifest.groups), "profile": service.manifest.profile})
        else:
            output.console.print(
                f"Serving {len(service.manifest.groups)} layer groups ({service.manifest.model_type}, "
                f"{service.manifest.profile}) at [bold]{url}[/]   Ctrl-C stops"
            )

    serve(service, host, port, tls=tls, on_ready=ready)

"""`confide serve`: serve what a package's manifest says it is."""

import logging
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from confide.cli import output
from confide.cli.options import InsecureNoTls, Json
from confide.hybrid.limits import Limits
from confide.logs import JsonLines, TextLines
from confide.loopback import is_loopback, require_loopback


class LogFormat(StrEnum):
    """How log lines look."""

    TEXT = "text"
    JSON = "json"


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
    metrics_port: Annotated[
        int | None, typer.Option(help="Serve /metrics and /health to this machine on this port.", min=1, max=65535)
    ] = None,
    connections: Annotated[int, typer.Option(help="Connections at a time.", min=1)] = Limits.connections,
    megabytes_per_second: Annotated[
        int, typer.Option(help="What one connection may send in a second.", min=1)
    ] = Limits.bytes_per_second >> 20,
    log: Annotated[LogFormat, typer.Option(help="Log lines for people or for machines.")] = LogFormat.TEXT,
    insecure_no_licences: Annotated[
        bool, typer.Option("--insecure-no-licences", help="Answer anyone on this machine. Gives private weights away.")
    ] = False,
    insecure_no_tls: InsecureNoTls = False,
    json: Json = False,
) -> None:
    """Serve the protected layers of a model to licensed clients. Sees uniform numbers, answers with masked products."""
    if (tls_cert is None) != (tls_key is None):
        raise typer.BadParameter("give both --tls-cert and --tls-key")
    from confide.hybrid.record import Recorder
    from confide.hybrid.server import load_service, serve
    from confide.hybrid.tls import server_context

    if insecure_no_licences and not is_loopback(host):
        raise typer.BadParameter("--insecure-no-licences is for loopback hosts; make licences with `confide licence`")
    log_to_standard_error(log)
    tls = server_context(tls_cert, tls_key) if tls_cert and tls_key else None
    if tls is None:
        require_loopback(host, insecure_no_tls=insecure_no_tls)
    recorder = Recorder(record) if record else None
    service = load_service(package, state or package / "state", recorder, insecure_no_licences=insecure_no_licences)

    def ready(url: str) -> None:
        if json:
            output.result({"url": url, "groups": len(service.manifest.groups), "profile": service.manifest.profile})
        else:
            output.console.print(
                f"Serving {len(service.manifest.groups)} layer groups ({service.manifest.model_type}, "
                f"{service.manifest.profile}) at [bold]{url}[/]   Ctrl-C stops"
            )

    limits = Limits(connections=connections, bytes_per_second=megabytes_per_second << 20)
    serve(service, host, port, limits=limits, tls=tls, metrics_port=metrics_port, on_ready=ready)


def log_to_standard_error(form: LogFormat) -> None:
    """For servers: what happens, never what travels."""
    # Each client's coming and going, and a server's own, is for machines to read.
    level = logging.INFO if form is LogFormat.JSON else logging.WARNING
    handler = logging.StreamHandler()
    handler.setLevel(level)  # uvicorn sets its own loggers' level
    handler.setFormatter(JsonLines() if form is LogFormat.JSON else TextLines("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("confide").setLevel(level)

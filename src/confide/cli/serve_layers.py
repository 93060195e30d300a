"""Serving the protected layers of a hybrid model: what `confide serve` does for a server folder."""

from dataclasses import dataclass
from pathlib import Path

import typer
from rich.markup import escape

from confide.cli import output
from confide.cli.serve import Listening
from confide.hybrid.server.limits import Limits
from confide.net.loopback import is_loopback


@dataclass(frozen=True)
class LayerOptions:
    """As the command's options."""

    state: Path | None
    record: Path | None
    megabytes_per_second: int | None
    insecure_no_licences: bool


def serve_layers(package: Path, listening: Listening, options: LayerOptions, *, json: bool) -> None:
    """Serve until a signal comes."""
    from confide.hybrid.server.ledger.place import choose_state
    from confide.hybrid.server.record import Recorder
    from confide.hybrid.server.server import load_service, serve

    if options.insecure_no_licences and not is_loopback(listening.host):
        raise typer.BadParameter("--insecure-no-licences is for loopback hosts; make licences with `confide licence`")
    tls = listening.tls()
    recorder = Recorder(options.record) if options.record else None
    state = choose_state(package, options.state)
    service = load_service(package, state, recorder, insecure_no_licences=options.insecure_no_licences)

    def ready(url: str) -> None:
        if json:
            output.result({"url": url, "groups": len(service.manifest.groups), "profile": service.manifest.profile})
        else:
            output.console.print(
                f"Serving {len(service.manifest.groups)} layer groups ({escape(service.manifest.model_type)}, "
                f"{service.manifest.profile}) at [bold]{url}[/]   Ctrl-C stops"
            )

    megabytes = options.megabytes_per_second or Limits.bytes_per_second >> 20
    limits = Limits(connections=listening.connections or Limits.connections, bytes_per_second=megabytes << 20)
    serve(
        service,
        listening.host,
        listening.port,
        limits=limits,
        tls=tls,
        metrics_port=listening.metrics_port,
        on_ready=ready,
    )

"""Serving the protected layers of a hybrid model: what `confide serve` does for a server folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.markup import escape

from confide.cli import output
from confide.cli.serve import Listening
from confide.hybrid.groups import Groups
from confide.hybrid.server.limits import Limits
from confide.ledger.address import DatabaseAddress, Place
from confide.net.loopback import is_loopback


@dataclass(frozen=True)
class LayerOptions:
    """As the command's options."""

    state: Path | None
    ledger: str | None
    groups: str | None
    record: Path | None
    megabytes_per_second: int | None
    insecure_no_licences: bool


def serve_layers(packages: Mapping[str, Path], listening: Listening, options: LayerOptions, *, json: bool) -> None:
    """Serve until a signal comes. packages: by the names of their models."""
    from confide.hybrid.server.record import Recorder
    from confide.hybrid.server.server import load_services, serve
    from confide.ledger.place import choose_state, state_of

    if options.insecure_no_licences and not is_loopback(listening.host):
        raise typer.BadParameter("--insecure-no-licences is for loopback hosts; make licences with `confide licence`")
    if options.record and len(packages) > 1:
        raise typer.BadParameter("--record is for one model, whose layer groups it names by number")
    if options.groups and len(packages) > 1:
        raise typer.BadParameter("--groups is for one model, whose layer groups it names by number")
    groups = Groups.parse(options.groups) if options.groups else None
    tls = listening.tls()
    recorder = Recorder(options.record) if options.record else None
    chosen = DatabaseAddress.parse(options.ledger) if options.ledger else options.state
    if chosen is None and len({_absolute(state_of(package)) for package in packages.values()}) > 1:
        raise typer.BadParameter(
            "several models have one ledger; say with --state or --ledger where it is, or shall be"
        )
    (state,) = {_absolute(choose_state(package, chosen)) for package in packages.values()}
    services = load_services(
        packages, state, recorder, groups=groups, insecure_no_licences=options.insecure_no_licences
    )

    def ready(url: str) -> None:
        models = [
            {
                "name": name,
                "url": f"{url}/{name}",
                "groups": len(one.manifest.groups),
                "served_groups": str(one.groups),
                "profile": one.manifest.profile,
            }
            for name, one in services.items()
        ]
        if json:
            facts = ("groups", "served_groups", "profile")
            alone = {name: models[0][name] for name in facts} if len(models) == 1 else {}
            output.result({"url": url} | alone | {"models": models})
            return
        for model, one in zip(models, services.values(), strict=True):
            part = f"the layer groups {one.groups} of " if groups else ""
            output.console.print(
                f"Serving {part}{model['groups']} layer groups "
                f"({escape(one.manifest.model_type)}, {model['profile']}) at "
                f"[bold]{url if len(models) == 1 else model['url']}[/]   Ctrl-C stops"
            )

    megabytes = options.megabytes_per_second or Limits.bytes_per_second >> 20
    limits = Limits(connections=listening.connections or Limits.connections, bytes_per_second=megabytes << 20)
    serve(
        services,
        listening.host,
        listening.port,
        limits=limits,
        tls=tls,
        metrics_port=listening.metrics_port,
        on_ready=ready,
    )


def _absolute(place: Place) -> Place:
    return place.resolve() if isinstance(place, Path) else place

"""Serving a guard from inside a trusted execution environment: what `confide serve` does for such a package."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.markup import escape

from confide.cli import output
from confide.cli.serve import Listening
from confide.cli.serve_sealed import Prepared, TeeOptions, prepared

if TYPE_CHECKING:
    from confide.packages.guard import GuardPackage


def serve_guard(package: Path, listening: Listening, options: TeeOptions, *, json: bool) -> None:
    """Close this process's ways out but for the model's, and hand on what has no phrase of the rules until a signal."""
    import msgspec

    from confide.enclave.api.guard import Guarding, guard_app
    from confide.enclave.api.public import private_app
    from confide.enclave.api.server import CONNECTIONS, serve_app
    from confide.packages.guard import GuardPackage

    guard = GuardPackage.open(package)
    if options.graph is None or len(options.urls()) != 1:
        raise typer.BadParameter("a guard stands before one model of a graph: give --graph, --service and --neighbour")
    with prepared(listening, options, sealed=False) as place:
        workload = place.workload
        workload.model_digest = guard.manifest.digest
        workload.configuration = msgspec.structs.replace(workload.configuration, egress=place.ways.stated)
        (edge,) = place.joined.edges.values()
        guarding = Guarding(guard, edge.client())

        background: list[asyncio.Task[None]] = []  # the loop ends them; kept, or they could be collected

        async def keep_certificate() -> None:
            if place.own_tls is not None:
                background.append(asyncio.create_task(place.own_tls.keep_current()))

        serve_app(
            guard_app(
                workload,
                guarding,
                tls_ends_here=options.ra_tls,
                neighbours=place.joined.neighbours,
                graph=place.joined.shown,
            ),
            place.bound,
            place.tls,
            lambda url: _announce(url, guard, place, json=json),
            before=keep_certificate,
            connections=listening.connections or CONNECTIONS,
            private=(private_app(guarding), place.private) if place.private else None,
        )


def _announce(url: str, guard: "GuardPackage", place: Prepared, *, json: bool) -> None:
    from msgspec import to_builtins

    manifest, tee, configuration = guard.manifest, place.tee, place.workload.configuration
    if json:
        output.result(
            {
                "url": url,
                "guard": manifest.name,
                "digest": manifest.digest,
                "phrases": len(manifest.phrases),
                "tee": tee.name,
                "simulated": tee.simulated,
                "configuration": to_builtins(configuration),
            }
        )
        return
    output.console.print(
        f"Guarding with {escape(manifest.name)}, {len(manifest.phrases):,} phrases, from a {tee.name} environment at "
        f"[bold]{url}[/]   Ctrl-C stops"
    )
    output.console.print(f"Rules digest  {manifest.digest}", soft_wrap=True)
    output.console.print(f"Egress        {configuration.egress}", soft_wrap=True)

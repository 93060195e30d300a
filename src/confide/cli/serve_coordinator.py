"""Serving a coordinator from inside a trusted execution environment: what `confide graph coordinate` does."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from rich.markup import escape
from rich.text import Text

from confide.cli import output
from confide.cli.serve import Listening
from confide.cli.serve_sealed import TeeOptions, prepared

if TYPE_CHECKING:
    from confide.graph.history import History


def serve_coordinator(
    history: "History",
    listening: Listening,
    options: TeeOptions,
    urls: Mapping[str, str],
    ca: Path | None,
    *,
    json: bool,
) -> None:
    """Close this process's ways out but for the services', and vouch for them until a signal. ca: as for `Edge`."""
    from confide.attest.policy_words import asked
    from confide.client.coordinating import Coordinator
    from confide.enclave.api.coordinator import Coordinating, coordinator_app
    from confide.enclave.api.server import serve_app

    with prepared(listening, options, neighbours=urls, sealed=False) as place:
        workload, tee = place.workload, place.tee
        workload.configuration = msgspec.structs.replace(workload.configuration, egress=place.ways.stated)
        coordinator = Coordinator(
            history,
            workload,
            root=tee.root,
            urls=urls,
            connectors=place.ways.neighbours,
            ca=ca,
            insecure_no_tls=listening.insecure_no_tls,
        )

        def ready(url: str) -> None:
            promise = tuple(asked(coordinator.promise))
            if json:
                configuration = msgspec.to_builtins(workload.configuration)
                said = {"url": url, "graph": history.id, "tee": tee.name, "simulated": tee.simulated}
                output.result(said | {"promise": list(promise), "configuration": configuration})
                return
            output.console.print(
                f"Vouching for {escape(history.current.manifest.name)} from a {tee.name} environment at "
                f"[bold]{url}[/]   Ctrl-C stops"
            )
            output.console.print(f"Graph  {history.id}", soft_wrap=True)
            for sentence in promise:
                output.console.print(Text(f"Promised: {sentence}"), soft_wrap=True)

        try:
            serve_app(coordinator_app(workload, Coordinating(coordinator.vouch)), place.bound, place.tls, ready)
        finally:
            coordinator.close()

"""Serving a sealed model from inside a trusted execution environment: what `confide serve` does for such a package."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from confide.cli import output
from confide.cli.files import read_file
from confide.cli.serve import Listening
from confide.cli.tee import WARNING
from confide.enclave.tee import TeeKind

if TYPE_CHECKING:
    from confide.enclave.boot import Upstream


@dataclass(frozen=True)
class ModelOptions:
    """As the command's options."""

    tee: TeeKind | None
    simulated_tee: Path | None
    keys: str | None
    keys_ca: Path | None
    ra_tls: bool
    release: Path | None
    upstream: str | None
    upstream_model: str | None
    context: int | None


def serve_model(package: Path, listening: Listening, options: ModelOptions, *, json: bool) -> None:
    """Get evidence, fetch the key, load the model, and serve it until a signal comes."""
    from confide.enclave.api.answer import Serving
    from confide.enclave.api.public import public_app
    from confide.enclave.api.server import serve_app
    from confide.enclave.boot import load_engine
    from confide.enclave.fetch_key import fetch_key
    from confide.enclave.ra_tls import ra_tls_context
    from confide.enclave.tee import open_tee
    from confide.enclave.workload import Workload
    from confide.net.tls import client_context
    from confide.packages.sealed.package import SealedPackage

    output.quiet_transformers()
    if options.ra_tls and listening.tls_cert:
        raise typer.BadParameter("give either --ra-tls or --tls-cert")
    tee = open_tee(options.tee or TeeKind.AUTO, options.simulated_tee)
    if tee.simulated:
        output.messages.print(f"[bold red]{WARNING}[/]")
    if tee.gpus:
        output.messages.print(f"[bold yellow]The GPU is not attested.[/] {tee.gpus}")
    sealed = SealedPackage.open(package)
    if options.keys is None:
        raise typer.BadParameter("a sealed model needs --keys, the address of its owner's `confide keys serve`")
    release = None if options.release is None else read_file(options.release)
    workload = Workload(tee.reader, tee.collateral, release=release)
    tls = ra_tls_context(workload) if options.ra_tls else listening.tls()
    fetch = partial(fetch_key, options.keys, tls=client_context(options.keys_ca))
    with output.counting_bytes("opening", sealed.manifest.size, quiet=json) as on_chunk:
        engine = load_engine(sealed, workload, fetch, upstream=_upstream(options), on_chunk=on_chunk)
    facts = engine.facts

    def ready(url: str) -> None:
        if json:
            output.result(
                {
                    "url": url,
                    "model": facts.model,
                    "engine": facts.engine,
                    "quantization": facts.quantization,
                    "model_digest": workload.model_digest,
                    "tee": tee.name,
                    "simulated": tee.simulated,
                }
            )
            return
        output.console.print(
            f"Serving {facts.model} ({facts.engine}, {facts.quantization}) from a {tee.name} environment at "
            f"[bold]{url}[/]   Ctrl-C stops"
        )
        output.console.print(f"Model digest  {workload.model_digest}", soft_wrap=True)

    app = public_app(workload, Serving(engine), tls_ends_here=options.ra_tls)
    serve_app(app, listening.host, listening.port, tls, ready)


def _upstream(options: ModelOptions) -> "Upstream | None":
    from confide.enclave.boot import Upstream

    given = (options.upstream, options.upstream_model, options.context)
    if not any(given):
        return None
    if options.upstream is None or options.upstream_model is None or options.context is None:
        raise typer.BadParameter("--upstream, --upstream-model and --context go together")
    return Upstream(options.upstream, options.upstream_model, options.context)

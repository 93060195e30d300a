"""Serving a sealed corpus from inside a trusted execution environment: what `confide serve` does for such a package."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from confide.cli import output
from confide.cli.serve import Listening
from confide.cli.serve_sealed import Prepared, TeeOptions, prepared

if TYPE_CHECKING:
    from confide.packages.sealed.corpus import SealedCorpus


def serve_corpus(package: Path, listening: Listening, options: TeeOptions, *, json: bool) -> None:
    """Close this process's ways out, get evidence, fetch the key, index the corpus, and answer until a signal."""
    from confide.enclave.api.public import private_app
    from confide.enclave.api.server import CONNECTIONS, serve_app
    from confide.enclave.api.vector_stores import Retrieval, retrieval_app
    from confide.enclave.corpus import load_corpus
    from confide.packages.sealed.corpus import SealedCorpus

    sealed = SealedCorpus.open(package)
    if sealed.manifest.has_models:
        output.quiet_transformers()
    with prepared(listening, options) as place:
        retrieval = Retrieval(sealed.manifest, load_corpus(sealed, place.workload, place.fetch, ways=place.ways))
        background: list[asyncio.Task[None]] = []  # the loop ends them; kept, or they could be collected

        async def keep_certificate() -> None:
            if place.own_tls is not None:
                background.append(asyncio.create_task(place.own_tls.keep_current()))

        serve_app(
            retrieval_app(
                place.workload,
                retrieval,
                tls_ends_here=options.ra_tls,
                neighbours=place.joined.neighbours,
                graph=place.joined.shown,
            ),
            place.bound,
            place.tls,
            lambda url: _announce(url, sealed, place, json=json),
            before=keep_certificate,
            connections=listening.connections or CONNECTIONS,
            private=(private_app(retrieval), place.private) if place.private else None,
        )


def _announce(url: str, sealed: "SealedCorpus", place: Prepared, *, json: bool) -> None:
    from msgspec import to_builtins

    from confide.enclave.api.vector_stores import store_id

    manifest, tee, configuration = sealed.manifest, place.tee, place.workload.configuration
    if json:
        output.result(
            {
                "url": url,
                "corpus": manifest.corpus,
                "head": manifest.head,
                "digest": manifest.digest,
                "vector_store": store_id(manifest),
                "tee": tee.name,
                "simulated": tee.simulated,
                "configuration": to_builtins(configuration),
            }
        )
        return
    output.console.print(
        f"Serving {escape(manifest.name)}, head {manifest.head}, {manifest.chunks:,} chunks, from a {tee.name} "
        f"environment at [bold]{url}[/]   Ctrl-C stops"
    )
    output.console.print(f"Head digest   {manifest.digest}", soft_wrap=True)
    output.console.print(f"Vector store  {store_id(manifest)}", soft_wrap=True)
    output.console.print(f"Egress        {configuration.egress}", soft_wrap=True)

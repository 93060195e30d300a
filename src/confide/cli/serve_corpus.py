"""Serving a sealed corpus from inside a trusted execution environment: what `confide serve` does for such a package."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer
from rich.markup import escape

from confide.cli import output
from confide.cli.serve import Listening
from confide.cli.serve_sealed import Prepared, TeeOptions, prepared

if TYPE_CHECKING:
    from confide.packages.sealed.corpus import SealedCorpus
    from confide.rag.index import Index
    from confide.rag.shelf import Shelf

_MIB: Final = 1024
"""Of users' documents, unless more is allowed."""


@dataclass(frozen=True, kw_only=True)
class CorpusOptions(TeeOptions):
    """As the command's options."""

    collections: Path | None
    collections_mib: int | None

    def stated(self, tee: str, listening: Listening) -> dict[str, str]:
        """As `TeeOptions.stated`, and whether users may keep documents of their own."""
        return super().stated(tee, listening) | ({"collections": "true"} if self.collections else {})

    def shelf(self, served: "Index") -> "Shelf | None":
        """Where users' collections are; None where they may have none. EgressOpen where documents cannot be read apart.

        served: whose models read them, too.
        """
        from confide.enclave.confinement import close_off
        from confide.rag.reader import try_out
        from confide.rag.shelf import Shelf

        if self.collections is None:
            if self.collections_mib is not None:
                raise typer.BadParameter("--collections-mib goes with --collections")
            return None
        try_out(close_off)
        return Shelf(self.collections, served, (self.collections_mib or _MIB) << 20)


def serve_corpus(package: Path, listening: Listening, options: CorpusOptions, *, json: bool) -> None:
    """Close this process's ways out, get evidence, fetch the key, index the corpus, and answer until a signal."""
    from confide.enclave.api.limits import Limits
    from confide.enclave.api.public import private_app
    from confide.enclave.api.server import CONNECTIONS, serve_app
    from confide.enclave.api.vector_stores import Retrieval, retrieval_app
    from confide.enclave.corpus import load_corpus
    from confide.packages.sealed.corpus import SealedCorpus

    sealed = SealedCorpus.open(package)
    if sealed.manifest.has_models:
        output.quiet_transformers()
    with prepared(listening, options) as place:
        index = load_corpus(sealed, place.workload, place.fetch, ways=place.ways)
        shelf = options.shelf(index)
        limits = Limits().with_uploads() if shelf else Limits()
        retrieval = Retrieval(sealed.manifest, index, shelf, limits=limits)
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
                "collections": "collections" in configuration.options,
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
    if "collections" in configuration.options:
        output.console.print("Users may keep documents of their own: see `confide collection`.")

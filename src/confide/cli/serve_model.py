"""Serving a sealed model from inside a trusted execution environment: what `confide serve` does for such a package."""

import asyncio
import re
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer
from rich.markup import escape

from confide.cli import output
from confide.cli.files import read_file
from confide.cli.serve import Listening
from confide.cli.serve_sealed import TeeOptions, prepared
from confide.enclave.engines.engine import Dtype
from confide.extras import named_extras

if TYPE_CHECKING:
    from confide.enclave.api.limits import Limits
    from confide.enclave.api.traces import Traces
    from confide.enclave.api.users import Users
    from confide.enclave.boot import Upstream
    from confide.enclave.engines.engine import EngineFacts, EngineSettings
    from confide.enclave.tee import Tee
    from confide.enclave.workload import Workload
    from confide.packages.sealed.adapter import SealedAdapter
    from confide.packages.sealed.package import SealedPackage

_NAME: Final = re.compile(r"[A-Za-z0-9_.:/\-]{1,256}")
_LONGEST_TIMEOUT: Final = 86400.0


@dataclass(frozen=True, kw_only=True)
class ModelOptions(TeeOptions):
    """As the command's options."""

    certificate: list[Path] | None
    adapter: Path | None
    adapter_keys: str | None
    upstream: str | None
    upstream_model: str | None
    context: int | None
    name: str | None
    parallel: int | None
    threads: int | None
    dtype: Dtype | None
    max_tokens: int | None
    idle_timeout: float | None
    engine_timeout: float | None
    insecure_skip_self_test: bool
    traces: Path | None
    state: Path | None
    ledger: str | None

    def stated(self, tee: str, listening: Listening) -> dict[str, str]:
        """As `TeeOptions.stated`, and whether users have licences and requests are traced."""
        own = {"licences": self.state or self.ledger, "traces": self.traces}
        return super().stated(tee, listening) | {name: "true" for name, given in own.items() if given}

    def users(self, model_digest: str) -> "Users | None":
        """Who may ask, where not everybody may. Opens the ledger; raises what `Ledger` does."""
        from confide.enclave.api.users import Users
        from confide.ledger.address import DatabaseAddress
        from confide.ledger.keeper import KeptStore
        from confide.ledger.ledger import Ledger

        place = KeptStore(DatabaseAddress.parse(self.ledger)) if self.ledger else self.state
        return Users(Ledger(place), bytes.fromhex(model_digest)) if place else None

    def engine(self) -> "EngineSettings":
        """How to run the model."""
        from confide.enclave.engines.engine import PARALLEL, EngineSettings

        if self.name is not None and not _NAME.fullmatch(self.name):
            raise typer.BadParameter("--name takes letters, digits and . _ - / :, at most 256")
        if self.upstream and (self.parallel or self.threads):
            raise typer.BadParameter("--parallel and --threads are the upstream server's to choose; set them there")
        return EngineSettings(self.name, self.context, self.parallel or PARALLEL, self.threads, self.dtype)

    def limits(self) -> "Limits":
        """What one request is granted."""
        from confide.enclave.api.limits import Limits

        for timeout in (self.idle_timeout, self.engine_timeout):
            if timeout is not None and not 0 < timeout < _LONGEST_TIMEOUT:
                raise typer.BadParameter("--idle-timeout and --engine-timeout take more than 0 seconds, a day at most")
        given: dict[str, Any] = {
            "answer_tokens": self.max_tokens,
            "idle_seconds": self.idle_timeout,
            "engine_seconds": self.engine_timeout,
        }
        return replace(Limits(), **{name: value for name, value in given.items() if value is not None})


def serve_model(package: Path, listening: Listening, options: ModelOptions, *, json: bool) -> None:
    """Close the ways out, fetch the key with evidence, load the model, test it, and serve it until a signal."""
    from confide.client.retrieval import search_through
    from confide.enclave.api.answer import Serving
    from confide.enclave.api.public import private_app, public_app
    from confide.enclave.api.server import CONNECTIONS, serve_app
    from confide.enclave.boot import load_engine
    from confide.packages.sealed.adapter import SealedAdapter
    from confide.packages.sealed.package import SealedPackage

    output.quiet_transformers()
    sealed = SealedPackage.open(package)
    upstream, settings, limits = _upstream(options), options.engine(), options.limits()
    adapter = None if options.adapter is None else SealedAdapter.open(options.adapter)
    if options.adapter_keys and adapter is None:
        raise typer.BadParameter("--adapter-keys goes with --adapter")
    with ExitStack() as stack:
        # Before the model, which takes its time, as nobody is answered without the ledger; and before the ways out are
        # closed, as a database needs one.
        users = options.users(sealed.manifest.model_digest)
        if users is not None:
            stack.callback(users.close)
        traces = _traces(options.traces) if options.traces else None
        place = stack.enter_context(
            prepared(
                listening,
                options,
                upstream=upstream.url if upstream else None,
                other_keys=options.adapter_keys,
                scores=_scores(options.certificate, sealed, adapter) if options.certificate else None,
                training=None if adapter is None else adapter.certificate.write(),
                ledger=options.ledger is not None,
            )
        )
        workload, own_tls = place.workload, place.own_tls
        with output.counting_bytes("opening", sealed.manifest.size, quiet=json) as on_chunk:
            loaded = load_engine(
                sealed,
                workload,
                place.fetch,
                adapter=adapter,
                fetch_adapter=place.fetch_other,
                ways=place.ways,
                upstream=upstream,
                settings=settings,
                answer_tokens=limits.answer_tokens,
                insecure_skip_self_test=options.insecure_skip_self_test,
                on_chunk=on_chunk,
            )
        engine, self_test = loaded.engine, loaded.self_test

        background: list[asyncio.Task[None]] = []  # the loop ends them; kept, or they could be collected

        async def test() -> None:
            if own_tls is not None:
                background.append(asyncio.create_task(own_tls.keep_current()))
            if self_test is None:
                output.messages.print("[bold red]Nothing says that this engine computes the model: no self-test.[/]")
                return
            try:
                await self_test.run()
            except BaseException:
                await engine.close()
                raise

        def ready(url: str) -> None:
            _announce(url, workload, engine.facts, place.tee, licences=users is not None, json=json)

        edges = list(place.joined.edges.values())
        search = search_through(edges[0]) if len(edges) == 1 else None  # what a model asks is a corpus
        limits = limits.with_uploads() if search else limits
        shown = Serving(engine, self_test, limits, users=users, traces=traces, search=search)
        serve_app(
            public_app(
                workload,
                shown,
                tls_ends_here=options.ra_tls,
                neighbours=place.joined.neighbours,
                graph=place.joined.shown,
            ),
            place.bound,
            place.tls,
            ready,
            before=test,
            connections=listening.connections or CONNECTIONS,
            private=(private_app(shown), place.private) if place.private else None,
        )


def _traces(path: Path) -> "Traces":
    with named_extras():
        from confide.enclave.api.traces import Traces
    return Traces(path)


def _announce(url: str, workload: "Workload", facts: "EngineFacts", tee: "Tee", *, licences: bool, json: bool) -> None:
    from msgspec import to_builtins

    configuration = workload.configuration
    if json:
        output.result(
            {
                "url": url,
                "model": facts.model,
                "engine": facts.engine,
                "quantization": facts.quantization,
                "context": facts.context,
                "model_digest": workload.model_digest,
                "tee": tee.name,
                "simulated": tee.simulated,
                "licences": licences,
                "configuration": to_builtins(configuration),
            }
        )
        return
    output.console.print(
        f"Serving {escape(facts.model)} ({escape(facts.engine)}, {escape(facts.quantization)}) from a {tee.name} "
        f"environment at [bold]{url}[/]   Ctrl-C stops"
    )
    output.console.print(f"Context  {_context(facts)}", soft_wrap=True)
    output.console.print(f"Model digest  {workload.model_digest}", soft_wrap=True)
    for adapter in configuration.adapters:
        output.console.print(f"Adapter  {adapter}", soft_wrap=True)
    run = configuration.self_test
    tested = f"{run.outcome}, {run.tokens} known tokens" if run.tokens else run.outcome
    output.console.print(f"Self-test  {tested}   egress  {configuration.egress}", soft_wrap=True)
    if licences:
        output.console.print("Users need licences, which `confide licence create` makes.")


def _scores(certificates: list[Path], sealed: "SealedPackage", adapter: "SealedAdapter | None") -> bytes:
    """The document of these certificates, which have to be of this model under this adapter."""
    from confide.attest.scores import ScoreCertificate

    served = sealed.manifest.model_digest, adapter.manifest.adapter if adapter else ""
    found = [ScoreCertificate.read(read_file(path)) for path in certificates]
    for path, one in zip(certificates, found, strict=True):
        if (one.run.model, one.run.adapter) != served:
            raise typer.BadParameter(f"{path} certifies another model than the one that is served")
    return ScoreCertificate.write_lines(found)


def _context(facts: "EngineFacts") -> str:
    """What was chosen, and why it is less than the model has."""
    own, parallel = facts.settings.get("model-context"), facts.settings.get("parallel")
    text = f"{facts.context} tokens of prompt and answer"
    if own and int(own) > facts.context:
        text += f", of the model's {own}; --context and --parallel divide the memory"
    return f"{text}   {parallel} requests at once" if parallel else text


def _upstream(options: ModelOptions) -> "Upstream | None":
    from confide.enclave.boot import Upstream

    if not (options.upstream or options.upstream_model):
        return None
    if options.upstream is None or options.upstream_model is None or options.context is None:
        raise typer.BadParameter("--upstream, --upstream-model and --context go together")
    return Upstream(options.upstream, options.upstream_model, options.context)

"""`confide serve`: serve what a package's manifest says it is."""

import logging
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from confide.cli.options import InsecureNoTls, Json
from confide.cli.settings import require_chosen
from confide.enclave.engines.engine import Dtype
from confide.enclave.tee import TeeKind
from confide.logs import JsonLines, TextLines
from confide.net.loopback import require_loopback

LAYERS = "Layer servers (confide split)"
LICENCES = "Layer servers and sealed models"
SEALED = "Sealed models and corpora (confide seal, confide rag build), and guards (confide guard sign)"
GRAPH = "Services of a graph (confide graph)"
MODEL = "Sealed models"
CORPUS = "Sealed corpora"


class LogFormat(StrEnum):
    """How log lines look."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True)
class Listening:
    """Where to listen, and how. metrics_port: on this machine, for its operator. connections: at a time."""

    host: str
    port: int
    tls_cert: Path | None
    tls_key: Path | None
    insecure_no_tls: bool
    metrics_port: int | None = None
    connections: int | None = None

    def tls(self) -> ssl.SSLContext | None:
        """TLS as the files have it; without any, only this machine is listened to."""
        from confide.net.tls import server_context

        if self.tls_cert and self.tls_key:
            return server_context(self.tls_cert, self.tls_key)
        require_loopback(self.host, insecure_no_tls=self.insecure_no_tls)
        return None


def command(
    ctx: typer.Context,
    packages: Annotated[
        list[str],
        typer.Argument(
            help="The server folder of `confide split`, the package of `confide seal`, the corpus of `confide rag "
            "build`, or the rules of `confide guard sign`. Of server folders also several, as NAME=FOLDER, each at ws://host:port/NAME.",
            metavar="PACKAGE...",
        ),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; `vsock` for virtual sockets, where there is no network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8470,
    tls_cert: Annotated[
        Path | None, typer.Option(help="PEM file of the server's certificate chain; with it, --host may be public.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of the certificate's private key.")] = None,
    log: Annotated[LogFormat, typer.Option(help="Log lines for people or for machines.")] = LogFormat.TEXT,
    state: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the ledger: PACKAGE/state by default for a layer server. A sealed model answers everybody "
            "without one, and licensed users only with one.",
            rich_help_panel=LICENCES,
        ),
    ] = None,
    ledger: Annotated[
        str | None,
        typer.Option(
            help="Instead, the ledger's PostgreSQL database, which several servers share: "
            "postgresql://USER@HOST/DATABASE?sslrootcert=FILE; its password is the credential ledger-password.",
            rich_help_panel=LICENCES,
        ),
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(
            help="Layer groups to answer for, such as 0-47 or 0-11,24-35: the others are other machines', and their "
            "files need not be here. See `confide plan --machines`.",
            rich_help_panel=LAYERS,
        ),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(help="Append everything the server sees online to this file, for audits.", rich_help_panel=LAYERS),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(help="Serve /metrics and /health to this machine on this port.", min=1, max=65535),
    ] = None,
    connections: Annotated[int | None, typer.Option(help="Connections at a time.", min=1)] = None,
    megabytes_per_second: Annotated[
        int | None, typer.Option(help="What one connection may send in a second.", min=1, rich_help_panel=LAYERS)
    ] = None,
    insecure_no_licences: Annotated[
        bool,
        typer.Option(
            "--insecure-no-licences",
            help="Answer anyone on this machine. Gives private weights away.",
            rich_help_panel=LAYERS,
        ),
    ] = False,
    tee: Annotated[
        TeeKind | None,
        typer.Option(
            help="The trusted execution environment; auto, the default, takes what is there.", rich_help_panel=SEALED
        ),
    ] = None,
    simulated_tee: Annotated[
        Path | None,
        typer.Option(help="With --tee simulated: what `confide tee simulate init` made.", rich_help_panel=SEALED),
    ] = None,
    keys: Annotated[
        str | None, typer.Option(help="Address of the owner's `confide keys serve`.", rich_help_panel=SEALED)
    ] = None,
    keys_ca: Annotated[
        Path | None, typer.Option(help="PEM file of the authorities to trust there.", rich_help_panel=SEALED)
    ] = None,
    keys_through: Annotated[
        str | None,
        typer.Option(
            help="Where there is no network: vsock:CID:PORT, which leads to --keys; 3 is a Nitro enclave's parent.",
            rich_help_panel=SEALED,
        ),
    ] = None,
    ra_tls: Annotated[
        bool,
        typer.Option(
            "--ra-tls",
            help="End TLS in here, with a certificate that carries evidence, instead of --tls-cert.",
            rich_help_panel=SEALED,
        ),
    ] = False,
    tls_name: Annotated[
        list[str] | None,
        typer.Option(
            help="With --ra-tls: a host name or address of this server, for its certificate; may be repeated.",
            rich_help_panel=SEALED,
        ),
    ] = None,
    release: Annotated[
        Path | None,
        typer.Option(
            help="Sigstore bundle over the measurements of this build, to send along with the evidence.",
            rich_help_panel=SEALED,
        ),
    ] = None,
    certificate: Annotated[
        list[Path] | None,
        typer.Option(
            help="Score certificate of what is served, by `confide certify score`, to show along with it; repeatable.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(
            help="A sealed adapter of `confide train lora` to lay over the model, with its certificate.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    adapter_keys: Annotated[
        str | None,
        typer.Option(help="Address of its owner's `confide keys serve`, if it is another one.", rich_help_panel=MODEL),
    ] = None,
    upstream: Annotated[
        str | None,
        typer.Option(
            help="An OpenAI-compatible server in the same environment that runs the model, such as "
            "http://127.0.0.1:8000/v1; needs --upstream-model and --context.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    upstream_model: Annotated[str | None, typer.Option(help="The model's name there.", rich_help_panel=MODEL)] = None,
    context: Annotated[
        int | None,
        typer.Option(
            help="Tokens of prompt and answer at most; without, the model's own as far as there is memory for it.",
            min=1,
            rich_help_panel=MODEL,
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The model's name in the API; its package's without.", rich_help_panel=MODEL)
    ] = None,
    parallel: Annotated[
        int | None,
        typer.Option(
            help="Requests computed at once, each with memory of its own; 16 without.",
            min=1,
            max=1024,
            rich_help_panel=MODEL,
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads that compute; all cores without.", min=1, rich_help_panel=MODEL)
    ] = None,
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            help="What a model of safetensors is computed in; without, the faster of f32 and bf16 by a measurement.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Tokens of an answer at most; 8192 without.", min=1, rich_help_panel=MODEL)
    ] = None,
    idle_timeout: Annotated[
        float | None,
        typer.Option(
            help="Seconds for a client to take the next part of its answer; 60 without.", rich_help_panel=MODEL
        ),
    ] = None,
    engine_timeout: Annotated[
        float | None,
        typer.Option(help="Seconds in which the engine gives nothing to anybody; 300 without.", rich_help_panel=MODEL),
    ] = None,
    traces: Annotated[
        Path | None,
        typer.Option(
            help="Append traces to this file, for an OpenTelemetry collector that reads files: times and codes, no "
            "content.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    collections: Annotated[
        Path | None,
        typer.Option(
            help="With a corpus: let users keep documents of their own in this folder, sealed under keys of theirs.",
            file_okay=False,
            rich_help_panel=CORPUS,
        ),
    ] = None,
    collections_mib: Annotated[
        int | None,
        typer.Option(help="For all of their documents, in MiB; 1024 without.", min=1, rich_help_panel=CORPUS),
    ] = None,
    graph: Annotated[
        Path | None,
        typer.Option(help="The graph's log, to be one of its services; needs --service.", rich_help_panel=GRAPH),
    ] = None,
    service: Annotated[
        str | None, typer.Option(help="Which of its services this is, by name.", rich_help_panel=GRAPH)
    ] = None,
    neighbour: Annotated[
        list[str] | None,
        typer.Option(
            help="Where a service is that this one asks; one for each.", metavar="NAME=URL", rich_help_panel=GRAPH
        ),
    ] = None,
    neighbour_ca: Annotated[
        Path | None, typer.Option(help="PEM file of the authorities to trust there.", rich_help_panel=GRAPH)
    ] = None,
    insecure_open_egress: Annotated[
        bool,
        typer.Option(
            "--insecure-open-egress",
            help="Leave this process its ways out; whoever gets into it can then send prompts anywhere.",
            rich_help_panel=SEALED,
        ),
    ] = False,
    insecure_skip_self_test: Annotated[
        bool,
        typer.Option(
            "--insecure-skip-self-test",
            help="Serve without known answers, also where the engine does not give them.",
            rich_help_panel=MODEL,
        ),
    ] = False,
    insecure_no_tls: InsecureNoTls = False,
    json: Json = False,
) -> None:
    """Serve the protected layers of a model to licensed clients, or a model, corpus or guard from inside a TEE.

    Which of them, the package says. A layer server sees uniform numbers and answers with masked products. A sealed
    model or corpus is opened in memory once its owner has released the key to this environment. A guard looks for
    phrases in what it hands on to its model.
    """
    if (tls_cert is None) != (tls_key is None):
        raise typer.BadParameter("give both --tls-cert and --tls-key")
    from confide.packages.manifest import PackageKind, read_kind

    log_to_standard_error(log)
    listening = Listening(host, port, tls_cert, tls_key, insecure_no_tls, metrics_port, connections)
    if state and ledger:
        raise typer.BadParameter("the ledger is in a folder or in a database; give --state or --ledger")
    licences: dict[str, object] = {"state": state, "ledger": ledger}
    layers: dict[str, object] = {
        "groups": groups,
        "record": record,
        "megabytes_per_second": megabytes_per_second,
        "insecure_no_licences": insecure_no_licences,
    }
    sealed: dict[str, object] = {
        "tee": tee,
        "simulated_tee": simulated_tee,
        "keys": keys,
        "keys_ca": keys_ca,
        "keys_through": keys_through,
        "ra_tls": ra_tls,
        "tls_name": tls_name,
        "release": release,
        "graph": graph,
        "service": service,
        "neighbour": neighbour,
        "neighbour_ca": neighbour_ca,
        "insecure_open_egress": insecure_open_egress,
    }
    model: dict[str, object] = {
        "certificate": certificate,
        "adapter": adapter,
        "adapter_keys": adapter_keys,
        "upstream": upstream,
        "upstream_model": upstream_model,
        "context": context,
        "name": name,
        "parallel": parallel,
        "threads": threads,
        "dtype": dtype,
        "max_tokens": max_tokens,
        "idle_timeout": idle_timeout,
        "engine_timeout": engine_timeout,
        "traces": traces,
        "insecure_skip_self_test": insecure_skip_self_test,
    }
    corpus: dict[str, object] = {"collections": collections, "collections_mib": collections_mib}
    named = _named(packages)
    package = next(iter(named.values()))
    kind = read_kind(package) if len(named) == 1 else None
    if kind in (PackageKind.SEALED, PackageKind.CORPUS, PackageKind.GUARD):
        require_chosen(ctx)
    if kind is PackageKind.SEALED:
        from confide.cli.serve_model import ModelOptions, serve_model

        _require_unset(layers | corpus, "a sealed model")
        serve_model(package, listening, ModelOptions(**sealed, **model, **licences), json=json)  # type: ignore[arg-type]
        return
    if kind is PackageKind.CORPUS:
        from confide.cli.serve_corpus import CorpusOptions, serve_corpus

        _require_unset(layers | model | licences, "a corpus")
        serve_corpus(package, listening, CorpusOptions(**sealed, **corpus), json=json)  # type: ignore[arg-type]
        return
    if kind is PackageKind.GUARD:
        from confide.cli.serve_guard import serve_guard
        from confide.cli.serve_sealed import TeeOptions

        keyed: dict[str, object] = {"keys": keys, "keys_ca": keys_ca, "keys_through": keys_through}
        _require_unset(layers | model | licences | keyed | corpus, "a guard")
        serve_guard(package, listening, TeeOptions(**sealed), json=json)  # type: ignore[arg-type]
        return
    from confide.cli.serve_layers import LayerOptions, serve_layers
    from confide.net.vsock import VSOCK

    if host == VSOCK:
        raise typer.BadParameter("--host vsock is not for a layer server")
    _require_unset(sealed | model | corpus, "a layer server")
    serve_layers(named, listening, LayerOptions(**layers, **licences), json=json)  # type: ignore[arg-type]


def _named(packages: list[str]) -> dict[str, Path]:
    """The folders by the names of their models: as given, else as the folder is called, or the one it lies in."""
    named: dict[str, Path] = {}
    for given in packages:
        name, equals, folder = given.partition("=")
        path = Path(folder if equals and not Path(given).exists() else given)
        if path == Path(given):
            whole = path.resolve()
            name = whole.parent.name if whole.name == "server" else whole.name
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}", name):
            if path != Path(given) or len(packages) > 1:
                raise typer.BadParameter(f"{name!r} cannot be a model's name in an address; give NAME=FOLDER")
            name = "model"
        if name in named:
            raise typer.BadParameter(f"two models are called {name!r}; give NAME=FOLDER for one of them")
        named[name] = path
    return named


def _require_unset(options: Mapping[str, object], kind: str) -> None:
    for name, value in options.items():
        if value:
            raise typer.BadParameter(f"--{name.replace('_', '-')} is not for {kind}")


def log_to_standard_error(form: LogFormat) -> None:
    """For servers: what happens, never what travels."""
    # Each client's coming and going, and a server's own, is for machines to read.
    level = logging.INFO if form is LogFormat.JSON else logging.WARNING
    handler = logging.StreamHandler()
    handler.setLevel(level)  # uvicorn sets its own loggers' level
    handler.setFormatter(JsonLines() if form is LogFormat.JSON else TextLines("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("confide").setLevel(level)

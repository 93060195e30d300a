"""`confide graph`: what services a graph has, who owns it, and which version of it is in force."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.markup import escape
from rich.text import Text

from confide.cli import output
from confide.cli.certifying import SimulatedTeeOption, TeeOption
from confide.cli.files import read_file
from confide.cli.options import InsecureNoTls, Json, OwnerFile
from confide.enclave.tee import TeeKind
from confide.errors import InvalidGraph

if TYPE_CHECKING:
    from confide.graph.history import History, Proposal
    from confide.graph.manifest import Version

app = typer.Typer(name="graph", help="Graphs of services, and who may change them.", no_args_is_help=True)

_LOCK_SECONDS: Final = 10.0
ProposalFile = Annotated[Path, typer.Argument(help="What `confide graph init` wrote.", metavar="VERSION")]
LogFile = Annotated[Path, typer.Argument(help="The graph's log, which `confide graph apply` writes.", metavar="LOG")]


@app.callback()
def graph() -> None:
    """Graphs of services, and who may change them."""


@app.command("init")
def init(
    draft: Annotated[
        Path, typer.Argument(help="TOML: services, edges, owners, see docs/graph.md; policies are files beside it.")
    ],
    out: Annotated[Path, typer.Option(help="The version to write, for owners to sign; it must not exist.")],
    after: Annotated[
        Path | None, typer.Option(help="The graph's log: make its next version. Without, a new graph.", metavar="LOG")
    ] = None,
    json: Json = False,
) -> None:
    """Make a version of a graph from a draft, for its owners to sign."""
    from confide.disk.files import create_file
    from confide.graph.history import Proposal
    from confide.graph.manifest import Draft

    read, before = Draft.parse(_text(draft)), _history(after) if after else None
    made = read.version({name: _text(draft.parent / name) for name in read.files()}, before.current if before else None)
    try:
        create_file(out, Proposal(1, made.manifest).write())
    except OSError as error:
        raise typer.BadParameter(f"{out} cannot be written ({error.strerror}); choose another place") from None
    if json:
        output.result({"file": str(out), "graph": before.id if before else made.digest, **made.described()})
        return
    manifest = made.manifest
    output.console.print(f"Version {manifest.version} of {escape(manifest.name)}   {made.digest}", soft_wrap=True)
    output.console.print(f"Next: each owner looks at it and runs confide graph sign {escape(str(out))}", soft_wrap=True)


@app.command("sign")
def sign(
    version: ProposalFile,
    owner: OwnerFile = None,
    recovery: Annotated[
        bool, typer.Option("--recovery", help="With a recovery key, to give the graph to other owners.")
    ] = False,
    json: Json = False,
) -> None:
    """Show a version of a graph, and sign it: that it shall take the place of the one before."""
    from confide.cli.owner import read_key
    from confide.disk.files import replace_file
    from confide.graph.history import Signature
    from confide.graph.manifest import Version

    proposal, signer = _proposal(version), read_key(owner)
    if not json:
        _show(Version(proposal.manifest))
    signed = proposal.signed(Signature.make(proposal.manifest, signer, recovery=recovery))
    replace_file(version, signed.write())
    keys = [one.key for one in signed.signatures]
    if json:
        output.result({"digest": proposal.manifest.digest, "signed_by": keys})
        return
    output.console.print(f"Signed by  {signer.public.fingerprint}; signatures: {len(keys)}")


@app.command("apply")
def apply(
    version: ProposalFile,
    log: Annotated[Path, typer.Option(help="The graph's log; made for a first version.", metavar="LOG")],
    json: Json = False,
) -> None:
    """Put a version in force: if the owners' quorum signed it, it is added to the graph's log."""
    from confide.disk.files import replace_file
    from confide.graph.history import History

    proposal = _proposal(version)
    with _alone(log):
        before = _history(log) if log.exists() else None
        now = datetime.now(UTC).replace(microsecond=0)
        history = before.applied(proposal, now) if before else History.begin(proposal, now)
        replace_file(log, history.content)
    change = history.changes[-1]
    if json:
        output.result({"log": str(log), "graph": history.id, "version": change.version, "digest": change.digest,
                       "event": change.event, "signed_by": list(change.by)})  # fmt: skip
        return
    output.console.print(f"Version {change.version} is in force ({change.event}), by {len(change.by)} signatures.")
    output.console.print(f"Graph  [bold]{history.id}[/]   publish it: users know the graph by it", soft_wrap=True)
    output.console.print("Next: restart its services with this log.")


@app.command("status")
def status(
    log: LogFile,
    pending: Annotated[
        Path | None, typer.Option(help="A version that is to be applied: who has to sign it still.", metavar="VERSION")
    ] = None,
    json: Json = False,
) -> None:
    """Verify a graph's log from its first version on, and show what is in force and who decided it."""
    from confide.graph.history import missing

    history = _history(log)
    proposal = _proposal(pending) if pending else None
    lacking = missing(history.current, proposal) if proposal else (0, 0)
    signed = [one.key for one in proposal.signatures if one.holds(proposal.manifest.digest)] if proposal else []
    unsigned = [key for key in history.current.manifest.owners if key not in signed]
    if json:
        changes = [
            {"at": one.at.isoformat(), "event": one.event, "version": one.version, "digest": one.digest,
             "signed_by": list(one.by)}
            for one in history.changes
        ]  # fmt: skip
        said: dict[str, Any] = {"graph": history.id, "head": history.head, **history.current.described()}
        if proposal:
            said["pending"] = {
                "version": proposal.manifest.version,
                "digest": proposal.manifest.digest,
                "signed_by": signed,
                "missing": lacking[0],
                "missing_recovery": lacking[1] if history.current.manifest.recovery else None,
            }
        output.result(said | {"changes": changes})
        return
    output.console.print(f"Graph  [bold]{history.id}[/]", soft_wrap=True)
    _show(history.current)
    for one in history.changes:
        by = ", ".join(key[:16] for key in one.by)
        line = f"{one.at:%Y-%m-%d %H:%M}  version {one.version} {one.event} by {by}"
        output.console.print(Text(line), soft_wrap=True)
    if proposal and lacking[0]:
        output.console.print(f"Version {proposal.manifest.version} takes {lacking[0]} more of these signatures:")
        for key in unsigned:
            output.console.print(f"  {key}", soft_wrap=True)
    elif proposal:
        output.console.print(f"Version {proposal.manifest.version} has the quorum: confide graph apply")


@app.command("coordinate")
def coordinate(
    log: LogFile,
    neighbour: Annotated[
        list[str], typer.Option(help="Where a service is; one for each that sees data.", metavar="NAME=URL")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8470,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file of the server's certificate chain.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of the certificate's private key.")] = None,
    tee: TeeOption = TeeKind.AUTO,
    simulated_tee: SimulatedTeeOption = None,
    release: Annotated[
        Path | None, typer.Option(help="Sigstore bundle over the measurements of this build, to send along.")
    ] = None,
    neighbour_ca: Annotated[Path | None, typer.Option(help="PEM file of the authorities to trust there.")] = None,
    insecure_open_egress: Annotated[
        bool, typer.Option("--insecure-open-egress", help="Leave this process its ways out, which its evidence says.")
    ] = False,
    insecure_no_tls: InsecureNoTls = False,
    json: Json = False,
) -> None:
    """Vouch from inside a TEE that every service of a graph meets what its owners promise, and do not show it."""
    from confide.cli.serve import Listening, LogFormat, log_to_standard_error
    from confide.cli.serve_coordinator import serve_coordinator
    from confide.cli.serve_sealed import TeeOptions, named_urls

    if (tls_cert is None) != (tls_key is None):
        raise typer.BadParameter("give both --tls-cert and --tls-key")
    log_to_standard_error(LogFormat.TEXT)
    options = TeeOptions(
        tee=tee,
        simulated_tee=simulated_tee,
        keys=None,
        keys_ca=None,
        keys_through=None,
        ra_tls=False,
        tls_name=None,
        release=release,
        insecure_open_egress=insecure_open_egress,
    )
    listening = Listening(host, port, tls_cert, tls_key, insecure_no_tls)
    serve_coordinator(_history(log), listening, options, named_urls(neighbour), neighbour_ca, json=json)


def _show(version: "Version") -> None:
    manifest = version.manifest
    simulated = "   [bold red]for simulated hardware, which protects nothing[/]" if version.simulated else ""
    output.console.print(f"Version {manifest.version} of {escape(manifest.name)}{simulated}")
    for name, one in manifest.services.items():
        what = "coordinator" if name == manifest.coordinator else "entry" if name == manifest.entry else ""
        asks = f"asks {', '.join(one.asks)}" if one.asks else ""
        output.console.print(
            Text(f"  {name:<16} {one.digest[:16] or '-':<16}  {what:<11}  {asks}".rstrip()), soft_wrap=True
        )
    output.console.print(f"Owners, any {manifest.quorum} of them:")
    for key in manifest.owners:
        output.console.print(f"  {key}", soft_wrap=True)
    if manifest.recovery:
        output.console.print(f"To recover, any {manifest.recovery_quorum} of:")
        for key in manifest.recovery:
            output.console.print(f"  {key}", soft_wrap=True)


@contextmanager
def _alone(log: Path) -> Iterator[None]:
    """Nobody else adds to this log meanwhile."""
    from confide.disk.files import lock_file

    try:
        with log.with_name(f"{log.name}.lock").open("w") as lock:
            if not lock_file(lock.fileno(), _LOCK_SECONDS):
                raise InvalidGraph(f"Another program has held {log} for long; end that one, and try again.")
            yield
    except OSError as error:
        raise typer.BadParameter(f"{log} cannot be written ({error.strerror}); choose another place") from None


def _history(path: Path) -> "History":
    from confide.graph.history import MAX_LOG_BYTES, History

    return History.read(read_file(path, MAX_LOG_BYTES, InvalidGraph(f"{path} is too large for a graph's log.")))


def _proposal(path: Path) -> "Proposal":
    from confide.graph.history import Proposal
    from confide.graph.manifest import MAX_MANIFEST_BYTES

    too_large = InvalidGraph(f"{path} is too large for a version of a graph.")
    return Proposal.read(read_file(path, 2 * MAX_MANIFEST_BYTES, too_large))


def _text(path: Path) -> str:
    from confide.graph.manifest import MAX_MANIFEST_BYTES

    try:
        return read_file(path, MAX_MANIFEST_BYTES, InvalidGraph(f"{path} is too large; make it shorter.")).decode()
    except UnicodeDecodeError:
        raise InvalidGraph(f"{path} is no text; write TOML in UTF-8.") from None

"""`confide keys`: a model owner's keys, who gets them, and the log of who asked."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer
from rich.markup import escape
from rich.text import Text

from confide.cli import output
from confide.cli.files import read_file
from confide.cli.options import InsecureNoTls, Json, OwnerFile
from confide.cli.serve import LogFormat, log_to_standard_error
from confide.cli.tee import WARNING
from confide.disk.home import home, make_home
from confide.disk.secrets import KEYS_PASSPHRASE, find_secret, variable
from confide.errors import InvalidPolicy, KeyStoreError
from confide.net.loopback import require_loopback
from confide.printable import printable

if TYPE_CHECKING:
    from confide.attest.policy import AnyPolicy
    from confide.broker.appraisal import Appraiser
    from confide.broker.log import Entry
    from confide.broker.store import KeyStore, StoredKey
    from confide.packages.sealed.key import ModelKey

PASSPHRASE_VARIABLE: Final = variable(KEYS_PASSPHRASE)

app = typer.Typer(name="keys", help="Release model keys to attested workloads.", no_args_is_help=True)
log = typer.Typer(name="log", help="The log of who asked for keys, and what was decided.", no_args_is_help=True)
app.add_typer(log)

Folder = Annotated[
    Path | None, typer.Option("--folder", help="Where keys and log lie; keys in your Confide folder if not.")
]
KeyIdArgument = Annotated[str, typer.Argument(help="The key's id, as `confide keys list` shows it.", metavar="ID")]


@app.command("add")
def add(
    key: Annotated[Path, typer.Argument(help="The model key that the model was sealed with.", metavar="KEYFILE")],
    policy: Annotated[Path, typer.Option(help="TOML: what a workload's evidence must show to get the key.")],
    package: Annotated[Path | None, typer.Option(help="The sealed model or corpus that the key is for.")] = None,
    model_digest: Annotated[
        str | None, typer.Option(help="Digest of the sealed model instead: 64 hexadecimal digits.")
    ] = None,
    simulated_root: Annotated[
        Path | None,
        typer.Option(help="For a simulated policy: the root that it trusts. Never for a model of any value."),
    ] = None,
    folder: Folder = None,
    json: Json = False,
) -> None:
    """Keep a model's key, encrypted, and bind it to a policy. A broker that runs already knows it at once."""
    from confide.broker.store import Conditions
    from confide.packages.sealed.key import ModelKey

    root = _certificate(simulated_root) if simulated_root else None
    model_key = ModelKey.read(key)
    digest = _digest_of(package, model_key) if package else model_digest
    if digest is None or (package and model_digest):
        raise typer.BadParameter("give either --package or --model-digest")
    conditions = Conditions(digest.lower(), read_policy(policy), root)
    stored = key_store(folder, make=True).add(model_key, conditions, datetime.now(UTC))
    if root:
        output.messages.print(f"[bold red]{WARNING}[/]")
    if json:
        output.result(_described(stored))
    else:
        output.console.print(
            f"Key [bold]{stored.key.id}[/] is kept, for model {conditions.model_digest[:16]}.", soft_wrap=True
        )
        output.console.print(Text(f"Released where: {conditions.policy}"), soft_wrap=True)


def _digest_of(package: Path, key: "ModelKey") -> str:
    """The digest of a model or corpus that a trusted owner signed, once it is sure that the key is the one to it."""
    from confide.packages.manifest import PackageKind, read_kind
    from confide.packages.sealed.corpus import SealedCorpus
    from confide.packages.sealed.package import SealedPackage
    from confide.packages.trusted_owners import trusted_owners

    if read_kind(package) is PackageKind.CORPUS:
        corpus = SealedCorpus.open(package, trusted_owners()).manifest
        key.require(corpus.key, package)
        return corpus.digest
    return SealedPackage.open(package, trusted_owners()).unlock(key).manifest.model_digest


@app.command("list")
def list_keys(folder: Folder = None, json: Json = False) -> None:
    """List the keys and the policies they are bound to."""
    keys = key_store(folder).all()
    if json:
        output.result({"keys": [_described(stored) for stored in keys]})
        return
    for stored in keys:
        conditions = stored.conditions
        facts = f"[bold]{stored.key.id}[/]  model {conditions.model_digest[:16]}  added {stored.added:%Y-%m-%d}"
        output.console.print(facts, soft_wrap=True)
        style = "red" if conditions.simulated_root is not None else ""
        output.console.print(Text(f"    {conditions.policy}", style), soft_wrap=True)
    if not keys:
        output.note("No key is kept yet; `confide keys add` adds one.")


@app.command("change")
def change(
    identity: KeyIdArgument,
    policy: Annotated[Path, typer.Option(help="TOML: what a workload's evidence must show from now on.")],
    simulated_root: Annotated[
        Path | None, typer.Option(help="For a simulated policy: another root than the one it had.")
    ] = None,
    folder: Folder = None,
    json: Json = False,
) -> None:
    """Bind a key to another policy, without a moment at which it has none. The log says so, with both digests."""
    from confide.attest.policy import SimulatedPolicy
    from confide.broker.change import change_policy

    store, new = key_store(folder), read_policy(policy)
    root = _certificate(simulated_root) if simulated_root else None
    if root is None and isinstance(new, SimulatedPolicy):
        root = store.get(identity).conditions.simulated_root
    stored, entry = change_policy(key_folder(folder), store, identity, new, root, datetime.now(UTC))
    if root:
        output.messages.print(f"[bold red]{WARNING}[/]")
    if json:
        output.result(_described(stored) | {"policy_digest": entry.policy, "replaced": entry.replaced})
    else:
        output.console.print(f"Key [bold]{identity}[/] has another policy from now on.", soft_wrap=True)
        output.console.print(Text(f"Released where: {stored.conditions.policy}"), soft_wrap=True)


@app.command("rotate")
def rotate(
    package: Annotated[Path, typer.Argument(help="The sealed model.", metavar="PACKAGE")],
    key: Annotated[Path, typer.Option(help="File of the model key that it has.")],
    new_key: Annotated[Path, typer.Option(help="File of the key that it gets; made where there is none.")],
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist.", metavar="PACKAGE")],
    owner: OwnerFile = None,
    json: Json = False,
) -> None:
    """Seal a model anew, for another key. It keeps its digest, so that users' policies and certificates hold.

    The old package is left as it is: whoever has it and the old key can read it for ever.
    """
    from confide.cli.owner import read_or_make_key
    from confide.cli.seal import read_or_make
    from confide.packages.sealed.draft import require_absent
    from confide.packages.sealed.key import ModelKey
    from confide.packages.sealed.package import SealedPackage
    from confide.packages.sealed.write import reseal_model
    from confide.packages.trusted_owners import trusted_owners

    require_absent(out)
    unlocked = SealedPackage.open(package, trusted_owners()).unlock(ModelKey.read(key))
    signer, old = read_or_make_key(owner), unlocked.manifest.key
    with output.counting_bytes("sealing anew", unlocked.manifest.size, quiet=json) as on_chunk:
        manifest = reseal_model(unlocked, out, key=read_or_make(new_key), owner=signer, on_chunk=on_chunk)
    if json:
        found = {"key": manifest.key, "replaced": old, "model_digest": manifest.model_digest}
        output.result({"package": str(out), "owner": str(signer.public)} | found)
        return
    output.console.print(f"Sealed {escape(manifest.name)} anew, for the key [bold]{manifest.key}[/].", soft_wrap=True)
    output.console.print(f"Model digest  {manifest.model_digest}   as before", soft_wrap=True)
    output.console.print(
        f"Next: confide keys add {escape(str(new_key))} --package {escape(str(out))} --policy POLICY; roll it out; "
        f"then confide keys remove {old}",
        soft_wrap=True,
    )


@app.command("remove")
def remove(identity: KeyIdArgument, folder: Folder = None, json: Json = False) -> None:
    """Forget a key: it is not released any more, from now on. Workloads that have it keep it."""
    key_store(folder).remove(identity)
    if json:
        output.result({"removed": identity})
    else:
        output.console.print(f"Key [bold]{identity}[/] is forgotten. Copies in your backups are not.")


@app.command("serve")
def serve(
    policy: Annotated[
        Path | None, typer.Option(help="TOML: what every workload must show, besides the policy of its key.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8471,
    tls_cert: Annotated[
        Path | None, typer.Option(help="PEM file of the broker's certificate chain; with it, --host may be public.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of the certificate's private key.")] = None,
    attestation_key: Annotated[
        list[str] | None,
        typer.Option(help="SHA-256 of a TPM's attestation key (DER) that you enrolled; may be repeated."),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Ask no vendor: take workloads' collateral, and log how old it is.")
    ] = False,
    log_format: Annotated[
        LogFormat, typer.Option("--log", help="Log lines for people or for machines.")
    ] = LogFormat.TEXT,
    folder: Folder = None,
    insecure_no_tls: InsecureNoTls = False,
    json: Json = False,
) -> None:
    """Release keys to workloads whose evidence satisfies their policies. Each decision is logged before it leaves."""
    if (tls_cert is None) != (tls_key is None):
        raise typer.BadParameter("give both --tls-cert and --tls-key")
    from confide.broker.app import CONNECTIONS, key_broker_app
    from confide.broker.broker import Broker
    from confide.broker.log import AuditLog
    from confide.enclave.api.server import bind, serve_app
    from confide.net.tls import server_context

    log_to_standard_error(log_format)
    tls = server_context(tls_cert, tls_key) if tls_cert and tls_key else None
    if tls is None:
        require_loopback(host, insecure_no_tls=insecure_no_tls)
    bound = bind(host, port)
    appraiser = _appraiser(policy, attestation_key or [], offline=offline)
    store = key_store(folder)
    keys = store.all()
    audit = AuditLog(key_folder(folder), datetime.now(UTC))
    simulated = [stored.key.id for stored in keys if stored.conditions.simulated_root is not None]
    if simulated:
        output.messages.print(f"[bold red]{WARNING}[/] Keys released to it: {', '.join(simulated)}")

    def ready(url: str) -> None:
        if json:
            output.result({"url": url, "keys": len(keys), "simulated": len(simulated), "log_head": audit.head})
            return
        counted = f"{len(keys)} key{'' if len(keys) == 1 else 's'}"
        output.console.print(f"Releasing {counted} at [bold]{url}[/]   Ctrl-C stops")
        output.console.print(f"Head of the log  {audit.head}", soft_wrap=True)

    try:
        app = key_broker_app(Broker(store, audit, appraiser))
        serve_app(app, bound, tls, ready, connections=CONNECTIONS, forwarded=False)
    finally:
        audit.close()


@log.command("verify")
def verify_log(
    head: Annotated[
        str | None, typer.Option(help="The head that an earlier run of this printed: finds lines cut off since then.")
    ] = None,
    folder: Folder = None,
    json: Json = False,
) -> None:
    """Check that no line of the log was changed, removed or moved.

    Lines cut off at the end, or a log written anew, show only against a head that you kept elsewhere: give it with
    --head.
    """
    from confide.broker.log import LOG_NAME, verify

    chain = verify(key_folder(folder) / LOG_NAME, None if head is None else head.strip().lower())
    if json:
        output.result({"intact": True, "entries": chain.entries, "head": chain.head, "torn_bytes": chain.torn})
        return
    output.console.print(f"[bold green]intact[/]: {chain.entries:,} entries")
    output.console.print(f"Head  [bold]{chain.head}[/]", soft_wrap=True)
    if chain.torn:
        output.note(f"The last {chain.torn} bytes are a line torn by a crash; `confide keys serve` will cut it off.")
    if head is None:
        output.note("Keep the head on another machine. With --head HEAD, lines cut off at the end are found too.")


@log.command("show")
def show_log(
    last: Annotated[int | None, typer.Option(help="Only the last so many entries.", min=1)] = None,
    folder: Folder = None,
    json: Json = False,
) -> None:
    """Show who asked for which key, what was decided, and why. Checks the log on the way."""
    from collections import deque

    from confide.broker.log import LOG_NAME, LogReader

    entries = deque((line.entry for line in LogReader(key_folder(folder) / LOG_NAME)), maxlen=last)
    if json:
        output.result({"entries": [msgspec.to_builtins(entry) for entry in entries]})
        return
    for entry in entries:
        output.console.print(_headline(entry), soft_wrap=True)
        for check in entry.failed:
            reason = f"    {check.code}: expected {check.expected}, saw {check.seen}"
            output.console.print(Text(printable(reason)), soft_wrap=True)
    if not entries:
        output.note("Nobody has asked yet.")


def _headline(entry: "Entry") -> Text:
    line = Text(f"{entry.at:%Y-%m-%d %H:%M:%S} UTC  ")
    if entry.event == "recovered":
        return line.append(f"{entry.recovered} bytes of a line torn by a crash were cut off", "dim")
    if entry.event == "changed":
        line.append("changed ", "yellow")
        line.append(f"  key {entry.key}  policy {entry.replaced[:16]} to {entry.policy[:16]}")
        return line.append(f", the old version until {entry.until:%Y-%m-%d %H:%M:%S} UTC") if entry.until else line
    line.append(f"{entry.event:<8}", "green" if entry.event == "released" else "red")
    line.append(f"  key {entry.key}  asked by {printable(entry.peer)}")
    return line.append("  SIMULATED", "bold red") if entry.simulated else line


def _described(stored: "StoredKey") -> dict[str, Any]:
    from confide.attest.policy_toml import to_toml

    conditions = stored.conditions
    return {
        "key": stored.key.id,
        "model_digest": conditions.model_digest,
        "policy": to_toml(conditions.policy),
        "simulated": conditions.simulated_root is not None,
        "added": stored.added.isoformat(),
    }


# -- what the options name ---------------------------------------------------------------------------------------


def key_folder(folder: Path | None) -> Path:
    """Where keys and log lie."""
    return folder or home() / "keys"


def key_store(folder: Path | None, *, make: bool = False) -> "KeyStore":
    """The keys there, opened with the passphrase. make: a new store where there is none. KeyStoreError."""
    from confide.broker.store import KeyStore

    place = key_folder(folder)
    if KeyStore.exists(place) or not make:
        return KeyStore.open(place, _passphrase)
    if folder is None:
        make_home()
    return KeyStore.create(place, _passphrase(new=True))


def _passphrase(*, new: bool = False) -> str:
    if passphrase := find_secret(KEYS_PASSPHRASE):
        return passphrase.text
    if not sys.stdin.isatty():
        raise KeyStoreError(
            f"Model keys are kept under a passphrase; give it as the credential {KEYS_PASSPHRASE} or in "
            f"{PASSPHRASE_VARIABLE}, or use a terminal."
        )
    text = "New passphrase for model keys" if new else "Passphrase of the model keys"
    entered: str = typer.prompt(text, hide_input=True, confirmation_prompt=new, err=True)
    return entered


def read_policy(path: Path) -> "AnyPolicy":
    """A policy of either kind, from a TOML file. InvalidPolicy."""
    from confide.attest.policy_toml import any_policy_from_toml

    try:
        return any_policy_from_toml(read_file(path).decode())
    except UnicodeDecodeError:
        raise InvalidPolicy(f"{path} is no text; a policy is a TOML file.") from None


def _certificate(path: Path) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    from confide.attest.chain import read_certificate

    return read_certificate(read_file(path), "simulated root").public_bytes(Encoding.DER)


def _appraiser(policy: Path | None, attestation_keys: list[str], *, offline: bool) -> "Appraiser":
    from confide.attest.roots import ProductionRoots
    from confide.attest.verifier import Verifier
    from confide.broker.appraisal import Appraiser
    from confide.client.relying_party import vendor_collateral

    verifier = Verifier(ProductionRoots(attestation_keys=frozenset(attestation_keys)))
    return Appraiser(verifier, vendor_collateral(offline=offline), read_policy(policy) if policy else None)

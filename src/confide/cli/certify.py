"""`confide certify`: measure a sealed model where nobody can look, certify its score, and verify such certificates.

Exit codes of `verify`: 0 verified, 10 refused, 20 no certificate.
"""

from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.markup import escape
from rich.text import Text

from confide.attest.scores import Metric, Role
from confide.cli import output
from confide.cli.attest import Exit, Mode, parse_time, show_checks, show_verdict
from confide.cli.files import read_file
from confide.cli.options import Json, Offline, OwnerFile
from confide.cli.tee import WARNING
from confide.enclave.tee import TeeKind
from confide.errors import InvalidTask, MalformedScore
from confide.printable import printable

if TYPE_CHECKING:
    from confide.attest.scores import Run, ScoreCertificate
    from confide.certify.score import Measurer
    from confide.packages.sealed.data import SealedData

app = typer.Typer(name="certify", help="Certified scores of sealed models.", no_args_is_help=True)

PackageFolder = Annotated[Path, typer.Argument(help="The model, as `confide seal` wrote it.", metavar="PACKAGE")]
TaskOption = Annotated[
    str, typer.Option("--task", help="A task file, or a folder of `confide certify seal`.", metavar="FILE|FOLDER")
]
TeeOption = Annotated[TeeKind, typer.Option(help="The trusted execution environment; auto takes what is there.")]
SimulatedTeeOption = Annotated[
    Path | None, typer.Option(help="With --tee simulated: what `confide tee simulate init` made.")
]
NonceOption = Annotated[
    str | None, typer.Option(help="Of whoever orders the run, 64 hexadecimal digits; a fresh one without.")
]
RunFile = Annotated[Path, typer.Argument(help="What `confide certify run` wrote.", metavar="RUN")]
SignerPolicy = Annotated[
    Path, typer.Option("--policy", help="TOML: what the evidence of whoever measured must show; it has to name code.")
]
SimulatedRoot = Annotated[
    Path | None, typer.Option(help="Root of simulated hardware, to try things out: it proves nothing.", metavar="FILE")
]


@app.callback()
def certify() -> None:
    """Certified scores of sealed models."""


@app.command("seal")
def seal(
    task: Annotated[Path, typer.Argument(help="A task file: JSON Lines, see docs/certify.md.", metavar="FILE")],
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist.")],
    key: Annotated[Path, typer.Option(help="File of the dataset's key, 32 bytes; made where there is none.")],
    owner: OwnerFile = None,
    json: Json = False,
) -> None:
    """Encrypt a dataset so that only environments that its owner's key service accepts can read it."""
    from confide.certify.tasks import read_task
    from confide.cli.owner import read_or_make_key
    from confide.cli.seal import read_or_make
    from confide.packages.sealed.data import seal_data
    from confide.packages.sealed.draft import require_absent

    require_absent(out)
    content = _content(task)
    found = read_task(content)
    signer, data_key = read_or_make_key(owner), read_or_make(key)
    manifest = seal_data(content, out, key=data_key, owner=signer)
    if json:
        output.result(
            {
                "package": str(out),
                "task": found.name,
                "metric": found.metric.value,
                "items": len(found.items),
                "dataset": manifest.dataset,
                "key": manifest.key,
                "owner": str(signer.public),
            }
        )
        return
    output.console.print(f"Sealed the task {escape(found.name)} ({found.metric}): {len(found.items):,} items.")
    output.console.print(f"Dataset digest  {manifest.dataset}   for policies", soft_wrap=True)
    output.console.print(f"Dataset key     {manifest.key}   in {escape(str(key))}: keep it secret", soft_wrap=True)
    output.console.print(f"Signed by       {signer.public.fingerprint}", soft_wrap=True)
    output.console.print("Next: confide keys add KEYFILE --model-digest MODEL --policy POLICY")


@app.command("run")
def describe_run(
    package: PackageFolder,
    task: TaskOption,
    out: Annotated[Path, typer.Option(help="The description to write; it must not exist.")],
    metric: Annotated[Metric | None, typer.Option(help="Of a sealed task, which does not say it.")] = None,
    nonce: NonceOption = None,
    tee: TeeOption = TeeKind.AUTO,
    simulated_tee: SimulatedTeeOption = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Describe the run that this environment would make, for both owners to approve. Needs no key."""
    from confide.certify.consent import write_run

    data = _data(task)
    run = _described(package, data, metric, nonce, _measurer(tee, simulated_tee, offline=offline))
    _create(out, write_run(run))
    if json:
        output.result({"run": str(out), "digest": run.digest, **msgspec.to_builtins(run)})
        return
    _show_run(run)
    output.console.print(f"Next, each owner: confide certify approve {escape(str(out))}", soft_wrap=True)


@app.command("approve")
def approve(
    run: RunFile,
    package: Annotated[Path, typer.Option(help="Your own package: the sealed model, or the sealed dataset.")],
    key: Annotated[Path, typer.Option(help="The key that it was sealed with.")],
    out: Annotated[Path, typer.Option(help="The approval to write; it must not exist.")],
    owner: OwnerFile = None,
    json: Json = False,
) -> None:
    """Approve a run as the owner of its model or of its dataset. It holds for this run alone."""
    from confide.certify.consent import consent_to, read_run, write_consent
    from confide.cli.owner import read_key
    from confide.packages.manifest import PackageKind, read_kind
    from confide.packages.sealed.data import SealedData
    from confide.packages.sealed.key import ModelKey
    from confide.packages.sealed.package import SealedPackage

    described, signer, package_key = read_run(read_file(run)), read_key(owner), ModelKey.read(key)
    if read_kind(package) is PackageKind.DATA:
        data = SealedData.open(package, {signer.public})
        package_key.require(data.manifest.key, package)
        role, own, named = Role.DATA, data.manifest.dataset, described.dataset
    else:
        model = SealedPackage.open(package, {signer.public})
        model.unlock(package_key)
        role, own, named = Role.MODEL, model.manifest.model_digest, described.model
    if own != named:
        raise typer.BadParameter(f"the run is on another {role.value}, {named}, and yours is {own}")
    _create(out, write_consent(consent_to(described, role, signer, package_key)))
    if json:
        output.result({"approval": str(out), "role": role.value, "run": described.digest, "owner": str(signer.public)})
        return
    _show_run(described)
    output.console.print(f"Approved as the owner of the {role.value}, {signer.public.fingerprint}: {escape(str(out))}")


@app.command("score")
def score_package(
    package: PackageFolder,
    task: TaskOption,
    keys: Annotated[str, typer.Option(help="Address of the model owner's `confide keys serve`.")],
    out: Annotated[Path, typer.Option(help="The certificate to write; it must not exist.")],
    data_keys: Annotated[str | None, typer.Option(help="Address of the data owner's, if it is another one.")] = None,
    keys_ca: Annotated[Path | None, typer.Option(help="PEM file of the authorities to trust there.")] = None,
    run: Annotated[
        Path | None, typer.Option(help="The run as it was approved; needed for a sealed dataset.", metavar="FILE")
    ] = None,
    approval: Annotated[
        list[Path] | None, typer.Option(help="An owner's approval of the run; one of each owner.", metavar="FILE")
    ] = None,
    nonce: NonceOption = None,
    tee: TeeOption = TeeKind.AUTO,
    simulated_tee: SimulatedTeeOption = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Measure a sealed model on a task inside this environment, and sign what came out with an attested key.

    Every way out is closed first but for the key services. Of a sealed dataset nothing leaves but the certificate.
    """
    from confide.certify.consent import read_consent, read_run
    from confide.certify.score import score
    from confide.enclave.egress import close_egress
    from confide.enclave.fetch_key import fetch_key
    from confide.net.tls import client_context
    from confide.packages.sealed.data import SealedData
    from confide.packages.sealed.package import SealedPackage

    data = _data(task)
    if isinstance(data, SealedData) and run is None:
        raise typer.BadParameter("a sealed dataset takes --run, and an --approval of each owner")
    if run is not None and nonce is not None:
        raise typer.BadParameter("--run has a nonce; leave --nonce out")
    if out.exists():
        raise typer.BadParameter(f"{out} exists already; choose another name")
    output.quiet_transformers()
    here = _measurer(tee, simulated_tee, offline=offline)
    wanted = _described(package, data, None, nonce, here) if run is None else read_run(read_file(run))
    consents = [read_consent(read_file(path)) for path in approval or ()]
    tls = client_context(keys_ca)
    ways = close_egress(keys=keys, upstream=None, data_keys=data_keys)
    try:
        certificate = score(
            here,
            SealedPackage.open(package),
            data,
            wanted,
            partial(fetch_key, keys, tls=tls, connector=ways.keys),
            fetch_data=partial(fetch_key, data_keys, tls=tls, connector=ways.data_keys) if data_keys else None,
            consents=consents,
            ways=ways,
        )
    finally:
        ways.close()
    _create(out, certificate.write())
    if json:
        output.result({"certificate": str(out), **_facts(certificate)})
        return
    _show(certificate)
    output.console.print(f"Next: confide certify verify {escape(str(out))} --policy POLICY", soft_wrap=True)


@app.command("verify")
def verify(
    certificate: Annotated[Path, typer.Argument(help="What `confide certify score` wrote.", metavar="CERT")],
    policy: SignerPolicy,
    at: Annotated[
        str | None, typer.Option(help="Time of appraisal, such as 2026-02-19; when it was measured without.")
    ] = None,
    package: Annotated[Path | None, typer.Option(help="The sealed model that it has to be of.")] = None,
    task: Annotated[Path | None, typer.Option(help="The task file or sealed dataset that it has to be of.")] = None,
    nonce: Annotated[str | None, typer.Option(help="That the run was ordered with.", metavar="HEX")] = None,
    simulated_root: SimulatedRoot = None,
    json: Json = False,
) -> None:
    """Verify a certificate against a policy for whoever measured. Asks nobody, and needs nothing but the file."""
    from confide.certify.verify import verify_certificate
    from confide.packages.sealed.package import SealedPackage

    read, mode = _certificate(certificate), Mode(simulated_root, frozenset())
    result = verify_certificate(
        read,
        mode.verifier(),
        mode.policy(policy),
        datetime.now(UTC),
        at=None if at is None else parse_time(at),
        model=None if package is None else SealedPackage.open(package).manifest.model_digest,
        dataset=None if task is None else _dataset(_data(str(task))),
        nonce=nonce,
    )
    if json:
        said = {"verified": result.verified, "simulated": result.simulated, **_facts(read)}
        output.result(said | {"checks": [asdict(check) for check in result.checks]})
    else:
        show_checks(result.checks)
        _show(read)
        show_verdict(result.verdict(), good=result.verified and not result.simulated)
    raise typer.Exit(Exit.TRUSTED if result.verified else Exit.REFUSED)


@app.command("index")
def index(
    folder: Annotated[Path, typer.Argument(help="A folder of certificates, *.json.", metavar="FOLDER")],
    out: Annotated[Path, typer.Option(help="The folder of the page; index.html in it is replaced.", metavar="SITE")],
    policy: SignerPolicy,
    simulated_root: SimulatedRoot = None,
    json: Json = False,
) -> None:
    """Write one static page of the models whose certificates are verified. It runs no script and asks nobody."""
    from confide.attest.policy_toml import policy_digest
    from confide.certify.index import Listed, page
    from confide.certify.verify import verify_certificate
    from confide.disk.files import replace_file

    if not folder.is_dir():
        raise typer.BadParameter(f"{folder} is no folder; name the one with the certificates")
    mode, now = Mode(simulated_root, frozenset()), datetime.now(UTC)
    verifier, asked = mode.verifier(), mode.policy(policy)
    if simulated_root is not None:
        output.messages.print(f"[bold red]{WARNING}[/]")
    listed: list[Listed] = []
    left_out: dict[str, str] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            read = _certificate(path)
        except MalformedScore as error:
            left_out[path.name] = error.code
            continue
        one = Listed(path.name, read, verify_certificate(read, verifier, asked, now))
        listed.append(one)
        if not one.verdict.verified:
            left_out[path.name] = ", ".join(check.code for check in one.verdict.failures)
    out.mkdir(parents=True, exist_ok=True)
    replace_file(out / "index.html", page(listed, f"{now:%Y-%m-%d}", policy_digest(asked)).encode())
    shown = sum(one.verdict.verified for one in listed)
    if json:
        output.result({"page": str(out / "index.html"), "listed": shown, "left_out": left_out})
        return
    for name, reason in left_out.items():
        output.note(f"Left out {name}: {reason}")
    output.console.print(f"Wrote [bold]{escape(str(out / 'index.html'))}[/]: {shown} verified", soft_wrap=True)


# -- what the options name ---------------------------------------------------------------------------------------------


def _data(task: str) -> "SealedData | bytes":
    from confide.packages.sealed.data import SealedData

    if task.startswith("lm-eval:"):
        raise InvalidTask(
            "Tasks of lm-eval are not measured by this version; write their items to a task file (docs/certify.md)."
        )
    path = Path(task)
    return SealedData.open(path) if path.is_dir() else _content(path)


def _content(path: Path) -> bytes:
    from confide.certify.tasks import MAX_TASK_BYTES

    too_large = InvalidTask(f"{path} has more than the {MAX_TASK_BYTES >> 20} MiB of a task file; divide it.")
    return read_file(path, MAX_TASK_BYTES, too_large)


def _dataset(data: "SealedData | bytes") -> str:
    from confide.certify.score import dataset_digest

    return dataset_digest(data)


def _certificate(path: Path) -> "ScoreCertificate":
    from confide.attest.scores import ScoreCertificate

    try:
        return ScoreCertificate.read(read_file(path))
    except MalformedScore as error:
        error.exit_code = Exit.MALFORMED
        raise


def _measurer(tee: TeeKind, simulated_tee: Path | None, *, offline: bool) -> "Measurer":
    from confide.certify.score import measurer
    from confide.client.relying_party import vendor_collateral
    from confide.enclave.tee import open_tee

    found = open_tee(tee, simulated_tee)
    if found.simulated:
        output.messages.print(f"[bold red]{WARNING}[/]")
    return measurer(found, vendor_collateral(offline=offline))


def _described(
    package: Path, data: "SealedData | bytes", metric: Metric | None, nonce: str | None, here: "Measurer"
) -> "Run":
    from confide.certify.score import dataset_digest, describe, fresh_nonce
    from confide.certify.tasks import read_task
    from confide.packages.sealed.package import SealedPackage
    from confide.receipts.keyset import is_nonce

    if isinstance(data, bytes):
        own = read_task(data).metric
        if metric not in (None, own):
            raise typer.BadParameter(f"the task is for {own.value}")
        metric = own
    if metric is None:
        raise typer.BadParameter("a sealed dataset does not say its metric; give --metric")
    model = SealedPackage.open(package).manifest.model_digest
    if nonce is not None and not is_nonce(nonce):
        raise typer.BadParameter("--nonce takes 32 bytes in lower-case hexadecimal")
    return describe(here, model, dataset_digest(data), metric, nonce or fresh_nonce())


def _create(out: Path, content: bytes) -> None:
    from confide.disk.files import create_file

    try:
        create_file(out, content)
    except OSError as error:
        raise typer.BadParameter(f"{out} cannot be written ({error.strerror}); choose another place") from None


# -- showing -----------------------------------------------------------------------------------------------------------


def _facts(certificate: "ScoreCertificate") -> dict[str, Any]:
    predicate = certificate.predicate
    return {
        "model": certificate.name,
        "task": predicate.task,
        "run": msgspec.to_builtins(predicate.run),
        "score": msgspec.to_builtins(predicate.score),
        "counts": msgspec.to_builtins(predicate.counts),
        "sampling": msgspec.to_builtins(predicate.sampling),
        "started": predicate.started.isoformat(),
        "finished": predicate.finished.isoformat(),
        "approved_by": {role.value: certificate.approved_by(role) for role in Role},
    }


def _show_run(run: "Run") -> None:
    lines = {
        "run": run.digest,
        "model": run.model,
        "dataset": run.dataset,
        "metric": run.metric.value,
        "harness": f"Confide {run.harness.version}, {run.harness.digest}",
        **run.measurement,
        "nonce": run.nonce,
    }
    for name, value in lines.items():
        output.console.print(Text(f"{name:<12} {printable(value)}"), soft_wrap=True)


def _show(certificate: "ScoreCertificate") -> None:
    predicate, score = certificate.predicate, certificate.predicate.score
    run = predicate.run
    lines = (
        f"model        {certificate.name}  {run.model}",
        f"task         {predicate.task}  {run.dataset}",
        f"{run.metric.value:<12} {score.value:g}  ({score.low:g} to {score.high:g} at {score.confidence:.0%}: "
        f"{score.interval})",
        f"scored       {predicate.counts.scored:,} {predicate.counts.unit} of {predicate.counts.items:,} items",
        f"measured     {predicate.finished:%Y-%m-%d %H:%M}, Confide {run.harness.version} {run.harness.digest[:16]}",
    )
    for line in lines:
        output.console.print(Text(printable(line)), soft_wrap=True)

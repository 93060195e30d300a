"""`confide certify`: measure a sealed model where nobody can look, certify its score, and verify such certificates.

Exit codes of `verify`: 0 verified, 10 refused, 20 no certificate.
"""

from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.markup import escape

from confide.attest.certificates import Role
from confide.attest.scores import Metric
from confide.cli import certifying, output
from confide.cli.attest import Exit, Mode
from confide.cli.certifying import (
    ApprovalOut,
    Approvals,
    DataKey,
    KeysAuthorities,
    KeysOption,
    NewFolder,
    NonceOption,
    OwnKey,
    OwnPackage,
    PackageFolder,
    SignerPolicy,
    SimulatedRoot,
    SimulatedTeeOption,
    TeeOption,
)
from confide.cli.files import read_file
from confide.cli.options import Json, Offline, OwnerFile
from confide.cli.tee import WARNING
from confide.enclave.tee import TeeKind
from confide.errors import MalformedScore

if TYPE_CHECKING:
    from confide.attest.scores import Prepared, Run, ScoreCertificate
    from confide.certify.runs import Attester
    from confide.packages.sealed.adapter import SealedAdapter
    from confide.packages.sealed.data import SealedData

app = typer.Typer(name="certify", help="Certified scores of sealed models.", no_args_is_help=True)

TaskOption = Annotated[
    str,
    typer.Option(
        "--task",
        help="A task file, a folder of `confide certify seal`, or a task of lm-eval, where that is installed.",
        metavar="FILE|FOLDER|lm-eval:NAME",
    ),
]
LmEvalTasks = Annotated[
    Path | None, typer.Option(help="Tasks of lm-eval in YAML, to choose from instead of its own.", metavar="FOLDER")
]
AdapterOption = Annotated[
    Path | None, typer.Option(help="A sealed adapter of `confide train lora`, to lay over the model.", metavar="FOLDER")
]
RunFile = Annotated[Path, typer.Argument(help="What `confide certify run` wrote.", metavar="RUN")]


@app.callback()
def certify() -> None:
    """Certified scores of sealed models."""


@app.command("seal")
def seal(
    task: Annotated[Path, typer.Argument(help="A task file: JSON Lines, see docs/certify.md.", metavar="FILE")],
    out: NewFolder,
    key: DataKey,
    owner: OwnerFile = None,
    json: Json = False,
) -> None:
    """Encrypt a dataset so that only environments that its owner's key service accepts can read it."""
    from confide.certify.tasks import read_task
    from confide.packages.sealed.draft import require_absent

    require_absent(out)
    content = _content(task)
    found = read_task(content)
    said = certifying.seal(content, out, key, owner)
    if json:
        output.result(said | {"task": found.name, "metric": found.metric.value, "items": len(found.items)})
        return
    output.console.print(f"Sealed the task {escape(found.name)} ({found.metric}): {len(found.items):,} items.")
    certifying.show_sealed(said, key)


@app.command("task")
def write_task(
    task: Annotated[
        str, typer.Argument(help="The task, with lm-eval's measure: acc without.", metavar="lm-eval:NAME[:acc_norm]")
    ],
    out: Annotated[Path, typer.Option(help="The task file to write; it must not exist.")],
    lm_eval_tasks: LmEvalTasks = None,
    json: Json = False,
) -> None:
    """Write a task of lm-eval as a task file, to seal it, to publish it, or to measure it where lm-eval is not."""
    from confide.certify.lm_eval_tasks import prepare_task
    from confide.certify.tasks import read_task

    content = prepare_task(task, lm_eval_tasks)
    certifying.create(out, content)
    made = read_task(content)
    if json:
        output.result(
            {"file": str(out), "dataset": made.digest, "task": made.name, "items": len(made.items)}
            | {"prepared": msgspec.to_builtins(made.prepared)}
        )
        return
    output.console.print(f"Wrote {len(made.items):,} items of {escape(made.name)}: {escape(str(out))}", soft_wrap=True)
    certifying.show_lines({"dataset": made.digest, **_prepared_by(made.prepared)})


@app.command("run")
def describe_run(
    package: PackageFolder,
    task: TaskOption,
    out: Annotated[Path, typer.Option(help="The description to write; it must not exist.")],
    lm_eval_tasks: LmEvalTasks = None,
    adapter: AdapterOption = None,
    metric: Annotated[Metric | None, typer.Option(help="Of a sealed task, which does not say it.")] = None,
    nonce: NonceOption = None,
    tee: TeeOption = TeeKind.AUTO,
    simulated_tee: SimulatedTeeOption = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Describe the run that this environment would make, for both owners to approve. Needs no key."""
    from confide.certify.consent import write_run

    data, over = _data(task, lm_eval_tasks), _adapter(adapter)
    run = _described(package, data, over, metric, nonce, certifying.here(tee, simulated_tee, offline=offline))
    certifying.create(out, write_run(run))
    if json:
        output.result({"run": str(out), "digest": run.digest, **msgspec.to_builtins(run)})
        return
    _show_run(run)
    output.console.print(f"Next, each owner: confide certify approve {escape(str(out))}", soft_wrap=True)


@app.command("approve")
def approve(
    run: RunFile,
    package: OwnPackage,
    key: OwnKey,
    out: ApprovalOut,
    owner: OwnerFile = None,
    json: Json = False,
) -> None:
    """Approve a run as the owner of its model or of its dataset. It holds for this run alone."""
    from confide.certify.consent import read_run

    described = read_run(read_file(run))
    given = certifying.consent(described, package, key, owner)
    if not json:
        _show_run(described)
    certifying.write_approval(described, given, out, json=json)


@app.command("score")
def score_package(
    package: PackageFolder,
    task: TaskOption,
    keys: KeysOption,
    out: Annotated[Path, typer.Option(help="The certificate to write; it must not exist.")],
    lm_eval_tasks: LmEvalTasks = None,
    adapter: AdapterOption = None,
    data_keys: Annotated[
        str | None, typer.Option(help="Address of the service of the data's and the adapter's keys, if it is another.")
    ] = None,
    keys_ca: KeysAuthorities = None,
    run: Annotated[
        Path | None, typer.Option(help="The run as it was approved; needed for a sealed dataset.", metavar="FILE")
    ] = None,
    approval: Approvals = None,
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

    data, over = _data(task, lm_eval_tasks), _adapter(adapter)
    if isinstance(data, SealedData) and run is None:
        raise typer.BadParameter("a sealed dataset takes --run, and an --approval of each owner")
    if run is not None and nonce is not None:
        raise typer.BadParameter("--run has a nonce; leave --nonce out")
    if out.exists():
        raise typer.BadParameter(f"{out} exists already; choose another name")
    output.quiet_transformers()
    here = certifying.here(tee, simulated_tee, offline=offline)
    wanted = _described(package, data, over, None, nonce, here) if run is None else read_run(read_file(run))
    consents = [read_consent(read_file(path)) for path in approval or ()]
    tls = client_context(keys_ca)
    ways = close_egress(keys=keys, upstream=None, other_keys=data_keys)
    try:
        certificate = score(
            here,
            SealedPackage.open(package),
            data,
            wanted,
            partial(fetch_key, keys, tls=tls, connector=ways.keys),
            adapter=over,
            fetch_data=partial(fetch_key, data_keys, tls=tls, connector=ways.other_keys) if data_keys else None,
            consents=consents,
            ways=ways,
        )
    finally:
        ways.close()
    certifying.create(out, certificate.write())
    if json:
        output.result({"certificate": str(out), **_facts(certificate)})
        return
    certifying.show_lines(_lines(certificate))
    output.console.print(f"Next: confide certify verify {escape(str(out))} --policy POLICY", soft_wrap=True)


@app.command("verify")
def verify(
    certificate: Annotated[Path, typer.Argument(help="What `confide certify score` wrote.", metavar="CERT")],
    policy: SignerPolicy,
    at: Annotated[
        str | None, typer.Option(help="Time of appraisal, such as 2026-02-19; when it was measured without.")
    ] = None,
    package: Annotated[Path | None, typer.Option(help="The sealed model that it has to be of.")] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="The task file, sealed dataset or task of lm-eval that it has to be of.",
            metavar="FILE|FOLDER|lm-eval:NAME",
        ),
    ] = None,
    lm_eval_tasks: LmEvalTasks = None,
    nonce: Annotated[str | None, typer.Option(help="That the run was ordered with.", metavar="HEX")] = None,
    simulated_root: SimulatedRoot = None,
    json: Json = False,
) -> None:
    """Verify a certificate against a policy for whoever measured. Asks nobody, and needs nothing but the file."""
    from confide.packages.sealed.package import SealedPackage

    read = _certificate(certificate)
    about = {
        "model": None if package is None else SealedPackage.open(package).manifest.model_digest,
        "dataset": None if task is None else _dataset(_data(task, lm_eval_tasks)),
        "nonce": nonce,
    }
    certifying.judge(
        read, policy, _facts(read), _lines(read), at=at, simulated_root=simulated_root, json=json, about=about
    )


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


def _data(task: str, lm_eval_tasks: Path | None) -> "SealedData | bytes":
    from confide.certify.lm_eval_tasks import PREFIX, prepare_task
    from confide.packages.sealed.data import SealedData

    if task.startswith(PREFIX):
        return prepare_task(task, lm_eval_tasks)
    if lm_eval_tasks is not None:
        raise typer.BadParameter("--lm-eval-tasks goes with --task lm-eval:NAME")
    path = Path(task)
    return SealedData.open(path) if path.is_dir() else _content(path)


def _content(path: Path) -> bytes:
    from confide.certify.tasks import TASK_FILE

    return read_file(path, TASK_FILE.most_bytes, TASK_FILE.too_large())


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


def _adapter(folder: Path | None) -> "SealedAdapter | None":
    from confide.packages.sealed.adapter import SealedAdapter

    return None if folder is None else SealedAdapter.open(folder)


def _described(
    package: Path,
    data: "SealedData | bytes",
    adapter: "SealedAdapter | None",
    metric: Metric | None,
    nonce: str | None,
    here: "Attester",
) -> "Run":
    from confide.certify.score import dataset_digest, describe
    from confide.certify.tasks import read_task
    from confide.packages.sealed.package import SealedPackage

    if isinstance(data, bytes):
        own = read_task(data).metric
        if metric not in (None, own):
            raise typer.BadParameter(f"the task is for {own.value}")
        metric = own
    if metric is None:
        raise typer.BadParameter("a sealed dataset does not say its metric; give --metric")
    model, over = SealedPackage.open(package).manifest.model_digest, adapter.manifest.adapter if adapter else ""
    return describe(here, model, dataset_digest(data), metric, certifying.nonce_of(nonce), adapter=over)


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
        "prepared": msgspec.to_builtins(predicate.prepared),
        "started": predicate.started.isoformat(),
        "finished": predicate.finished.isoformat(),
        "approved_by": {role.value: certificate.approved_by(role) for role in Role},
    }


def _show_run(run: "Run") -> None:
    certifying.show_lines(
        {
            "run": run.digest,
            "model": run.model,
            **({"adapter": run.adapter} if run.adapter else {}),
            "dataset": run.dataset,
            "metric": run.metric.value,
            "harness": f"Confide {run.harness.version}, {run.harness.digest}",
            **run.measurement,
            "nonce": run.nonce,
        }
    )


def _prepared_by(prepared: "Prepared | None") -> dict[str, str]:
    if prepared is None:
        return {}
    return {
        "prepared by": f"{prepared.harness} {prepared.version}: {prepared.task}, {prepared.measure}",
        "its config": prepared.config,
        "its data": prepared.data,
    }


def _lines(certificate: "ScoreCertificate") -> dict[str, str]:
    predicate, score, run = certificate.predicate, certificate.predicate.score, certificate.run
    interval = f"{score.low:g} to {score.high:g} at {score.confidence:.0%}: {score.interval}"
    return {
        "model": f"{certificate.name}  {run.model}",
        **({"adapter": run.adapter} if run.adapter else {}),
        "task": f"{predicate.task}  {run.dataset}",
        **_prepared_by(predicate.prepared),
        run.metric.value: f"{score.value:g}  ({interval})",
        "scored": f"{predicate.counts.scored:,} {predicate.counts.unit} of {predicate.counts.items:,} items",
        "measured": f"{predicate.finished:%Y-%m-%d %H:%M}, Confide {run.harness.version} {run.harness.digest[:16]}",
    }

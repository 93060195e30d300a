"""`confide train`: train an adapter where nobody can look, certify what it was made from, and verify such certificates.

Exit codes of `verify`: 0 verified, 10 refused, 20 no certificate.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.markup import escape

from confide.attest.certificates import Role
from confide.cli import certifying, output
from confide.cli.attest import Exit
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
from confide.enclave.tee import TeeKind
from confide.errors import InvalidCorpus, MalformedTraining

if TYPE_CHECKING:
    from confide.attest.training import TrainingCertificate, TrainingRun
    from confide.certify.runs import Attester
    from confide.certify.train import Recipe
    from confide.packages.sealed.data import SealedData

app = typer.Typer(name="train", help="Adapters trained on sealed data, with certificates.", no_args_is_help=True)

CorpusFile = Annotated[Path, typer.Argument(help="A corpus file: JSON Lines, see docs/train.md.", metavar="FILE")]
DataOption = Annotated[
    Path, typer.Option("--data", help="A corpus file, or a folder of `confide train seal`.", metavar="FILE|FOLDER")
]
RecipeOption = Annotated[
    Path | None, typer.Option(help="TOML: hyperparameters, seed, checks of the dataset; the defaults without.")
]
AdapterKey = Annotated[
    str | None, typer.Option(help="Id of the key that the adapter is sealed with: its owner's.", metavar="ID")
]
AdapterFolder = Annotated[Path, typer.Argument(help="What `confide train lora` wrote.", metavar="ADAPTER")]
RunFile = Annotated[Path, typer.Argument(help="What `confide train run` wrote.", metavar="RUN")]


@app.callback()
def train() -> None:
    """Adapters trained on sealed data, with certificates of what they were made from."""


@app.command("key")
def key(
    file: Annotated[Path, typer.Argument(help="The file to make; one that is there is shown.", metavar="FILE")],
    json: Json = False,
) -> None:
    """Make the key that an adapter will be sealed with, for its owner to keep and to give to a key service."""
    from confide.cli.seal import read_or_make

    made = read_or_make(file)
    if json:
        output.result({"key": made.id, "file": str(file)})
        return
    output.console.print(f"Adapter key     {made.id}   in {escape(str(file))}: keep it secret", soft_wrap=True)
    output.console.print("Next: confide keys add KEYFILE --model-digest BASE --policy POLICY")


@app.command("check")
def check(corpus: CorpusFile, recipe: RecipeOption = None, json: Json = False) -> None:
    """Put a dataset to a recipe's checks, as a training will: there, a sealed one is not told which did not pass."""
    from confide.certify.corpus import read_corpus
    from confide.certify.dataset_checks import described, passed

    read = read_corpus(_content(corpus))
    found = passed(tuple(map(described, _recipe(recipe).checks)), read)
    if json:
        output.result({"corpus": read.name, "texts": len(read.texts), "passed": msgspec.to_builtins(found)})
        return
    output.console.print(f"The corpus {escape(read.name)} passes: {len(read.texts):,} texts.")
    certifying.show_lines({one.check: _counted(one.found) for one in found})


@app.command("seal")
def seal(corpus: CorpusFile, out: NewFolder, key: DataKey, owner: OwnerFile = None, json: Json = False) -> None:
    """Encrypt a corpus so that only environments that its owner's key service accepts can read it."""
    from confide.certify.corpus import read_corpus
    from confide.packages.sealed.draft import require_absent

    require_absent(out)
    content = _content(corpus)
    read = read_corpus(content)
    said = certifying.seal(content, out, key, owner)
    if json:
        output.result(said | {"corpus": read.name, "texts": len(read.texts)})
        return
    output.console.print(f"Sealed the corpus {escape(read.name)}: {len(read.texts):,} texts.")
    certifying.show_sealed(said, key)


@app.command("run")
def describe_run(
    package: PackageFolder,
    data: DataOption,
    adapter_key: AdapterKey,
    out: Annotated[Path, typer.Option(help="The description to write; it must not exist.")],
    recipe: RecipeOption = None,
    nonce: NonceOption = None,
    tee: TeeOption = TeeKind.AUTO,
    simulated_tee: SimulatedTeeOption = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Describe the training that this environment would make, for both owners to approve. Needs no key."""
    from confide.certify.consent import write_run

    here = certifying.here(tee, simulated_tee, offline=offline)
    run = _described(package, _data(data), adapter_key, _recipe(recipe), nonce, here)
    certifying.create(out, write_run(run))
    if json:
        output.result({"run": str(out), "digest": run.digest, **msgspec.to_builtins(run)})
        return
    _show_run(run)
    output.console.print(f"Next, each owner: confide train approve {escape(str(out))}", soft_wrap=True)


@app.command("approve")
def approve(
    run: RunFile, package: OwnPackage, key: OwnKey, out: ApprovalOut, owner: OwnerFile = None, json: Json = False
) -> None:
    """Approve a training as the owner of its base or of its dataset. It holds for this run alone."""
    from confide.certify.consent import read_training_run

    described = read_training_run(read_file(run))
    given = certifying.consent(described, package, key, owner)
    if not json:
        _show_run(described)
    certifying.write_approval(described, given, out, json=json)


@app.command("lora")
def lora(
    package: PackageFolder,
    data: DataOption,
    keys: KeysOption,
    out: Annotated[Path, typer.Option(help="The sealed adapter to write; it must not exist.", metavar="ADAPTER")],
    adapter_key: AdapterKey = None,
    recipe: RecipeOption = None,
    data_keys: Annotated[
        str | None, typer.Option(help="Address of the service of the data's and the adapter's keys, if it is another.")
    ] = None,
    keys_ca: KeysAuthorities = None,
    run: Annotated[
        Path | None, typer.Option(help="The run as it was approved; needed for a sealed dataset.", metavar="FILE")
    ] = None,
    approval: Approvals = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="File for what a killed run leaves, sealed; if it is there, the run goes on from it."),
    ] = None,
    checkpoint_steps: Annotated[int, typer.Option(help="Steps from one checkpoint to the next.", min=1)] = 50,
    nonce: NonceOption = None,
    tee: TeeOption = TeeKind.AUTO,
    simulated_tee: SimulatedTeeOption = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Train a LoRA adapter over a sealed model inside this environment, and sign what it was made from.

    Every way out is closed first but for the key services. Of base and data nothing leaves but the certificate and the
    adapter, which only its owner's key opens.
    """
    from confide.certify.consent import read_consent, read_training_run
    from confide.certify.train import train
    from confide.enclave.boot import examine
    from confide.enclave.egress import close_egress
    from confide.enclave.fetch_key import fetch_key
    from confide.net.tls import client_context
    from confide.packages.sealed.data import SealedData
    from confide.packages.sealed.draft import require_absent
    from confide.packages.sealed.package import SealedPackage

    require_absent(out)
    content = _data(data)
    if isinstance(content, SealedData) and run is None:
        raise typer.BadParameter("a sealed dataset takes --run, and an --approval of each owner")
    if run is not None and (nonce or recipe or adapter_key):
        raise typer.BadParameter("--run has a nonce, a recipe and an adapter's key; leave those options out")
    if checkpoint is not None and run is None and nonce is None:
        raise typer.BadParameter("--checkpoint goes with --run or --nonce: without, every run is another one")
    output.quiet_transformers()
    here = certifying.here(tee, simulated_tee, offline=offline)
    wanted = (
        _described(package, content, adapter_key, _recipe(recipe), nonce, here)
        if run is None
        else read_training_run(read_file(run))
    )
    consents = [read_consent(read_file(path)) for path in approval or ()]
    tls = client_context(keys_ca)
    ways = close_egress(keys=keys, upstream=None, other_keys=data_keys)
    try:
        trained = train(
            here,
            SealedPackage.open(package),
            content,
            wanted,
            partial(fetch_key, keys, tls=tls, connector=ways.keys),
            fetch_data=partial(fetch_key, data_keys, tls=tls, connector=ways.other_keys) if data_keys else None,
            consents=consents,
            ways=ways,
            examine=examine,
            checkpoint=checkpoint,
            every=checkpoint_steps,
        )
    finally:
        ways.close()
    trained.seal(out)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    if json:
        output.result({"adapter": str(out), **_facts(trained.certificate)})
        return
    certifying.show_lines(_lines(trained.certificate))
    output.console.print(f"Next: confide train verify {escape(str(out))} --policy POLICY", soft_wrap=True)


@app.command("verify")
def verify(
    certificate: Annotated[
        Path, typer.Argument(help="A folder of `confide train lora`, or the certificate in it.", metavar="CERT|ADAPTER")
    ],
    policy: SignerPolicy,
    at: Annotated[
        str | None, typer.Option(help="Time of appraisal, such as 2026-02-19; when it was trained without.")
    ] = None,
    package: Annotated[Path | None, typer.Option(help="The sealed model that it has to be over.")] = None,
    data: Annotated[Path | None, typer.Option(help="The corpus file or sealed dataset that it has to be from.")] = None,
    adapter: Annotated[str | None, typer.Option(help="Digest of the adapter that it has to be of.")] = None,
    nonce: Annotated[str | None, typer.Option(help="That the run was ordered with.", metavar="HEX")] = None,
    simulated_root: SimulatedRoot = None,
    json: Json = False,
) -> None:
    """Verify a certificate against a policy for whoever trained. Asks nobody, and needs nothing but the file."""
    from confide.attest.training import TrainingCertificate
    from confide.certify.score import dataset_digest
    from confide.packages.sealed.adapter import SealedAdapter
    from confide.packages.sealed.package import SealedPackage

    try:
        if certificate.is_dir():
            read = SealedAdapter.open(certificate).certificate
        else:
            read = TrainingCertificate.read(read_file(certificate))
    except MalformedTraining as error:
        error.exit_code = Exit.MALFORMED
        raise
    about = {
        "adapter": adapter,
        "base": None if package is None else SealedPackage.open(package).manifest.model_digest,
        "dataset": None if data is None else dataset_digest(_data(data)),
        "nonce": nonce,
    }
    certifying.judge(
        read, policy, _facts(read), _lines(read), at=at, simulated_root=simulated_root, json=json, about=about
    )


@app.command("open")
def open_adapter(
    adapter: AdapterFolder,
    key: Annotated[Path, typer.Option(help="The adapter's key.")],
    out: NewFolder,
    json: Json = False,
) -> None:
    """Write an adapter's two files in the clear, as peft reads them, for its owner at home."""
    from confide.packages.sealed.adapter import SealedAdapter
    from confide.packages.sealed.draft import draft_folder
    from confide.packages.sealed.key import ModelKey

    sealed = SealedAdapter.open(adapter)
    files = sealed.unlock(ModelKey.read(key)).files()
    with draft_folder(out) as draft:
        for name, content in files.items():
            (draft / name).write_bytes(content)
        draft.rename(out)
    if json:
        output.result({"folder": str(out), "adapter": sealed.manifest.adapter, "files": sorted(files)})
        return
    output.console.print(f"Opened the adapter {sealed.manifest.adapter} into {escape(str(out))}", soft_wrap=True)


# -- what the options name ---------------------------------------------------------------------------------------------


def _content(path: Path) -> bytes:
    from confide.certify.corpus import CORPUS_FILE

    return read_file(path, CORPUS_FILE.most_bytes, CORPUS_FILE.too_large())


def _data(path: Path) -> "SealedData | bytes":
    from confide.packages.sealed.data import SealedData

    return SealedData.open(path) if path.is_dir() else _content(path)


def _recipe(path: Path | None) -> "Recipe":
    from confide.certify.train import MAX_RECIPE_BYTES, Recipe, read_recipe

    if path is None:
        return Recipe(1)
    too_large = InvalidCorpus(f"{path} has more than the {MAX_RECIPE_BYTES >> 10} KiB of a recipe; shorten its lists.")
    try:
        return read_recipe(read_file(path, MAX_RECIPE_BYTES, too_large).decode())
    except UnicodeDecodeError:
        raise InvalidCorpus(f"{path} is no text in UTF-8; write the recipe as TOML.") from None


def _described(
    package: Path, data: "SealedData | bytes", key: str | None, recipe: "Recipe", nonce: str | None, here: "Attester"
) -> "TrainingRun":
    from confide.attest.training import is_key_id
    from confide.certify.score import dataset_digest
    from confide.certify.train import describe_training
    from confide.packages.sealed.package import SealedPackage

    if key is None or not is_key_id(key):
        raise typer.BadParameter("--adapter-key takes the id of a key, 32 hexadecimal digits: see `confide train key`")
    base = SealedPackage.open(package).manifest.model_digest
    return describe_training(here, base, dataset_digest(data), key, recipe, certifying.nonce_of(nonce))


# -- showing -----------------------------------------------------------------------------------------------------------


def _facts(certificate: "TrainingCertificate") -> dict[str, Any]:
    predicate = certificate.predicate
    return {
        "base": certificate.name,
        "corpus": predicate.corpus,
        "adapter_digest": predicate.adapter,
        "files": dict(certificate.files),
        "run": msgspec.to_builtins(certificate.run),
        "passed": msgspec.to_builtins(predicate.passed),
        "amount": msgspec.to_builtins(predicate.amount),
        "resumed_after": [part.steps for part in predicate.earlier],
        "started": predicate.started.isoformat(),
        "finished": predicate.finished.isoformat(),
        "approved_by": {role.value: certificate.approved_by(role) for role in Role},
    }


def _lines(certificate: "TrainingCertificate") -> dict[str, str]:
    predicate, run = certificate.predicate, certificate.run
    amount = predicate.amount
    return {
        "adapter": predicate.adapter,
        "base": f"{certificate.name}  {run.base}",
        "corpus": f"{predicate.corpus}  {run.dataset}",
        "trained": f"{amount.texts:,} texts, {amount.tokens:,} tokens, {amount.steps:,} steps, seed {run.seed}",
        "lora": _settings(run),
        **({"resumed": f"after {_steps(certificate)} steps"} if predicate.earlier else {}),
        **{one.check: _counted(one.found) for one in predicate.passed},
        "finished": f"{predicate.finished:%Y-%m-%d %H:%M}, Confide {run.harness.version} {run.harness.digest[:16]}",
    }


def _show_run(run: "TrainingRun") -> None:
    certifying.show_lines(
        {
            "run": run.digest,
            "base": run.base,
            "dataset": run.dataset,
            "adapter key": run.key,
            "lora": _settings(run),
            "seed": str(run.seed),
            **{one.check: str(one.settings or "") for one in run.checks},
            "harness": f"Confide {run.harness.version}, {run.harness.digest}",
            **run.measurement,
            "nonce": run.nonce,
        }
    )


def _steps(certificate: "TrainingCertificate") -> str:
    return ", ".join(f"{part.steps:,}" for part in certificate.predicate.earlier)


def _settings(run: "TrainingRun") -> str:
    return ", ".join(f"{name} {getattr(run.lora, name)}" for name in run.lora.__struct_fields__)


def _counted(found: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in found.items())

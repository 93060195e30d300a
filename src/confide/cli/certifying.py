"""What the commands for certified runs have in common: their options, an environment, approvals and verdicts."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from confide.attest.certificates import Role
from confide.cli import output
from confide.cli.attest import Exit, Mode, parse_time, show_checks, show_verdict
from confide.cli.tee import WARNING
from confide.enclave.tee import TeeKind
from confide.printable import printable

if TYPE_CHECKING:
    from confide.attest.certificates import AnyCertificate
    from confide.attest.scores import Run
    from confide.attest.training import TrainingRun
    from confide.certify.consent import Consent
    from confide.certify.runs import Attester

PackageFolder = Annotated[Path, typer.Argument(help="The model, as `confide seal` wrote it.", metavar="PACKAGE")]
TeeOption = Annotated[TeeKind, typer.Option(help="The trusted execution environment; auto takes what is there.")]
SimulatedTeeOption = Annotated[
    Path | None, typer.Option(help="With --tee simulated: what `confide tee simulate init` made.")
]
NonceOption = Annotated[
    str | None, typer.Option(help="Of whoever orders the run, 64 hexadecimal digits; a fresh one without.")
]
SignerPolicy = Annotated[
    Path, typer.Option("--policy", help="TOML: what the evidence of whoever made the run must show; it names code.")
]
SimulatedRoot = Annotated[
    Path | None, typer.Option(help="Root of simulated hardware, to try things out: it proves nothing.", metavar="FILE")
]
KeysOption = Annotated[str, typer.Option(help="Address of the model owner's `confide keys serve`.")]
KeysAuthorities = Annotated[Path | None, typer.Option(help="PEM file of the authorities to trust there.")]
Approvals = Annotated[
    list[Path] | None, typer.Option(help="An owner's approval of the run; one of each owner.", metavar="FILE")
]
OwnPackage = Annotated[Path, typer.Option(help="Your own package: the sealed model, or the sealed dataset.")]
OwnKey = Annotated[Path, typer.Option(help="The key that it was sealed with.")]
ApprovalOut = Annotated[Path, typer.Option(help="The approval to write; it must not exist.")]
DataKey = Annotated[Path, typer.Option(help="File of the dataset's key, 32 bytes; made where there is none.")]
NewFolder = Annotated[Path, typer.Option(help="The folder to write; it must not exist.")]


def here(tee: TeeKind, simulated_tee: Path | None, *, offline: bool) -> "Attester":
    """This environment, with a warning where it is none."""
    from confide.certify.runs import attester
    from confide.client.relying_party import vendor_collateral
    from confide.enclave.tee import open_tee

    found = open_tee(tee, simulated_tee)
    if found.simulated:
        output.messages.print(f"[bold red]{WARNING}[/]")
    return attester(found, vendor_collateral(offline=offline))


def nonce_of(order: str | None) -> str:
    """Whoever orders a run names it, and else it is a fresh one."""
    from confide.certify.runs import fresh_nonce
    from confide.receipts.keyset import is_nonce

    if order is not None and not is_nonce(order):
        raise typer.BadParameter("--nonce takes 32 bytes in lower-case hexadecimal")
    return order or fresh_nonce()


def seal(content: bytes, out: Path, key: Path, owner: Path | None) -> dict[str, str]:
    """Seal the file of a dataset, and say what came out."""
    from confide.cli.owner import read_or_make_key
    from confide.cli.seal import read_or_make
    from confide.packages.sealed.data import seal_data

    signer, data_key = read_or_make_key(owner), read_or_make(key)
    manifest = seal_data(content, out, key=data_key, owner=signer)
    return {"package": str(out), "dataset": manifest.dataset, "key": manifest.key, "owner": str(signer.public)}


def show_sealed(said: Mapping[str, str], key: Path) -> None:
    """The same for people, with what to do next."""
    from confide.packages.owner import OwnerPublicKey

    for line in (
        f"Dataset digest  {said['dataset']}   for policies",
        f"Dataset key     {said['key']}   in {key}: keep it secret",
        f"Signed by       {OwnerPublicKey.parse(said['owner']).fingerprint}",
        "Next: confide keys add KEYFILE --model-digest MODEL --policy POLICY",
    ):
        output.console.print(Text(line), soft_wrap=True)


def consent(run: "Run | TrainingRun", package: Path, key: Path, owner: Path | None) -> "Consent":
    """An owner's, who has the key that a package of the run is sealed with."""
    from confide.certify.consent import consent_to
    from confide.cli.owner import read_key
    from confide.packages.manifest import PackageKind, read_kind
    from confide.packages.sealed.data import SealedData
    from confide.packages.sealed.key import ModelKey
    from confide.packages.sealed.package import SealedPackage

    signer, package_key = read_key(owner), ModelKey.read(key)
    if read_kind(package) is PackageKind.DATA:
        data = SealedData.open(package, {signer.public})
        package_key.require(data.manifest.key, package)
        role, own, named = Role.DATA, data.manifest.dataset, run.dataset
    else:
        model = SealedPackage.open(package, {signer.public})
        model.unlock(package_key)
        role, own, named = Role.MODEL, model.manifest.model_digest, run.stated_model
    if own != named:
        raise typer.BadParameter(f"the run is on another {role.value}, {named}, and yours is {own}")
    return consent_to(run, role, signer, package_key)


def write_approval(run: "Run | TrainingRun", given: "Consent", out: Path, *, json: bool) -> None:
    """Write an owner's consent, and say whose it is."""
    from confide.certify.consent import write_consent
    from confide.packages.owner import OwnerPublicKey

    create(out, write_consent(given))
    role, owner = given.approval.role.value, given.approval.owner
    if json:
        output.result({"approval": str(out), "role": role, "run": run.digest, "owner": owner})
        return
    fingerprint = OwnerPublicKey.parse(owner).fingerprint
    output.console.print(Text(f"Approved as the owner of the {role}, {fingerprint}: {out}"), soft_wrap=True)


def judge(
    certificate: "AnyCertificate",
    policy: Path,
    facts: Mapping[str, Any],
    lines: Mapping[str, str],
    *,
    at: str | None,
    simulated_root: Path | None,
    json: bool,
    about: Mapping[str, str | None],
) -> None:
    """Verify a certificate, show the verdict, and leave. facts, lines: what it says, for machines and for people."""
    from confide.certify.verify import verify_certificate

    mode = Mode(simulated_root, frozenset())
    when = None if at is None else parse_time(at)
    result = verify_certificate(certificate, mode.verifier(), mode.policy(policy), datetime.now(UTC), at=when, **about)
    if json:
        said = {"verified": result.verified, "simulated": result.simulated, **facts}
        output.result(said | {"checks": [asdict(check) for check in result.checks]})
    else:
        show_checks(result.checks)
        show_lines(lines)
        show_verdict(result.verdict(), good=result.verified and not result.simulated)
    raise typer.Exit(Exit.TRUSTED if result.verified else Exit.REFUSED)


def show_lines(lines: Mapping[str, str]) -> None:
    """Names and values, of others' words too."""
    for name, value in lines.items():
        output.console.print(Text(printable(f"{name:<12} {value}")), soft_wrap=True)


def create(out: Path, content: bytes) -> None:
    """Write a file that must not exist."""
    from confide.disk.files import create_file

    try:
        create_file(out, content)
    except OSError as error:
        raise typer.BadParameter(f"{out} cannot be written ({error.strerror}); choose another place") from None

"""`confide receipt`: verify what a workload signed about an answer, offline, with what was kept.

Exit codes as `confide attest` has them: 0 verified, 10 refused or not verified, 20 malformed, 30 wrong usage.
"""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from confide.cli import output
from confide.cli.attest import (
    At,
    AttestationKeys,
    CollateralFiles,
    Exit,
    Mode,
    PolicyFile,
    SimulatedRoot,
    VerdictGroup,
    parse_time,
    read_bundle,
    show_checks,
    show_verdict,
)
from confide.cli.files import read_file
from confide.cli.options import Json
from confide.errors import InvalidPolicy

if TYPE_CHECKING:
    from confide.receipts.verify import Grounds, ReceiptResult

app = typer.Typer(
    name="receipt",
    help="Verify receipts: exits with 0 verified, 10 refused, 20 malformed, 30 wrong usage.",
    no_args_is_help=True,
    cls=VerdictGroup,
)


@app.callback()
def group() -> None:
    """Verify receipts: exits with 0 verified, 10 refused, 20 malformed, 30 wrong usage."""


@app.command("verify")
def verify(
    file: Annotated[Path, typer.Argument(help="A receipt, JSON.", metavar="FILE")],
    bundle: Annotated[
        Path | None, typer.Option(help="Evidence for the workload, frozen then.", metavar="FROZEN")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="An ACI attestation report in its place, of any gateway.", metavar="FILE")
    ] = None,
    nonce: Annotated[str | None, typer.Option(help="That the report was asked for with.", metavar="HEX")] = None,
    keyset_digest: Annotated[
        str | None,
        typer.Option(help="Of a keyset that you have verified before, sha256:...; needs --report.", metavar="DIGEST"),
    ] = None,
    request: Annotated[Path | None, typer.Option(help="The exact body that was sent.", metavar="FILE")] = None,
    response: Annotated[
        Path | None, typer.Option(help="The exact body that came; of a stream, all of it.", metavar="FILE")
    ] = None,
    session: Annotated[
        Path | None, typer.Option(help="The session of an aggregator's upstream.", metavar="FILE")
    ] = None,
    previous: Annotated[Path | None, typer.Option(help="The receipt before this one.", metavar="FILE")] = None,
    collateral: CollateralFiles = None,
    policy: PolicyFile = None,
    at: At = None,
    simulated_root: SimulatedRoot = None,
    attestation_key: AttestationKeys = None,
    json: Json = False,
) -> None:
    """Check a receipt's signature, the evidence for its key, and the bytes that were asked and answered."""
    from confide.receipts.receipt import Receipt
    from confide.receipts.session import AttestedSession
    from confide.receipts.verify import verify_receipt

    if bundle is not None and report is not None:
        raise typer.BadParameter("give either --bundle or --report")
    if report is None and (nonce or keyset_digest or collateral):
        raise typer.BadParameter("--nonce, --keyset-digest and --collateral go with --report")
    read = Receipt.read(read_file(file))
    grounds = _grounds(
        Mode(simulated_root, frozenset(attestation_key or ())),
        bundle, report, policy, at, nonce, keyset_digest, collateral,
    )  # fmt: skip
    result = verify_receipt(
        read,
        grounds,
        request=None if request is None else read_file(request),
        response=None if response is None else read_file(response),
        session=None if session is None else AttestedSession.read(read_file(session)),
        previous=None if previous is None else Receipt.read(read_file(previous)),
    )
    if json:
        output.result(as_json(result))
    else:
        show(result)
    raise typer.Exit(Exit.TRUSTED if result.verified else Exit.REFUSED)


def _grounds(
    mode: Mode,
    bundle: Path | None,
    report: Path | None,
    policy: Path | None,
    at: str | None,
    nonce: str | None,
    keyset_digest: str | None,
    collateral: list[Path] | None,
) -> "Grounds":
    from confide.attest.collateral import Collateral
    from confide.attest.evidence_files import read_collateral
    from confide.receipts.keyset import is_nonce
    from confide.receipts.report import Report
    from confide.receipts.verify import grounds_of_bundle, grounds_of_report, no_grounds

    if bundle is not None:
        frozen = read_bundle(bundle)
        if frozen.simulated and mode.simulated_root is None:
            raise InvalidPolicy("This bundle is SIMULATED and proves nothing; give --simulated-root to look anyway.")
        chosen = None if policy is None else mode.policy(policy)
        now = None if at is None else parse_time(at)
        return grounds_of_bundle(frozen, mode.verifier(), policy=chosen, now=now)
    if report is None:
        return no_grounds()
    if nonce is not None and not is_nonce(nonce):
        raise typer.BadParameter("--nonce takes 32 bytes in lower-case hexadecimal")
    documents = Collateral(read_collateral(map(read_file, collateral)).documents) if collateral else None
    return grounds_of_report(
        Report.read(read_file(report)),
        mode.verifier(),
        mode.policy(policy),
        datetime.now(UTC) if at is None else parse_time(at),
        nonce=nonce,
        collateral=documents,
        pinned=keyset_digest or "",
    )


def show(result: "ReceiptResult") -> None:
    """Every check in a table, and the verdict."""
    show_checks(result.checks)
    show_verdict(result.verdict(), good=result.verified and not result.simulated)


def as_json(result: "ReceiptResult") -> dict[str, Any]:
    """The same for machines."""
    return {
        "verified": result.verified,
        "simulated": result.simulated,
        "receipt_id": result.receipt.fields.receipt_id,
        "checks": [asdict(check) for check in result.checks],
    }

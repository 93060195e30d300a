"""`confide receipt`: verify what a workload, or a client itself, signed about an answer, offline, with what was kept.

Exit codes as `confide attest` has them: 0 verified, 10 refused or not verified, 20 malformed, 30 wrong usage.
"""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

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
from confide.cli.options import Json, TrustedOwner
from confide.errors import InvalidPolicy
from confide.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from confide.receipts.client import ClientReceiptResult
    from confide.receipts.documents import Document
    from confide.receipts.verdict import Verdict
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
    client_key: Annotated[
        str | None,
        typer.Option(help="Of a client's own receipt: the key that you know it by; see `receipt key`.", metavar="HEX"),
    ] = None,
    shell: Annotated[
        Path | None, typer.Option(help="Of a client's own receipt: the client folder of its model.", metavar="FOLDER")
    ] = None,
    owner: TrustedOwner = None,
    collateral: CollateralFiles = None,
    policy: PolicyFile = None,
    at: At = None,
    simulated_root: SimulatedRoot = None,
    attestation_key: AttestationKeys = None,
    json: Json = False,
) -> None:
    """Check a receipt's signature, who made it, and the bytes that were asked and answered.

    A workload's is held against evidence for its key; a client's own, of the hybrid mode, is its own word and no more.
    """
    from confide.receipts.client import is_client_receipt
    from confide.receipts.documents import read_document
    from confide.receipts.receipt import MAX_RECEIPT_BYTES

    document = read_document(read_file(file), "receipt", MAX_RECEIPT_BYTES)
    of_workload = {
        "--bundle": bundle, "--report": report, "--nonce": nonce, "--keyset-digest": keyset_digest,
        "--session": session, "--collateral": collateral, "--policy": policy, "--at": at,
    }  # fmt: skip
    of_client = {"--client-key": client_key, "--shell": shell, "--owner": owner}
    bodies = [None if path is None else read_file(path) for path in (request, response)]
    result: ReceiptResult | ClientReceiptResult
    if is_client_receipt(document):
        _require_none(of_workload, "a workload's receipt, and this is a client's own")
        result = _verify_client(document, bodies, client_key, shell, owner, previous)
    else:
        _require_none(of_client, "a client's own receipt, and this is a workload's")
        mode = Mode(simulated_root, frozenset(attestation_key or ()))
        if bundle is not None and report is not None:
            raise typer.BadParameter("give either --bundle or --report")
        if report is None and (nonce or keyset_digest or collateral):
            raise typer.BadParameter("--nonce, --keyset-digest and --collateral go with --report")
        grounds = lambda: _grounds(mode, bundle, report, policy, at, nonce, keyset_digest, collateral)  # noqa: E731
        result = _verify_workload(document, bodies, grounds, session, previous)
    if json:
        output.result(as_json(result))
    else:
        show(result)
    raise typer.Exit(Exit.TRUSTED if result.verified else Exit.REFUSED)


@app.command("key")
def key(json: Json = False) -> None:
    """Print the public key that this client signs its own receipts and its audit log with."""
    from confide.receipts.client_key import ClientKey

    public = ClientKey.open().public
    if json:
        output.result({"public_key": public})
    else:
        output.console.print(public)


def _require_none(options: dict[str, Any], belong_to: str) -> None:
    given = [name for name, value in options.items() if value]
    if given:
        raise typer.BadParameter(f"{' and '.join(given)}: for {belong_to}")


def _verify_workload(
    document: "Document",
    bodies: list[bytes | None],
    grounds: "Callable[[], Grounds]",
    session: Path | None,
    previous: Path | None,
) -> "ReceiptResult":
    from confide.receipts.receipt import Receipt
    from confide.receipts.session import AttestedSession
    from confide.receipts.verify import verify_receipt

    receipt = Receipt.of(document)
    return verify_receipt(
        receipt,
        grounds(),
        request=bodies[0],
        response=bodies[1],
        session=None if session is None else AttestedSession.read(read_file(session)),
        previous=None if previous is None else Receipt.read(read_file(previous)),
    )


def _verify_client(
    document: "Document",
    bodies: list[bytes | None],
    client_key: str | None,
    shell: Path | None,
    owner: str | None,
    previous: Path | None,
) -> "ClientReceiptResult":
    from confide.receipts.client import ClientReceipt, Package, verify_client_receipt

    package = None
    if shell is not None:
        from confide.packages.manifest import PackageKind
        from confide.packages.signing import open_package
        from confide.packages.trusted_owners import accepted_owners

        release = open_package(shell, PackageKind.SHELL, accepted_owners(owner)).release
        package = Package(release.model_digest.hex(), str(release.owner), release.table_digest.hex())
    return verify_client_receipt(
        ClientReceipt.of(document),
        client_key=client_key,
        request=bodies[0],
        response=bodies[1],
        package=package,
        previous=None if previous is None else ClientReceipt.read(read_file(previous)),
    )


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


def _collection(result: "Verdict") -> "Mapping[str, Any] | None":
    """What a workload's receipt says of a user's own collection, where it says something of one."""
    from confide.receipts.events import COLLECTION
    from confide.receipts.verify import ReceiptResult

    return next(result.receipt.events(COLLECTION), None) if isinstance(result, ReceiptResult) else None


def show(result: "Verdict") -> None:
    """Every check in a table, what it says of a collection, and the verdict."""
    show_checks(result.checks)
    if (said := _collection(result)) is not None:
        which = f"collection {printable(str(said.get('corpus')))}"
        deleted = said.get("deleted") is True
        what = "was deleted; nothing of it is kept" if deleted else f"was asked or changed, head {said.get('head')}"
        output.console.print(Text(f"It says: {which} {printable(what)}"), soft_wrap=True)
    show_verdict(result.verdict(), good=result.verified and not result.simulated)


def as_json(result: "ReceiptResult | ClientReceiptResult") -> dict[str, Any]:
    """The same for machines."""
    from confide.receipts.client import CLIENT_VERSION

    return {
        "verified": result.verified,
        "simulated": result.simulated,
        "made_by": "client" if result.receipt.fields.api_version == CLIENT_VERSION else "workload",
        "receipt_id": result.receipt.fields.receipt_id,
        "collection": _collection(result),
        "checks": [asdict(check) for check in result.checks],
    }

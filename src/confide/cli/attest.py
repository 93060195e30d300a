"""`confide attest`: appraise evidence of trusted execution environments, keep the verdict, and look at it again.

Exit codes: 0 trusted, 10 refused, 20 malformed or cut-off input, 30 wrong usage, a policy that is none included.
"""

from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from confide.attest.evidence import Family
from confide.cli import output
from confide.cli.files import read_file
from confide.cli.options import Ca, InsecureNoTls, Json, Offline
from confide.errors import (
    AttestationError,
    AttestationRefused,
    GraphRefused,
    InvalidPolicy,
    MalformedEvidence,
    NeighbourRefused,
)
from confide.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from confide.attest.appraise import Verifies
    from confide.attest.bundle import Bundle
    from confide.attest.check import Check
    from confide.attest.collateral import Collateral
    from confide.attest.evidence import Evidence
    from confide.attest.policy import AnyPolicy
    from confide.attest.result import AttestationResult
    from confide.attest.statement import Statement
    from confide.client.graph import Coordinated, GraphVerdict
    from confide.receipts.verify_report import ReportResult


class Exit(IntEnum):
    """What the verbs of `confide attest` exit with."""

    TRUSTED = 0
    REFUSED = 10
    MALFORMED = 20
    USAGE = 30


class VerdictGroup(TyperGroup):
    """Gives every error the exit code of this group, the parser's own errors included."""

    def invoke(self, ctx: Any) -> Any:
        """Run a verb."""
        try:
            return super().invoke(ctx)
        except typer.Exit:
            raise
        except (AttestationRefused, GraphRefused, NeighbourRefused) as error:
            error.exit_code = Exit.REFUSED
            raise
        except AttestationError as error:
            error.exit_code = Exit.MALFORMED
            raise
        except Exception as error:
            if hasattr(error, "exit_code"):
                error.exit_code = Exit.USAGE
            raise


app = typer.Typer(
    name="attest",
    help="Appraise evidence: exits with 0 trusted, 10 refused, 20 malformed, 30 wrong usage.",
    no_args_is_help=True,
    cls=VerdictGroup,
)

_BUNDLE_HELP = "A bundle that `confide attest freeze` wrote."
EvidenceFile = Annotated[
    Path | None, typer.Option("--evidence", help="Quote, report, TPM evidence or a service's token.", metavar="FILE")
]
CollateralFiles = Annotated[
    list[Path] | None,
    typer.Option("--collateral", help="DCAP JSON, PEM chain, DER certificate or CRL; may be repeated.", metavar="FILE"),
]
PolicyFile = Annotated[
    Path | None,
    typer.Option("--policy", help="TOML, added to what every policy asks for; see `policy check`.", metavar="FILE"),
]
At = Annotated[
    str | None, typer.Option("--at", help="Time of appraisal, such as 2026-02-19 or 2026-02-19T12:00:00Z; UTC.")
]
ForcedFamily = Annotated[Family | None, typer.Option("--family", help="Whose evidence it is, if it does not tell.")]
StatementFile = Annotated[
    Path | None, typer.Option("--statement", help="JSON of what the workload says of itself.", metavar="FILE")
]
EventLogFile = Annotated[
    Path | None,
    typer.Option(
        "--event-log",
        help="The CCEL table's log of a TDX machine; it must lead to the quote's registers.",
        metavar="FILE",
    ),
]
SimulatedRoot = Annotated[
    Path | None,
    typer.Option(
        "--simulated-root",
        help="Root of simulated hardware, to try things out: it proves nothing, and real hardware is refused.",
        metavar="FILE",
    ),
]
AttestationKeys = Annotated[
    list[str] | None,
    typer.Option(
        "--attestation-key",
        help="SHA-256 of the public key (DER) of a TPM's attestation key that you enrolled; may be repeated.",
        metavar="DIGEST",
    ),
]


@app.command("verify")
def verify(
    bundle: Annotated[Path | None, typer.Argument(help=_BUNDLE_HELP, metavar="BUNDLE")] = None,
    evidence: EvidenceFile = None,
    collateral: CollateralFiles = None,
    policy: PolicyFile = None,
    at: At = None,
    family: ForcedFamily = None,
    statement: StatementFile = None,
    event_log: EventLogFile = None,
    simulated_root: SimulatedRoot = None,
    attestation_key: AttestationKeys = None,
    aci: Annotated[
        str | None,
        typer.Option(help="An ACI gateway's address, which is asked now, or a report of one.", metavar="URL|FILE"),
    ] = None,
    nonce: Annotated[
        str | None, typer.Option(help="That the report in a file was asked for with.", metavar="HEX")
    ] = None,
    ca: Ca = None,
    offline: Offline = False,
    insecure_no_tls: InsecureNoTls = False,
    json: Json = False,
) -> None:
    """Verify evidence against a policy at a time, or a bundle again, and say why it is trusted or refused.

    With --aci the report of any gateway that follows Attested Confidential Inference: its keys, its evidence, and the
    connection it came through. Only a nonce is sent there.
    """
    if aci is not None:
        if bundle or evidence or family or statement or event_log:
            raise typer.BadParameter("--aci goes with --policy, --collateral, --at and --nonce, and no other evidence")
        asked = _Gateway(Mode(simulated_root, frozenset(attestation_key or ())), policy, collateral, at)
        if aci.startswith(("http://", "https://")):
            if at or nonce or collateral:
                raise typer.BadParameter("an address is asked now, with a fresh nonce and the vendors' collateral")
            result = asked.ask(aci, ca, offline=offline, insecure_no_tls=insecure_no_tls)
        else:
            result = asked.read(Path(aci), nonce)
        _finish_report(result, json=json)
        return
    if nonce or ca or offline or insecure_no_tls:
        raise typer.BadParameter("--nonce, --ca, --offline and --insecure-no-tls go with --aci")
    if (bundle is None) == (evidence is None):
        raise typer.BadParameter("give either a BUNDLE or --evidence")
    mode = Mode(simulated_root, frozenset(attestation_key or ()))
    if bundle is not None:
        if collateral or family or statement or event_log:
            raise typer.BadParameter("a bundle has its own collateral, family, statement and event log")
        _finish(_again(read_bundle(bundle), mode, policy, at), json=json)
        return
    given = _Given.read(mode, evidence, collateral, policy, at, family, statement, event_log)
    _finish(given.appraise(mode.verifier()), json=json)


@app.command("graph")
def graph(
    url: Annotated[str, typer.Argument(help="Address of the service that users ask.", metavar="URL")],
    graph: Annotated[str, typer.Option(help="The graph's id, as its owners published it.", metavar="ID")],
    policy: Annotated[
        Path | None,
        typer.Option(
            help="TOML, what each service has to show besides what its owners ask for; with --coordinator, what that "
            "has to show.",
            metavar="FILE",
        ),
    ] = None,
    coordinator: Annotated[
        str | None, typer.Option(help="Address of what vouches for a graph that is not shown.", metavar="URL")
    ] = None,
    promise: Annotated[
        Path | None, typer.Option(help="TOML: the policy that the coordinator has to promise.", metavar="FILE")
    ] = None,
    simulated_root: SimulatedRoot = None,
    attestation_key: AttestationKeys = None,
    ca: Ca = None,
    offline: Offline = False,
    insecure_no_tls: InsecureNoTls = False,
    json: Json = False,
) -> None:
    """Verify every service of a graph now, each under its owners' policy, and say which is not what it has to be.

    Of a graph that is not shown: its coordinator, what that promises, and that the service here is the one meant. Only
    nonces are sent there.
    """
    import httpx

    from confide.client.graph import Coordinated, relying_on
    from confide.client.hop import TIMEOUT, server_address, tls_context
    from confide.client.relying_party import RelyingParty

    party = RelyingParty.configure(policy, simulated_root, attestation_key or (), offline=offline)
    whole = relying_on(graph, party, coordinator or "", promise, insecure_no_tls=insecure_no_tls)
    address = server_address(url, insecure_no_tls=insecure_no_tls)
    with httpx.Client(verify=tls_context(address, ca), timeout=TIMEOUT, trust_env=False) as http:
        verdict = whole.verify(http, address)
    if isinstance(verdict, Coordinated):
        _finish_coordinated(verdict, json=json)
    else:
        _finish_graph(verdict, json=json)


@app.command("freeze")
def freeze(
    out: Annotated[Path, typer.Option(help="The bundle to write; it must not exist.")],
    evidence: EvidenceFile = None,
    collateral: CollateralFiles = None,
    policy: PolicyFile = None,
    at: At = None,
    family: ForcedFamily = None,
    statement: StatementFile = None,
    event_log: EventLogFile = None,
    simulated_root: SimulatedRoot = None,
    attestation_key: AttestationKeys = None,
    json: Json = False,
) -> None:
    """Verify evidence and keep it, with everything that went in and came out, in one file to verify again later."""
    from confide.disk.files import create_file

    mode = Mode(simulated_root, frozenset(attestation_key or ()))
    bundle = _Given.read(mode, evidence, collateral, policy, at, family, statement, event_log).freeze(mode.verifier())
    try:
        create_file(out, bundle.write())
    except OSError as error:
        raise typer.BadParameter(f"{out} cannot be written ({error.strerror}); choose another place") from None
    _finish(bundle.reverify(mode.verifier()), json=json)


@app.command("explain")
def explain(
    bundle: Annotated[Path, typer.Argument(help=_BUNDLE_HELP, metavar="BUNDLE")],
    simulated_root: SimulatedRoot = None,
    attestation_key: AttestationKeys = None,
    json: Json = False,
) -> None:
    """Verify a bundle again and show everything: its policy, every check, and what the evidence says."""
    frozen = read_bundle(bundle)
    result = _again(frozen, Mode(simulated_root, frozenset(attestation_key or ())), None, None)
    if json:
        output.result(_as_json(result) | {"policy": frozen.policy, "claims": _claims(result)})
        raise typer.Exit(_exit_code(result))
    output.console.print(Text(printable(frozen.policy, keep="\n\t")))
    for name, value in _claims(result).items():
        output.console.print(Text(f"{name:<24} {value}"), soft_wrap=True)
    _finish(result, json=False)


@app.command("eventlog")
def eventlog(
    log: Annotated[Path, typer.Argument(help="The CCEL table's log, as the kernel shows it.", metavar="LOG")],
    json: Json = False,
) -> None:
    """Show what a TDX machine's firmware and kernel logged, and the registers that it leads to. Nothing is verified.

    Whether a quote has these registers, `confide attest verify --event-log` says.
    """
    from confide.attest.families.eventlog import REGISTERS, replay

    replayed = replay(read_file(log))
    names = ("mrtd", *REGISTERS)
    if json:
        events = [
            {"register": names[event.register], "type": event.name, "digest": event.digest.hex(), "data": event.words}
            for event in replayed.events
        ]
        registers = {name: value.hex() for name, value in replayed.registers.items()}
        output.result({"registers": registers, "events": events})
        return
    table = Table(show_edge=False, pad_edge=False)
    for heading in ("register", "type", "digest", "said"):
        table.add_column(heading, overflow="fold")
    for event in replayed.events:
        words = (names[event.register], event.name, event.digest.hex()[:16], printable(event.words))
        table.add_row(*map(Text, words))
    output.console.print(table)
    for name, value in replayed.registers.items():
        output.console.print(Text(f"{name}  {value.hex()}"), soft_wrap=True)
    output.note(
        "Not verified: a log is what somebody says; `confide attest verify --event-log` compares it with a quote."
    )


policy_app = typer.Typer(
    name="policy", help="Read policies, and write strict ones.", no_args_is_help=True, cls=VerdictGroup
)
app.add_typer(policy_app)


@policy_app.command("check")
def policy_check(
    file: Annotated[Path, typer.Argument(help="A policy, TOML.", metavar="FILE")],
    json: Json = False,
) -> None:
    """Say in sentences what a policy asks for, what it does without, and what it leaves open."""
    from confide.attest.policy import SimulatedPolicy
    from confide.attest.policy_toml import any_policy_from_toml
    from confide.attest.policy_words import asked, left_open

    policy = any_policy_from_toml(_policy_text(file))
    kind = "simulated" if isinstance(policy, SimulatedPolicy) else "production"
    asks, open_to = list(asked(policy)), list(left_open(policy))
    if json:
        said = {"asks": asks, "exceptions": list(policy.exceptions.sentences()), "open": open_to}
        output.result({"kind": kind, "version": policy.version, **said})
        return
    output.console.print(Text(f"This {kind} policy asks for", "bold"))
    for sentence in asks:
        output.console.print(Text(f"  {printable(sentence)}"))
    _show_exceptions(policy.exceptions.sentences())
    if open_to:
        output.console.print(Text("It leaves open", "bold yellow"))
    for sentence in open_to:
        output.console.print(Text(f"  {printable(sentence)}", "yellow"))


@policy_app.command("from")
def policy_from(
    evidence: Annotated[Path, typer.Argument(help="Evidence that you trust, to ask for the same.", metavar="EVIDENCE")],
    collateral: CollateralFiles = None,
    at: At = None,
    family: ForcedFamily = None,
    simulated_root: SimulatedRoot = None,
    attestation_key: AttestationKeys = None,
    out: Annotated[Path | None, typer.Option(help="The policy to write; it must not exist. Without: printed.")] = None,
    json: Json = False,
) -> None:
    """Verify evidence, and write a strict policy that asks for what it says: measurements, attributes, versions."""
    from confide.attest.policy import appraise
    from confide.attest.policy_toml import to_toml
    from confide.attest.strict import strict_policy
    from confide.disk.files import create_file

    mode = Mode(simulated_root, frozenset(attestation_key or ()))
    given = _Given.read(mode, evidence, collateral, None, at or datetime.now(UTC).isoformat(), family, None, None)
    claims = mode.verifier().verify(given.evidence, given.collateral, given.now)
    policy = strict_policy(claims)
    text, failures = to_toml(policy), appraise(claims, policy, given.now).failures
    if out is not None:
        try:
            create_file(out, text.encode())
        except OSError as error:
            raise typer.BadParameter(f"{out} cannot be written ({error.strerror}); choose another place") from None
    if json:
        output.result({"policy": text, "failures": [asdict(check) for check in failures]})
        return
    if out is None:
        output.console.print(Text(text), soft_wrap=True)
    if any(one.family is Family.SNP for one in claims.everyone()):
        output.note("min_tcb is what this machine has; compare it with AMD's bulletins for the product.")
    for check in failures:
        output.note(f"This evidence itself does not satisfy it: {check.code}: {check.seen}.")


@dataclass(frozen=True)
class Mode:
    """For production, or with a simulated root: then roots and policy are both of the simulated types."""

    simulated_root: Path | None
    attestation_keys: frozenset[str]

    def verifier(self) -> "Verifies":
        """A verifier under the vendors' roots, or under the simulated one and nothing else."""
        from cryptography.hazmat.primitives.serialization import Encoding

        from confide.attest.chain import read_certificate
        from confide.attest.roots import ProductionRoots, SimulatedRoots
        from confide.attest.verifier import Verifier

        enrolled: Any = {"attestation_keys": self.attestation_keys} if self.attestation_keys else {}
        if self.simulated_root is None:
            return Verifier(ProductionRoots(**enrolled))
        root = read_certificate(read_file(self.simulated_root), "simulated root").public_bytes(Encoding.DER)
        return Verifier(SimulatedRoots(dict.fromkeys(Family, root), **enrolled))

    def policy(self, path: Path | None) -> "AnyPolicy":
        """The policy in a file of the right kind, or the default one."""
        from confide.attest.policy import Policy, SimulatedPolicy
        from confide.attest.policy_toml import policy_from_toml, simulated_policy_from_toml

        simulated = self.simulated_root is not None
        if path is None:
            return SimulatedPolicy() if simulated else Policy()
        return (simulated_policy_from_toml if simulated else policy_from_toml)(_policy_text(path))


@dataclass(frozen=True)
class _Given:
    """What the options of a verb name, read."""

    evidence: "Evidence"
    collateral: "Collateral"
    policy: "AnyPolicy"
    now: datetime
    statement: "Statement | None"

    @classmethod
    def read(
        cls,
        mode: Mode,
        evidence: Path | None,
        collateral: list[Path] | None,
        policy: Path | None,
        at: str | None,
        family: Family | None,
        statement: Path | None,
        event_log: Path | None = None,
    ) -> "_Given":
        from confide.attest.collateral import Collateral
        from confide.attest.evidence_files import read_collateral, read_evidence
        from confide.attest.statement import Statement

        if evidence is None or at is None:
            raise typer.BadParameter("give --evidence and --at")
        now, chosen = parse_time(at), mode.policy(policy)
        made, beside = read_evidence(read_file(evidence), family)
        documents = {**beside.documents, **read_collateral(map(read_file, collateral or ())).documents}
        if event_log is not None:
            made = _with_log(made, read_file(event_log))
        said = None if statement is None else Statement.decode(read_file(statement))
        return cls(made, Collateral(documents), chosen, now, said)

    def appraise(self, verifier: "Verifies") -> "AttestationResult":
        from confide.attest.appraise import appraise

        return appraise(verifier, self.evidence, self.collateral, self.policy, self.now, statement=self.statement)

    def freeze(self, verifier: "Verifies") -> "Bundle":
        from confide.attest.bundle import freeze

        return freeze(verifier, self.evidence, self.collateral, self.policy, self.now, statement=self.statement)


@dataclass(frozen=True)
class _Gateway:
    """What a gateway's report is held against."""

    mode: Mode
    policy: Path | None
    collateral: list[Path] | None
    at: str | None

    def ask(self, url: str, ca: Path | None, *, offline: bool, insecure_no_tls: bool) -> "ReportResult":
        """The verdict on what it shows now, for a nonce that nobody knew before."""
        import secrets

        import httpx

        from confide.attest.collateral import Collateral
        from confide.client.attested import NONCE_BYTES
        from confide.client.gateway import fetch_report
        from confide.client.hop import TIMEOUT, server_address, tls_context
        from confide.client.relying_party import RelyingParty
        from confide.receipts.report import Report
        from confide.receipts.verify_report import verify_report

        keys = self.mode.attestation_keys
        party = RelyingParty.configure(self.policy, self.mode.simulated_root, keys, offline=offline)
        address, nonce = server_address(url, insecure_no_tls=insecure_no_tls), secrets.token_hex(NONCE_BYTES)
        with httpx.Client(verify=tls_context(address, ca), timeout=TIMEOUT, trust_env=False) as http:
            content, channel = fetch_report(http, address, nonce)
        report = Report.read(content)
        found = None
        if report.evidence is not None:
            try:
                found = party.source.find(report.evidence, report.collateral)
            except AttestationError as error:
                output.note(str(error))
                found = Collateral()  # with which no evidence holds
        now = datetime.now(UTC)
        return verify_report(report, party.verifier, party.policy, now, nonce=nonce, collateral=found, channel=channel)

    def read(self, path: Path, nonce: str | None) -> "ReportResult":
        """The verdict on one that was kept."""
        from confide.attest.collateral import Collateral
        from confide.attest.evidence_files import read_collateral
        from confide.receipts.keyset import is_nonce
        from confide.receipts.report import Report
        from confide.receipts.verify_report import verify_report

        if nonce is not None and not is_nonce(nonce):
            raise typer.BadParameter("--nonce takes 32 bytes in lower-case hexadecimal")
        given = self.collateral
        documents = Collateral(read_collateral(map(read_file, given)).documents) if given else None
        now = datetime.now(UTC) if self.at is None else parse_time(self.at)
        return verify_report(
            Report.read(read_file(path)), self.mode.verifier(), self.mode.policy(self.policy), now,
            nonce=nonce, collateral=documents,
        )  # fmt: skip


def _with_log(evidence: "Evidence", log: bytes) -> "Evidence":
    """The same evidence with its event log among its parts."""
    from confide.attest.families.eventlog import PART

    if evidence.family is not Family.TDX:
        raise typer.BadParameter(f"--event-log belongs to a TDX quote, and this is {evidence.family}")
    return replace(evidence, parts={**evidence.parts, PART: log})


def _again(bundle: "Bundle", mode: Mode, policy: Path | None, at: str | None) -> "AttestationResult":
    if bundle.simulated and mode.simulated_root is None:
        raise InvalidPolicy("This bundle is SIMULATED and proves nothing; give --simulated-root to look at it anyway.")
    chosen = None if policy is None else mode.policy(policy)
    return bundle.reverify(mode.verifier(), policy=chosen, now=None if at is None else parse_time(at))


def read_bundle(path: Path) -> "Bundle":
    """A frozen bundle."""
    from confide.attest.bundle import Bundle

    return Bundle.read(read_file(path))


def _policy_text(path: Path) -> str:
    try:
        return read_file(path).decode()
    except UnicodeDecodeError:
        raise InvalidPolicy(f"{path} is no text; a policy is a TOML file.") from None


def parse_time(text: str) -> datetime:
    """Of an option, in UTC unless it says otherwise."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter("--at takes a date or a time such as 2026-02-19T12:00:00Z") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


# -- showing -----------------------------------------------------------------------------------------------------


def _exit_code(result: "AttestationResult") -> Exit:
    if result.trusted:
        return Exit.TRUSTED
    malformed = any(check.code == MalformedEvidence.code for check in result.failures)
    return Exit.MALFORMED if malformed else Exit.REFUSED


def _finish(result: "AttestationResult", *, json: bool) -> None:
    if json:
        output.result(_as_json(result))
    else:
        show(result)
    raise typer.Exit(_exit_code(result))


def _finish_report(result: "ReportResult", *, json: bool) -> None:
    evidence = () if result.evidence is None else result.evidence.checks
    if json:
        output.result(
            {
                "verified": result.verified,
                "simulated": result.simulated,
                "keyset_digest": result.report.keyset.digest,
                "serving": printable(result.report.serving),
                "checks": [asdict(check) for check in result.checks],
                "evidence": [asdict(check) for check in evidence],
            }
        )
    else:
        if evidence:
            show_checks(evidence)
            output.console.print()
        show_checks(result.checks)
        output.console.print(Text(f"keyset {result.report.keyset.digest}"), soft_wrap=True)
        if result.report.serving != "direct":
            output.note("It says that it hands questions on: each receipt names the upstream that answered.")
        show_verdict(result.verdict(), good=result.verified and not result.simulated)
    raise typer.Exit(Exit.TRUSTED if result.verified else Exit.REFUSED)


def _finish_graph(verdict: "GraphVerdict", *, json: bool) -> None:
    from confide.client.graph import trust_of

    manifest, refused = verdict.history.current.manifest, verdict.refused
    if json:
        services = {
            name: {
                "trusted": name not in refused,
                "failed": list(getattr(refused.get(name), "checks", ())),
                "reason": str(refused.get(name, "")),
            }
            for name in verdict.services
        }
        about = {"graph": verdict.history.id, "version": manifest.version, "simulated": verdict.simulated}
        trust = str(trust_of(verdict)) if verdict.trusted else ""
        output.result({"trusted": verdict.trusted, **about, "services": services, "trust": trust})
        raise typer.Exit(Exit.TRUSTED if verdict.trusted else Exit.REFUSED)
    for name in verdict.services:
        error = refused.get(name)
        said = f"refused: {error}" if error else "is what its owners ask for"
        output.console.print(Text(f"{name:<16} {said}", "red" if error else ""), soft_wrap=True)
    if verdict.trusted:
        output.console.print(Text(str(trust_of(verdict))), soft_wrap=True)
    kind = "SIMULATED, and proves nothing: " if verdict.simulated else ""
    words = "every service is trusted" if verdict.trusted else f"not trusted, because of {' and '.join(refused)}"
    show_verdict(
        f"{kind}Version {manifest.version} of {manifest.name}: {words}.",
        good=verdict.trusted and not verdict.simulated,
    )
    raise typer.Exit(Exit.TRUSTED if verdict.trusted else Exit.REFUSED)


def _finish_coordinated(verdict: "Coordinated", *, json: bool) -> None:
    from confide.attest.policy_words import asked
    from confide.client.graph import trust_of

    said, simulated = verdict.verdict.verdict, verdict.coordinator.result.simulated
    promise, trust = list(asked(verdict.promise)), trust_of(verdict)
    if json:
        about = {"graph": said.graph, "version": said.version, "simulated": simulated}
        checked = {"promise": promise, "policy": said.promise, "checked": said.checked.isoformat()}
        output.result({"trusted": True, **about, **checked, "trust": str(trust)})
        return
    output.console.print(Text(f"The coordinator verified, at {said.checked:%Y-%m-%d %H:%M:%S} UTC, of each service:"))
    for sentence in promise:
        output.console.print(Text(f"  {printable(sentence)}"), soft_wrap=True)
    output.console.print(Text(str(trust)), soft_wrap=True)
    kind = "SIMULATED, and proves nothing: " if simulated else ""
    show_verdict(f"{kind}The coordinator vouches for every service that sees your data.", good=not simulated)


def _as_json(result: "AttestationResult") -> dict[str, Any]:
    return {
        "trusted": result.trusted,
        "simulated": result.simulated,
        "family": result.family.value,
        "at": result.at.isoformat(),
        "checks": [asdict(check) for check in result.checks],
        "exceptions": list(result.exceptions),
    }


def show(result: "AttestationResult") -> None:
    """Every check in a table, and the verdict."""
    from confide.attest.explain import verdict

    show_checks(result.checks)
    _show_exceptions(result.exceptions)
    show_verdict(verdict(result), good=result.trusted and not result.simulated)


def show_verdict(text: str, *, good: bool) -> None:
    """The last line."""
    output.console.print(Text(text, "bold green" if good else "bold red"))


def show_checks(checks: "Iterable[Check]") -> None:
    """A table, what failed first."""
    from confide.attest.explain import rows

    table = Table(show_edge=False, pad_edge=False)
    for heading in ("check", "expected", "seen", ""):
        table.add_column(heading, overflow="fold")
    for row in rows(checks):
        style = _STYLES[row.verdict]
        table.add_row(row.check, Text(row.expected), Text(row.seen), Text(row.verdict, style))
    output.console.print(table)


_STYLES = {"pass": "green", "not checked": "bold yellow", "FAIL": "bold red"}


def _show_exceptions(sentences: "Iterable[str]") -> None:
    for sentence in sentences:
        output.console.print(Text(f"Exception of the policy: {printable(sentence)}", "bold red"))


def _claims(result: "AttestationResult") -> dict[str, str]:
    """Measurements and identities in hexadecimal, by family and name."""
    everyone = result.claims.everyone() if result.claims else ()
    return {
        f"{claims.family.value} {name}": value.hex()
        for claims in everyone
        for name, value in {**claims.identity, **claims.measurements, "report_data": claims.report_data}.items()
    }

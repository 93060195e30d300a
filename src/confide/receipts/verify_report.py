"""Whether a gateway's attestation report shows which workload and keys serve there: every check with ACI's clause.

The procedure is that of ACI, 9.1. What a verifier must know for itself, the policy says; what cannot be looked at here
is a check that was not made, with the reason.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from confide.attest.appraise import Verifies, appraise
from confide.attest.check import Check, check, skipped
from confide.attest.collateral import Collateral, Provenance
from confide.attest.explain import verdict
from confide.attest.policy import AnyPolicy
from confide.attest.policy_words import names_code
from confide.attest.requirements import ReportData
from confide.attest.result import AttestationResult
from confide.receipts.documents import API_VERSION
from confide.receipts.keyset import report_data
from confide.receipts.report import Report
from confide.receipts.verdict import Verdict

MOST_DAYS: Final = 731
"""That a keyset may be good for: ACI asks to reject what is implausibly distant (3.1), and names no number."""
_REQUIRED: Final = frozenset(
    {"aci-version", "aci-keyset", "aci-hardware", "aci-binding", "aci-nonce", "aci-expiry", "aci-provenance"}
)


def _clause(section: str) -> str:
    return f"ACI {API_VERSION}, {section}"


@dataclass(frozen=True)
class Channel:
    """How a report came: the host that was asked for, and SHA-256 of its certificate's public key, in hexadecimal."""

    host: str
    spki_sha256: str


@dataclass(frozen=True, kw_only=True)
class ReportResult(Verdict):
    """The verdict on a report. evidence: every check of its evidence; None where its form is not known here."""

    report: Report
    evidence: AttestationResult | None


def appraise_report(
    report: Report,
    verifier: Verifies,
    policy: AnyPolicy,
    now: datetime,
    *,
    nonce: str | None,
    collateral: Collateral | None,
) -> AttestationResult | None:
    """The verdict on a report's evidence, which has to be over its keyset and this nonce. None for an unknown form.

    collateral: in place of what the report brought, which whoever sent it chose.
    """
    if report.evidence is None:
        return None
    expected = report_data(report.keyset.digest, nonce)
    asked = replace(policy, requirements=(*policy.requirements, ReportData(expected.hex())))
    sent = replace(report.collateral, provenance=Provenance(sent=True))
    return appraise(verifier, report.evidence, sent if collateral is None else collateral, asked, now)


def verify_report(
    report: Report,
    verifier: Verifies,
    policy: AnyPolicy,
    now: datetime,
    *,
    nonce: str | None = None,
    collateral: Collateral | None = None,
    channel: Channel | None = None,
) -> ReportResult:
    """Every check. nonce: that the report was asked for with; without one it proves no freshness.

    collateral: in place of what the report brought. channel: that it came through, where that was TLS.
    """
    result = appraise_report(report, verifier, policy, now, nonce=nonce, collateral=collateral)
    checks = (
        check("aci-version", API_VERSION, report.api_version, report.api_version == API_VERSION, _clause("appendix B")),
        check(
            "aci-keyset", report.keyset.digest, report.keyset_digest, report.keyset.digest == report.keyset_digest,
            _clause("3.1 and 4.1"),
        ),
        _hardware(report, result),
        *_binding(report, nonce),
        *_expiry(report, now),
        _provenance(report, policy, result),
        skipped(
            "aci-custody", "private keys that never leave the workload",
            "that follows from the measured code alone, which whoever names its measurements has read",
            _clause("9.1(5)"),
        ),
        *_subject(report),
        _channel(report, channel),
    )  # fmt: skip
    simulated = result is not None and result.simulated
    return ReportResult(checks=checks, required=_REQUIRED, simulated=simulated, report=report, evidence=result)


def _hardware(report: Report, result: AttestationResult | None) -> Check:
    accepted = "evidence that the policy accepts, over the keyset and the nonce"
    if result is None:
        because = f"evidence of {report.tee_type} in this form is not known here"
        return skipped("aci-hardware", accepted, because, _clause("9.1(1)"))
    reasons = "".join(f"; {one.code}: {one.seen}" for one in result.failures)
    return check("aci-hardware", accepted, verdict(result) + reasons, result.trusted, _clause("9.1(1)"))


def _binding(report: Report, nonce: str | None) -> Iterator[Check]:
    """That the report says what the hardware must have signed; whether it has, `aci-hardware` asks."""
    expected = report_data(report.keyset.digest, nonce)[:32].hex()
    same = expected == report.report_data
    yield check("aci-binding", expected, report.report_data, same, _clause("3.2 and 9.1(2)"))
    if nonce is None:
        because = "none was given, and the form without one proves no freshness"
        yield skipped("aci-nonce", "a nonce of the verifier's", because, _clause("9.1(2)"))
    else:
        seen = "in the report's statement" if same else "not in the report's statement"
        yield check("aci-nonce", nonce, seen, same, _clause("9.1(2)"))


def _expiry(report: Report, now: datetime) -> Iterator[Check]:
    until, at = report.keyset.fields.not_after, now.timestamp()
    current = at < until
    yield check("aci-expiry", f"later than {_time(int(at))}", _time(until), current, _clause("9.1(3)"))
    days = (until - at) / 86_400
    plausible = days <= MOST_DAYS
    yield check("aci-lifetime", f"{MOST_DAYS} days at most", f"{days:,.0f} days", plausible, _clause("3.1"))


def _provenance(report: Report, policy: AnyPolicy, result: AttestationResult | None) -> Check:
    """A source that no measurement backs must not satisfy this (4.1): what counts is the policy's measurements."""
    said = report.source or "none"
    if not names_code(policy):
        because = f"the policy names no measurements to hold it against; the report says: {said}"
        return skipped("aci-provenance", "code that the policy names", because, _clause("9.1(4)"))
    held = result is not None and result.trusted
    seen = f"{'measured' if held else 'not measured'}; the report says: {said}"
    return check("aci-provenance", "code that the policy names", seen, held, _clause("9.1(4)"))


def _subject(report: Report) -> Iterator[Check]:
    subject = report.keyset.fields.subject
    if subject:
        yield skipped("aci-subject", subject, "it is a name, which proves nothing by itself", _clause("3.1 and 9.1(5)"))


def _channel(report: Report, channel: Channel | None) -> Check:
    keys = report.keyset.fields.tls_public_keys
    expected = ", ".join(f"{key.spki_sha256}{f' for {key.domain}' if key.domain else ''}" for key in keys) or "none"
    if channel is None:
        because = "the report did not come through TLS here"
        return skipped("aci-channel", expected, because, _clause("9.1(6)"))
    if not keys:
        because = f"the keyset names no TLS keys: whoever ends TLS for {channel.host} reads what is sent in the clear"
        return skipped("aci-channel", expected, because, _clause("9.1(6)"))
    named = any(
        key.spki_sha256 == channel.spki_sha256 and (key.domain or channel.host).lower() == channel.host.lower()
        for key in keys
    )
    return check("aci-channel", expected, f"{channel.spki_sha256} for {channel.host}", named, _clause("9.1(6)"))


def _time(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return f"{seconds} s"

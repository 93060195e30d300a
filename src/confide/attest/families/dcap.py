"""Intel's DCAP quotes, verified by `dcap-qvl` against collateral that came along: no network, and the time is given.

`dcap-qvl` says why it refuses in words alone, and "Failed to verify certificate chain" for several reasons. One table
turns the words into errors; for chains the reason is found afterwards, and only what was refused already gets there.

Source: the errors of dcap-qvl 0.7 (https://github.com/Phala-Network/dcap-qvl, `src/verify.rs`).
"""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, NoReturn

import dcap_qvl
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from confide.attest.chain import REVOKED, check_current, read_chain, read_crl
from confide.attest.check import Check, check
from confide.attest.claims import Claims, TcbStatus
from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence, Family
from confide.attest.families.dcap_chain import (
    Chain,
    check_links,
    check_list,
    check_revocation,
    check_validity,
    intel_root,
)
from confide.attest.families.dcap_levels import date_of, superseded
from confide.attest.families.dcap_quote import SGX_REPORT, TD_REPORT_15, Quote
from confide.attest.families.dcap_words import in_debug, measurements
from confide.attest.roots import Roots
from confide.errors import (
    AttestationError,
    DebugEnabled,
    InvalidSignature,
    MalformedEvidence,
    OutsideValidity,
    Revoked,
    UnknownRoot,
    UnknownTcb,
    UnsafeConfiguration,
    WrongCollateral,
)

MAX_COLLATERAL_BYTES: Final = 1 << 20
"""Real collateral has less than 20 kB; a CRL can grow."""

_PARSED_KEPT: Final = 16
"""How many documents of collateral stay parsed: those of the machines that are asked again and again."""

DOCUMENT: Final = "dcap"
"""The name of the collateral's document: the JSON of QuoteCollateralV3."""

_CHAINS: Final = ("pck_crl_issuer_chain", "tcb_info_issuer_chain", "qe_identity_issuer_chain")
_LISTS: Final = ("root_ca_crl", "pck_crl")
_LIST_WORDS: Final = {"root_ca_crl": "root CA's revocation list", "pck_crl": "PCK revocation list"}
_SIGNED: Final = ("tcb_info", "tcb_info_signature", "qe_identity", "qe_identity_signature")
_PATH: Final = "Intel PCS v4, certificates and CRLs; RFC 5280, 6.1 and 6.3"
_QUOTE: Final = "Intel SGX ECDSA Quote Library API, A.4"
_LATEST: Final = datetime(2200, 1, 1, tzinfo=UTC)

REASONS: Final[tuple[tuple[str, type[AttestationError], str], ...]] = (
    ("Debug mode is enabled", DebugEnabled, "It runs in debug mode, so its owner can read everything; do not trust it"),
    (
        "SEPT_VE_DISABLE",
        UnsafeConfiguration,
        "This TD was started without SEPT_VE_DISABLE, so its host may take memory away and step in wherever it is "
        "used; do not trust it, and start it with that attribute, as current hypervisors do",
    ),
    (
        "TD migration is enabled",
        UnsafeConfiguration,
        "This TD may be moved to another machine (MIGRATABLE), of which its quote says nothing; do not trust it, and "
        "start it without that attribute",
    ),
    (
        "TD profiling is enabled",
        UnsafeConfiguration,
        "This TD lets its host watch how it performs, which tells what it does; do not trust it, and start it without "
        "profiling",
    ),
    (
        "SERVTD_EXT",
        UnsafeConfiguration,
        "This TD has service TDs bound to it in a way that its quote does not tell (SERVTD_EXT); do not trust it, and "
        "start it without them",
    ),
    (
        "Invalid MR service TD",
        UnsafeConfiguration,
        "A service TD is bound to this TD, and may act on it, move it for example; do not trust it, and start it "
        "without one",
    ),
    (
        "Reserved bits in TD attributes",
        UnsafeConfiguration,
        "This TD has attributes that nobody here knows the meaning of; do not trust it, or update Confide",
    ),
    ("status is invalid: Revoked", Revoked, "The platform's TCB was revoked; do not trust this machine"),
    ("CertRevoked", Revoked, "A certificate was revoked; do not trust this machine"),
    ("Unknown QE vendor ID", MalformedEvidence, "The quote is not by Intel's quoting enclave; fetch it again"),
    ("length mismatch", MalformedEvidence, "A certificate's SGX extension has wrong lengths; fetch the quote again"),
    ("QE report hash mismatch", InvalidSignature, "The quoting enclave vouches for another key; fetch the quote again"),
    ("No matching TCB level found", UnknownTcb, "No TCB level of the vendor's list matches; update the platform"),
    ("No TCB levels found", UnknownTcb, "The vendor's list has no TCB level for it; fetch the collateral again"),
    ("TDX module", UnknownTcb, "The vendor's list does not know its TDX module; update the platform"),
    ("below minimum required", UnknownTcb, "Its TDX module is older than any the vendor lists; update the platform"),
    ("Fmspc mismatch", WrongCollateral, "The collateral is for another platform; fetch it for this quote's FMSPC"),
    ("Unsupported QE Identity", WrongCollateral, "The collateral is for another kind of quote; fetch it again"),
    ("TCB info in the collateral", WrongCollateral, "The collateral is for another kind of quote; fetch it again"),
    (" mismatch", WrongCollateral, "The quote is not by the platform that the collateral describes; fetch it again"),
    ("TCBInfo expired", OutsideValidity, "The list of TCB levels is expired at this time; fetch the TCB info again"),
    ("QE Identity expired", OutsideValidity, "The quoting enclave's identity is expired at this time; fetch it again"),
    ("CrlExpired", OutsideValidity, "A revocation list is expired at this time; fetch the lists again"),
    ("CertExpired", OutsideValidity, "A certificate is expired at this time; fetch the collateral again"),
    ("xpired", OutsideValidity, "The collateral is expired at this time; fetch it again"),
    ("in the future", OutsideValidity, "The collateral is not valid yet at this time; check the clock"),
    ("NotValidYet", OutsideValidity, "A certificate is not valid yet at this time; check the clock"),
    ("ignature is invalid", InvalidSignature, "A signature does not hold; fetch evidence and collateral again"),
    ("InvalidSignature", InvalidSignature, "A signature does not hold; fetch evidence and collateral again"),
    ("InvalidCrlSignature", InvalidSignature, "The signature of a revocation list does not hold; fetch it again"),
    ("UnknownIssuer", UnknownRoot, "A chain of certificates does not end in the trusted root; do not trust it"),
)
"""What `dcap-qvl` says, by a part of it, and what that means; the first that fits. Anything else is malformed."""

_CHAIN_REFUSED: Final = "certificate chain"


@dataclass(frozen=True)
class _Papers:
    """The collateral, read: as the library takes it, and as certificates to look for reasons in."""

    native: dcap_qvl.QuoteCollateralV3
    chains: Sequence[Chain]
    lists: Sequence[x509.CertificateRevocationList]


def verify(family: Family, evidence: Evidence, collateral: Collateral, roots: Roots, now: datetime) -> Claims:
    """Verify a quote of one family. An AttestationError that says why not; ValueError if `now` has no time zone."""
    if now.tzinfo is None:
        raise ValueError("Give the time with its time zone.")
    quote = Quote.parse(evidence.raw)
    if evidence.family is not family or quote.family is not family:
        raise MalformedEvidence(f"This is no {family} quote; name the family that made it.")
    papers = _read(collateral)
    chain = read_chain(quote.chain, "quote's chain of certificates")
    root = intel_root(roots, family, [every[-1] for every in (chain, *papers.chains)])
    check_links((chain, *papers.chains), root)
    for name, revoked, issuer in zip(_LISTS, papers.lists, (root, [*chain, root][1]), strict=True):
        check_list(revoked, issuer)
        check_current(revoked, _LIST_WORDS[name], now)
    found = _verified(quote, chain, papers, root, evidence.raw, now)
    tcb_info = _signed(papers.native.tcb_info)
    _check_pce(found, tcb_info)
    return _claims(quote, roots, found, tcb_info, papers)


def _read(collateral: Collateral) -> _Papers:
    document = collateral.documents.get(DOCUMENT)
    if document is None:
        raise WrongCollateral(f"The collateral lacks the document {DOCUMENT!r}; fetch it for this quote.")
    if len(document) > MAX_COLLATERAL_BYTES:
        raise MalformedEvidence(f"The collateral has {len(document)} bytes; at most {MAX_COLLATERAL_BYTES} are read.")
    return _papers(bytes(document))


@functools.lru_cache(maxsize=_PARSED_KEPT)
def _papers(document: bytes) -> _Papers:
    """The document, parsed and not yet believed: every appraisal verifies its signatures, lists and dates anew."""
    try:
        native = _without_pck(dcap_qvl.QuoteCollateralV3.from_json(document.decode()))
    except ValueError as problem:
        raise MalformedEvidence("The collateral is not the JSON of QuoteCollateralV3; fetch it again.") from problem
    chains = [read_chain(getattr(native, name).encode(), name.replace("_", " ")) for name in _CHAINS]
    return _Papers(native, chains, [read_crl(getattr(native, name), name.replace("_", " ")) for name in _LISTS])


@functools.lru_cache(maxsize=2 * _PARSED_KEPT)
def _signed(document: str) -> Mapping[str, Any]:
    """One of Intel's signed documents, which the library has verified; nobody may change it."""
    found: dict[str, Any] = json.loads(document)
    return found


def _without_pck(native: dcap_qvl.QuoteCollateralV3) -> dcap_qvl.QuoteCollateralV3:
    """The collateral without a PCK chain of its own, which the library would use in place of the quote's."""
    return dcap_qvl.QuoteCollateralV3(**{name: getattr(native, name) for name in (*_CHAINS, *_LISTS, *_SIGNED)})


def _verified(
    quote: Quote, chain: Chain, papers: _Papers, root: x509.Certificate, raw: bytes, now: datetime
) -> dict[str, Any]:
    """The library's claims, once it is content."""
    seconds = _seconds(now)
    policy = dcap_qvl.QuotePolicy.claims_only(seconds)
    try:
        verifier = dcap_qvl.QuoteVerifier(root.public_bytes(Encoding.DER))
        found: dict[str, Any] = json.loads(
            verifier.verify_with_policy(raw[: quote.end], papers.native, seconds, policy).to_json()
        )
    except ValueError as problem:
        if _CHAIN_REFUSED in str(problem):
            _explain(chain, papers, root, now)
        refuse(str(problem))
    return found


def _check_pce(found: Mapping[str, Any], tcb_info: Mapping[str, Any]) -> None:
    """The list is for the platform's PCE, which the library does not compare; WrongCollateral if not."""
    listed = str(tcb_info.get("pceId"))
    if listed.lower() != bytes(found["platform"]["pck"]["pce_id"]).hex():
        raise WrongCollateral("The collateral is for another platform; fetch it for this quote's PCE.")


def _seconds(now: datetime) -> int:
    if not datetime.fromtimestamp(0, UTC) <= now <= _LATEST:
        raise OutsideValidity(f"No certificate is valid in the year {now.year}; check the clock.")
    return int(now.timestamp())


def _explain(chain: Chain, papers: _Papers, root: x509.Certificate, now: datetime) -> None:
    """Raise the reason why a chain was refused, if it is one that can be found."""
    for every in (chain, *papers.chains, (root,)):
        check_revocation(every, papers.lists)
        check_validity(every, now)


def refuse(words: str) -> NoReturn:
    """Raise the AttestationError that the library's words stand for: that of the first of `REASONS` that fits."""
    for part, error, meaning in REASONS:
        if part in words:
            raise error(f"{meaning}.")
    if _CHAIN_REFUSED in words:
        raise InvalidSignature("A chain of certificates does not hold; fetch evidence and collateral again.")
    raise MalformedEvidence("The quote or its collateral is not what it should be; fetch both again.")


def _claims(
    quote: Quote, roots: Roots, found: Mapping[str, Any], tcb_info: Mapping[str, Any], papers: _Papers
) -> Claims:
    report = _fields(found["report"])
    if any(report.get(name) != value for name, value in quote.report.items()):
        raise MalformedEvidence("Two readings of the quote differ; report this quote, and do not trust it.")
    platform, identity = found["platform"], _signed(papers.native.qe_identity)
    issued = [revoked.last_update_utc for revoked in papers.lists]
    issued += [_date(signed["issueDate"]) for signed in (tcb_info, identity)]
    ends = [revoked.next_update_utc for revoked in papers.lists if revoked.next_update_utc]
    ends += [
        datetime.fromtimestamp(found[name], UTC)
        for name in ("earliest_expiration_date", "qe_iden_earliest_expiration_date")
    ]
    return Claims(
        family=quote.family,
        root=roots.kind,
        report_data=report["report_data"],
        speaks=True,
        debug=in_debug(report),
        tcb_status=_status(found["tcb"]["status"]),
        measurements=measurements(report),
        identity=_identity(platform["pck"]),
        advisories=tuple(found["tcb"]["advisory_ids"]),
        tcb_date=date_of(platform["tcb_level"]),
        tcb_superseded=superseded(found, tcb_info, identity, report.get("tee_tcb_svn")),
        tcb_evaluation=min(found["tcb"]["eval_data_number"], found["qe"]["tcb_eval_data_number"]),
        issued_at=min(issued),
        valid_until=min(ends),
        checks=_checks(min(issued)),
    )


def _checks(issued: datetime) -> tuple[Check, ...]:
    """What was checked on the way here; anything else was refused."""
    return (
        check("chain", "certificates up to the root", "valid, each signed by the next", ok=True, clause=_PATH),
        check("signature", "by the quoting enclave that the platform certifies", "valid", ok=True, clause=_QUOTE),
        check(
            REVOKED,
            "no certificate on its issuer's list",
            f"none, lists since {issued:%Y-%m-%d}",
            ok=True,
            clause=_PATH,
        ),
    )


def _fields(report: Mapping[str, Any]) -> dict[str, bytes]:
    """The report's fields as bytes, out of the library's nested JSON: hexadecimal text, and numbers for SGX."""
    sizes = dict(SGX_REPORT) | dict(TD_REPORT_15)
    fields: dict[str, bytes] = {}
    for name, value in report.items():
        if isinstance(value, dict):
            fields |= _fields(value)
        elif isinstance(value, int):
            fields[name] = value.to_bytes(sizes[name], "little")
        else:
            fields[name] = bytes.fromhex(value)
    return fields


def _identity(pck: Mapping[str, Any]) -> Mapping[str, bytes]:
    names = {"ppid": "ppid", "fmspc": "fmspc", "pce_id": "pceid", "platform_instance_id": "platform_instance_id"}
    return MappingProxyType({ours: bytes(pck[theirs]) for theirs, ours in names.items() if pck[theirs]})


def _status(word: str) -> TcbStatus:
    try:
        return TcbStatus(word)
    except ValueError:
        return TcbStatus.UNKNOWN


def _date(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError as problem:
        raise MalformedEvidence("The collateral has no readable date of issue; fetch it again.") from problem

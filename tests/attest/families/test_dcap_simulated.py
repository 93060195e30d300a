"""What real evidence cannot show: every reason for a refusal, on the simulated machine."""

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import dcap_qvl
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from tests.attest.families.conftest import MADE, Case

from confide.attest.claims import RootKind, TcbStatus
from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence, Family
from confide.attest.families import dcap
from confide.attest.families.dcap_chain import check_links
from confide.attest.families.dcap_quote import MAX_QUOTE_BYTES, Quote
from confide.attest.families.dcap_signature import parse
from confide.attest.roots import ProductionRoots, SimulatedRoots
from confide.attest.simulated import SimulatedTee
from confide.attest.simulated_vendor import Listing, sign
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


def test_it_is_up_to_date_and_says_that_it_is_simulated(simulated: Case) -> None:
    claims = simulated.verify()
    assert (claims.tcb_status, claims.root, claims.debug) == (TcbStatus.UP_TO_DATE, RootKind.SIMULATED, False)
    assert claims.report_data == bytes(range(64))
    assert claims.identity["ppid"] == b"SIMULATED-PPID-0"
    assert claims.valid_until == MADE + timedelta(days=30)


def test_measurements_come_through(tee: SimulatedTee, simulated: Case) -> None:
    given = {name: name.encode().ljust(48, b".") for name in ("mrtd", "rtmr0", "rtmr3", "mrconfigid", "mrowner")}
    claims = simulated.with_raw(tee.quote(bytes(64), measurements=given).raw).verify()
    assert {name: claims.measurements[name] for name in given} == given


@pytest.mark.parametrize("given", [{"mrtd": b"short"}, {"pcr7": bytes(32)}])
def test_measurements_that_a_report_cannot_hold_are_refused(tee: SimulatedTee, given: dict[str, bytes]) -> None:
    with pytest.raises(ValueError, match="has"):
        tee.quote(bytes(64), measurements=given)


def test_the_production_root_refuses_it(simulated: Case) -> None:
    with pytest.raises(UnknownRoot):
        replace(simulated, roots=ProductionRoots()).verify()
    with pytest.raises(UnknownRoot):
        parse(simulated.evidence.raw)


def test_another_simulated_root_refuses_it(simulated: Case, tmp_path: Path) -> None:
    other = SimulatedTee.create(tmp_path, MADE)
    for case in (
        replace(simulated, roots=other.roots()),
        replace(simulated, collateral=other.collateral(Listing(MADE))),
        simulated.with_raw(other.quote(bytes(64)).raw),
    ):
        with pytest.raises(UnknownRoot):
            case.verify()


@pytest.mark.parametrize(
    ("certificate", "reason"),
    [(None, UnknownRoot), (b"", MalformedEvidence), (b"no certificate", MalformedEvidence)],
)
def test_a_root_that_is_none(simulated: Case, certificate: bytes | None, reason: type[AttestationError]) -> None:
    roots = SimulatedRoots({} if certificate is None else {Family.TDX: certificate})
    with pytest.raises(reason):
        replace(simulated, roots=roots).verify()


def test_debug_is_refused_and_seen_without_collateral(tee: SimulatedTee, simulated: Case) -> None:
    raw = tee.quote(bytes(64), debug=True).raw
    assert parse(raw, simulated.roots).debug
    with pytest.raises(DebugEnabled):
        simulated.with_raw(raw).verify()


@pytest.mark.parametrize(
    ("listing", "reason"),
    [
        (Listing(MADE, revoked=frozenset({"pck"})), Revoked),
        (Listing(MADE, revoked=frozenset({"pck_ca"})), Revoked),
        (Listing(MADE, revoked=frozenset({"tcb"})), Revoked),
        (Listing(MADE, status="Revoked"), Revoked),
        (Listing(MADE, fmspc=b"abcdef"), WrongCollateral),
        (Listing(MADE, least=2), UnknownTcb),
        (Listing(MADE + timedelta(days=2)), OutsideValidity),
        (Listing(MADE - timedelta(days=40)), OutsideValidity),
    ],
)
def test_every_reason(tee: SimulatedTee, simulated: Case, listing: Listing, reason: type[AttestationError]) -> None:
    with pytest.raises(reason):
        replace(simulated, collateral=tee.collateral(listing)).verify()


def test_a_stale_status_is_a_claim_and_not_a_refusal(tee: SimulatedTee, simulated: Case) -> None:
    listing = Listing(MADE, status="OutOfDate", advisories=("INTEL-SA-00001",))
    claims = replace(simulated, collateral=tee.collateral(listing)).verify()
    assert (claims.tcb_status, claims.advisories) == (TcbStatus.OUT_OF_DATE, ("INTEL-SA-00001",))


NOT_LISTED = {  # the first two follow from a TDX module that was updated while the machine ran
    TcbStatus.TD_RELAUNCH_ADVISED,
    TcbStatus.TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED,
    TcbStatus.REVOKED,
    TcbStatus.UNKNOWN,
}


@pytest.mark.parametrize("status", sorted(set(TcbStatus) - NOT_LISTED))
def test_every_status_comes_through(tee: SimulatedTee, simulated: Case, status: TcbStatus) -> None:
    claims = replace(simulated, collateral=tee.collateral(Listing(MADE, status=status))).verify()
    assert claims.tcb_status is status


@pytest.mark.parametrize(
    ("document", "change", "reason"),
    [
        ("tcb_info", {"id": "SGX"}, WrongCollateral),
        ("tcb_info", {"pceId": "0001"}, WrongCollateral),
        ("tcb_info", {"tcbLevels": []}, UnknownTcb),
        ("tcb_info", {"tdxModuleIdentities": []}, UnknownTcb),
        ("tcb_info", {"nextUpdate": "2026-01-01T12:00:00Z"}, OutsideValidity),
        ("tcb_info", {"issueDate": "2026-01-03T00:00:00Z"}, OutsideValidity),
        ("tcb_info", {"issueDate": "yesterday"}, MalformedEvidence),
        ("tcb_info", {"tcbLevels": None}, MalformedEvidence),
        ("qe_identity", {"id": "QE"}, WrongCollateral),
        ("qe_identity", {"mrsigner": "00" * 32}, WrongCollateral),
        ("qe_identity", {"isvprodid": 3}, WrongCollateral),
        ("qe_identity", {"attributes": "13" + "00" * 15}, WrongCollateral),
        ("qe_identity", {"miscselect": "00000001"}, WrongCollateral),
        ("qe_identity", {"tcbLevels": []}, UnknownTcb),
        ("qe_identity", {"nextUpdate": "2026-01-01T12:00:00Z"}, OutsideValidity),
        ("qe_identity", {"issueDate": "2026-01-03T00:00:00Z"}, OutsideValidity),
    ],
)
def test_what_the_vendor_signs_must_fit(
    tee: SimulatedTee, simulated: Case, document: str, change: dict[str, Any], reason: type[AttestationError]
) -> None:
    content = json.loads(simulated.collateral.documents["dcap"])
    text = json.dumps(json.loads(content[document]) | change)
    signed = {document: text, f"{document}_signature": sign(tee.keys["tcb"], text.encode()).hex()}
    with pytest.raises(reason):
        replace(simulated, collateral=_collateral(content | signed)).verify()


@pytest.mark.parametrize("days", [40 * 365, -2])
def test_certificates_outside_their_validity(tee: SimulatedTee, simulated: Case, days: int) -> None:
    now = MADE + timedelta(days=days)
    fresh = tee.collateral(Listing(now - timedelta(hours=1)))
    with pytest.raises(OutsideValidity, match="certificate"):
        replace(simulated, collateral=fresh, now=now).verify()


def test_a_time_without_a_zone_is_a_mistake(simulated: Case) -> None:
    with pytest.raises(ValueError, match="time zone"):
        replace(simulated, now=MADE.replace(tzinfo=None)).verify()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("tcb_info", InvalidSignature),
        ("qe_identity", InvalidSignature),
        ("tcb_info_signature", InvalidSignature),
        ("qe_identity_signature", InvalidSignature),
        ("root_ca_crl", InvalidSignature),
        ("pck_crl", InvalidSignature),
    ],
)
def test_changed_collateral(simulated: Case, name: str, reason: type[AttestationError]) -> None:
    content = json.loads(simulated.collateral.documents["dcap"])
    text = content[name]
    changed = text.replace('"tcbEvaluationDataNumber":1', '"tcbEvaluationDataNumber":2')
    content[name] = changed if changed != text else text[:-1] + ("0" if text[-1] != "0" else "1")
    with pytest.raises(reason):
        replace(simulated, collateral=_collateral(content)).verify()


@pytest.mark.parametrize("name", ["pck_crl_issuer_chain", "tcb_info_issuer_chain", "qe_identity_issuer_chain"])
def test_chains_that_are_none(simulated: Case, name: str) -> None:
    content = json.loads(simulated.collateral.documents["dcap"])
    for text in ("", "no certificate", content[name].replace("M", "N"), content[name] * 9):
        with pytest.raises(MalformedEvidence):
            replace(simulated, collateral=_collateral(content | {name: text})).verify()


def test_a_pck_chain_in_the_collateral_does_not_replace_the_quotes(simulated: Case, tmp_path: Path) -> None:
    other = Quote.parse(SimulatedTee.create(tmp_path, MADE).quote(bytes(64)).raw).chain.decode()
    content = json.loads(simulated.collateral.documents["dcap"]) | {"pck_certificate_chain": other}
    assert replace(simulated, collateral=_collateral(content)).verify() == simulated.verify()


def test_lists_signed_by_the_machine_are_refused(simulated: Case) -> None:
    content = json.loads(simulated.collateral.documents["dcap"])
    machine = Quote.parse(simulated.evidence.raw).chain.decode()
    with pytest.raises(AttestationError):
        replace(simulated, collateral=_collateral(content | {"tcb_info_issuer_chain": machine})).verify()


@pytest.mark.parametrize(
    ("documents", "reason"),
    [
        ({}, WrongCollateral),
        ({"dcap": b""}, MalformedEvidence),
        ({"dcap": b"\xff"}, MalformedEvidence),
        ({"dcap": b"{}"}, MalformedEvidence),
        ({"dcap": b"[" * 100_000}, MalformedEvidence),
        ({"dcap": b" " * (dcap.MAX_COLLATERAL_BYTES + 1)}, MalformedEvidence),
    ],
)
def test_collateral_that_is_none(simulated: Case, documents: dict[str, bytes], reason: type[AttestationError]) -> None:
    with pytest.raises(reason):
        replace(simulated, collateral=Collateral(documents)).verify()


def test_a_huge_quote_is_refused_unread(simulated: Case) -> None:
    padded = simulated.evidence.raw.ljust(MAX_QUOTE_BYTES + 1, b"\0")
    with pytest.raises(MalformedEvidence, match="longer"):
        simulated.with_raw(padded).verify()


@pytest.mark.parametrize(("part", "error", "meaning"), dcap.REASONS)
def test_every_word_of_the_library_has_its_error(part: str, error: type[AttestationError], meaning: str) -> None:
    with pytest.raises(error) as caught:
        dcap.refuse(f"Verification failed: {part}")
    assert type(caught.value) is error
    assert ";" in meaning


@pytest.mark.parametrize("part", [part for part, _, _ in dcap.REASONS])
def test_the_library_still_has_every_word_of_the_table(part: str) -> None:
    (native,) = Path(dcap_qvl.__file__).parent.glob("_dcap_qvl*.so")
    assert part.encode() in native.read_bytes()


def test_a_leaf_is_no_authority(tee: SimulatedTee) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pck, root = tee.certificates["pck"], tee.certificates["root"]
    forged = (
        x509.CertificateBuilder()
        .subject_name(pck.subject)
        .issuer_name(pck.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(MADE)
        .not_valid_after(MADE + timedelta(days=30))
        .sign(tee.keys["pck"], hashes.SHA256())
    )
    with pytest.raises(InvalidSignature, match="no authority"):
        check_links([[forged, pck, tee.certificates["pck_ca"], root]], root)


def test_every_chain_is_looked_at_also_where_chains_share_links(tee: SimulatedTee) -> None:
    good = [tee.certificates[name] for name in ("pck", "pck_ca", "root")]
    check_links([good, good[1:], good], good[-1])
    for bad in ([good[0], good[2]], [tee.certificates["tcb"], good[1]]):
        with pytest.raises(UnknownRoot):
            check_links([good, bad], good[-1])


def test_collateral_that_stays_parsed_is_verified_anew(simulated: Case, tee: SimulatedTee, tmp_path: Path) -> None:
    other, raw = SimulatedTee.create(tmp_path, MADE), simulated.evidence.raw
    changed = raw[:100] + bytes([raw[100] ^ 1]) + raw[101:]
    for _ in range(2):
        assert simulated.verify().tcb_status is TcbStatus.UP_TO_DATE
        with pytest.raises(OutsideValidity):
            replace(simulated, now=MADE + timedelta(days=31)).verify()
        with pytest.raises(UnknownRoot):
            replace(simulated, roots=other.roots()).verify()
        with pytest.raises(InvalidSignature):
            simulated.with_raw(changed).verify()
        revoked = tee.collateral(Listing(MADE, revoked=frozenset({"pck"})))
        with pytest.raises(Revoked):
            replace(simulated, collateral=revoked).verify()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("CrlExpired { time: 1, next_update: 0 }", OutsideValidity),
        ("TCBInfo expired", OutsideValidity),
        ("QE Identity expired", OutsideValidity),
        ("QE Identity issue date is in the future", OutsideValidity),
        ("QE MRSIGNER mismatch: expected 00", WrongCollateral),
        ("Unsupported QE Identity id/version for the quote TEE type: QE version 2", WrongCollateral),
        ("TDX module MRSIGNER mismatch: expected 00", UnknownTcb),
        ("ISV enclave report signature is invalid", InvalidSignature),
        ("Signature is invalid for qe_report in quote", InvalidSignature),
        ("Failed to verify certificate chain", InvalidSignature),
        ("InvalidSignatureForPublicKey", InvalidSignature),
        ("InvalidCrlSignatureForPublicKey", InvalidSignature),
        ("Unknown QE vendor ID", MalformedEvidence),
        ("Failed to decode quote", MalformedEvidence),
        ("something new", MalformedEvidence),
    ],
)
def test_whole_sentences_of_the_library(words: str, error: type[AttestationError]) -> None:
    with pytest.raises(error) as caught:
        dcap.refuse(f"Verification failed: {words}")
    assert type(caught.value) is error


def test_opened_again_it_is_the_same_machine(tmp_path: Path) -> None:
    made = SimulatedTee.create(tmp_path / "tee", MADE)
    opened = SimulatedTee.open(tmp_path / "tee")
    assert opened.roots() == made.roots()
    case = Case(opened.quote(bytes(64)), made.collateral(Listing(MADE)), opened.roots(), MADE + timedelta(days=1))
    assert case.verify().tcb_status is TcbStatus.UP_TO_DATE


def test_its_keys_are_private_and_its_folder_says_what_it_is(tmp_path: Path) -> None:
    SimulatedTee.create(tmp_path, MADE)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("*.key")} == {0o600}
    assert (tmp_path / "README.md").read_text().startswith("# SIMULATED")
    with pytest.raises(AttestationError, match="not empty"):
        SimulatedTee.create(tmp_path)


def test_a_folder_without_one(tmp_path: Path) -> None:
    with pytest.raises(AttestationError, match="simulate init"):
        SimulatedTee.open(tmp_path)


def _collateral(content: dict[str, str]) -> Collateral:
    return Collateral({"dcap": json.dumps(content).encode()})


def test_evidence_of_another_family(simulated: Case) -> None:
    with pytest.raises(MalformedEvidence):
        replace(simulated, evidence=Evidence(Family.SGX, simulated.evidence.raw)).verify()


@pytest.mark.parametrize(
    ("attributes", "word"),
    [
        (0, "SEPT_VE_DISABLE"),
        (1 << 28 | 1 << 29, "MIGRATABLE"),
        (1 << 28 | 1 << 4, "profiling"),
        (1 << 28 | 1 << 8, "nobody here knows"),
        (1 << 28 | 1 << 24, "nobody here knows"),
    ],
)
def test_attributes_that_undo_the_protection_have_words_of_their_own(
    tee: SimulatedTee, simulated: Case, attributes: int, word: str
) -> None:
    quote = tee.quote(bytes(64), measurements={"td_attributes": attributes.to_bytes(8, "little")})
    with pytest.raises(UnsafeConfiguration, match=word):
        simulated.with_raw(quote.raw).verify()


@pytest.mark.parametrize(
    ("part", "reason", "word"),
    [
        ("Verification failed: Invalid MR service TD", UnsafeConfiguration, "service TD is bound"),
        ("Verification failed: SERVTD_EXT is enabled", UnsafeConfiguration, "SERVTD_EXT"),
        ("TCBInfo expired", OutsideValidity, "TCB levels"),
        ("QE Identity expired", OutsideValidity, "quoting enclave's identity"),
        ("invalid certificate chain: CrlExpired", OutsideValidity, "revocation list"),
        ("invalid certificate chain: CertExpired", OutsideValidity, "certificate"),
    ],
)
def test_words_of_the_library(part: str, reason: type[AttestationError], word: str) -> None:
    with pytest.raises(reason, match=word):
        dcap.refuse(part)


@pytest.mark.parametrize(("name", "word"), [("pck_crl", "PCK revocation list"), ("root_ca_crl", "root CA's")])
@pytest.mark.parametrize(("days", "said"), [(-60, "expired on"), (60, "later than")])
def test_a_list_out_of_its_time_is_named(
    tee: SimulatedTee, simulated: Case, name: str, word: str, days: int, said: str
) -> None:
    stale = json.loads(tee.collateral(Listing(MADE + timedelta(days=days))).documents["dcap"])
    content = json.loads(simulated.collateral.documents["dcap"])
    with pytest.raises(OutsideValidity, match=word) as caught:
        replace(simulated, collateral=_collateral(content | {name: stale[name]})).verify()
    assert said in str(caught.value)

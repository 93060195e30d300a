"""Chains: each rule that a forger could lean on."""

import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding

import confide
from confide.attest.chain import MAX_CHAIN_BYTES, read_certificate, read_chain, read_crl, revocation_check, verify_chain
from confide.attest.check import Outcome
from confide.attest.evidence import Family
from confide.attest.roots import ProductionRoots, SimulatedRoots
from confide.errors import InvalidSignature, MalformedEvidence, OutsideValidity, Revoked, UnknownRoot

from .authorities import YEAR, Party, crl, ec_key, opaque, party, pem
from .cases import NOW

ROOT = party("root", ec_key("root"))
MIDDLE = party("middle", ec_key("middle"), ROOT, path_length=0)
LEAF = party("leaf", ec_key("leaf"), MIDDLE, ca=False)
ROOTS = SimulatedRoots({Family.NVIDIA: ROOT.der})
SECOND = timedelta(seconds=1)


def check(*parties: Party) -> None:
    verify_chain([one.certificate for one in parties], Family.NVIDIA, ROOTS, NOW)


def test_a_chain_holds_until_its_shortest_certificate_ends() -> None:
    short = party("leaf", ec_key("leaf"), MIDDLE, ca=False, end=NOW + timedelta(days=3))
    chain = [short.certificate, MIDDLE.certificate, ROOT.certificate]
    assert verify_chain(chain, Family.NVIDIA, ROOTS, NOW) == NOW + timedelta(days=3)


@pytest.mark.parametrize("place", ["leaf", "middle", "root"])
@pytest.mark.parametrize(
    "when", [(-YEAR, timedelta(seconds=-1)), (timedelta(seconds=1), YEAR)], ids=["over", "not yet"]
)
def test_every_certificate_of_a_chain_is_current(place: str, when: tuple[timedelta, timedelta]) -> None:
    dates = {"begin": NOW + when[0], "end": NOW + when[1]}
    root = party("root", ec_key("root"), **(dates if place == "root" else {}))  # type: ignore[arg-type]
    middle = party("middle", ec_key("middle"), root, **(dates if place == "middle" else {}))  # type: ignore[arg-type]
    leaf = party("leaf", ec_key("leaf"), middle, ca=False, **(dates if place == "leaf" else {}))  # type: ignore[arg-type]
    chain = [one.certificate for one in (leaf, middle, root)]
    with pytest.raises(OutsideValidity):
        verify_chain(chain, Family.NVIDIA, SimulatedRoots({Family.NVIDIA: root.der}), NOW)


def test_what_an_authoritys_list_names_is_revoked_and_nothing_else() -> None:
    middle = party("middle", ec_key("middle"), ROOT, serial=7)
    leaf = party("leaf", ec_key("leaf"), middle, ca=False, serial=8)
    chain = [one.certificate for one in (leaf, middle, ROOT)]
    for issuer, serial in ((ROOT, 7), (middle, 8)):
        with pytest.raises(Revoked):
            verify_chain(chain, Family.NVIDIA, ROOTS, NOW, crl(issuer, 5, serial, 9))
    for issuer, serial in ((ROOT, 8), (middle, 7), (ROOT, 5)):  # another authority's number says nothing
        verify_chain(chain, Family.NVIDIA, ROOTS, NOW, crl(issuer, serial))


def test_authority_below_its_path_length() -> None:
    below = party("below", ec_key("below"), MIDDLE)
    with pytest.raises(InvalidSignature):
        check(party("leaf", ec_key("leaf"), below, ca=False), below, MIDDLE, ROOT)


def test_issuer_without_authority() -> None:
    for ca, signs in ((False, False), (False, True), (True, False)):
        middle = party("middle", ec_key("middle"), ROOT, ca=ca, signs=signs)
        with pytest.raises(InvalidSignature):
            check(LEAF, middle, ROOT)


def test_list_of_an_authority_that_may_sign_none() -> None:
    for lists in (True, False):
        root = party("root", ec_key("root"), lists=lists)
        chain = [LEAF.certificate, MIDDLE.certificate, root.certificate]
        roots = SimulatedRoots({Family.NVIDIA: root.der})
        if lists:
            verify_chain(chain, Family.NVIDIA, roots, NOW, crl(root))
        else:
            with pytest.raises(InvalidSignature, match="list"):
                verify_chain(chain, Family.NVIDIA, roots, NOW, crl(root))


def test_issuer_that_says_nothing_about_authority() -> None:
    builder = (
        x509.CertificateBuilder()
        .subject_name(MIDDLE.name)
        .issuer_name(ROOT.name)
        .public_key(MIDDLE.key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - timedelta(1))
        .not_valid_after(NOW + timedelta(1))
    )
    middle = Party(builder.sign(ROOT.key, hashes.SHA384()), MIDDLE.key)
    with pytest.raises(InvalidSignature):
        check(LEAF, middle, ROOT)


def test_weak_keys_and_hashes() -> None:
    weak = party("weak", ec_key("weak", ec.SECP224R1), ROOT)
    with pytest.raises(InvalidSignature):
        check(party("leaf", ec_key("leaf"), weak, ca=False), weak, ROOT)
    with pytest.raises(InvalidSignature):
        check(party("leaf", ec_key("leaf"), MIDDLE, ca=False, digest=hashes.SHA224()), MIDDLE, ROOT)


def test_other_signatures() -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    builder = x509.CertificateBuilder().subject_name(ROOT.name).issuer_name(ROOT.name).serial_number(1)
    builder = builder.public_key(key.public_key()).not_valid_before(NOW - timedelta(1)).not_valid_after(NOW + YEAR)
    root = builder.sign(key, None)
    roots = SimulatedRoots({Family.NVIDIA: root.public_bytes(Encoding.DER)})
    with pytest.raises(InvalidSignature):
        verify_chain([root], Family.NVIDIA, roots, NOW)


def test_unknown_critical_extension() -> None:
    extension = opaque("1.2.3.4", b"\x05\x00")
    builder = (
        x509.CertificateBuilder()
        .subject_name(LEAF.name)
        .issuer_name(MIDDLE.name)
        .public_key(LEAF.key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - timedelta(1))
        .not_valid_after(NOW + YEAR)
    )
    for critical in (False, True):
        certificate = builder.add_extension(extension, critical).sign(MIDDLE.key, hashes.SHA384())
        leaf = Party(certificate, LEAF.key)
        if critical:
            with pytest.raises(InvalidSignature):
                check(leaf, MIDDLE, ROOT)
        else:
            check(leaf, MIDDLE, ROOT)


def test_partial_revocation_list() -> None:
    builder = x509.CertificateRevocationListBuilder().issuer_name(ROOT.name)
    builder = builder.last_update(NOW - timedelta(1)).next_update(NOW + YEAR)
    delta = builder.add_extension(x509.DeltaCRLIndicator(1), True).sign(ROOT.key, hashes.SHA384())
    with pytest.raises(MalformedEvidence, match="partial"):
        read_crl(delta.public_bytes(Encoding.DER), "list")
    read_crl(crl(ROOT), "list")


def test_bounds() -> None:
    for read in (read_certificate, read_chain):
        with pytest.raises(MalformedEvidence, match="larger"):
            read(b"\0" * (MAX_CHAIN_BYTES + 1), "chain")
    with pytest.raises(MalformedEvidence, match="more than 8"):
        read_chain(pem(*[ROOT] * 9), "chain")


def test_roots_of_one_family_are_not_anothers() -> None:
    accepting = ProductionRoots(attestation_key_roots=frozenset({fingerprint(ROOT)}))
    chain = [LEAF.certificate, MIDDLE.certificate, ROOT.certificate]
    verify_chain(chain, Family.TPM, accepting, NOW)
    with pytest.raises(UnknownRoot):
        verify_chain(chain, Family.NVIDIA, accepting, NOW)
    with pytest.raises(UnknownRoot):
        verify_chain(chain, Family.TPM, replace(accepting, attestation_key_roots=frozenset()), NOW)


def fingerprint(one: Party) -> str:
    return one.certificate.fingerprint(hashes.SHA256()).hex()


@pytest.mark.parametrize(
    ("document", "outcome", "words"),
    [
        (None, Outcome.SKIPPED, "not checked, because no revocation list"),
        (crl(MIDDLE), Outcome.SKIPPED, "not the root's"),
        (crl(ROOT), Outcome.PASS, "none, list of"),
    ],
)
def test_without_the_roots_list_revocation_was_not_checked(
    document: bytes | None, outcome: Outcome, words: str
) -> None:
    found = revocation_check([LEAF.certificate, MIDDLE.certificate, ROOT.certificate], document, "RFC 5280")
    assert (found.code, found.outcome, found.clause) == ("revocation", outcome, "RFC 5280")
    assert words in found.seen


def test_one_rule_of_time_for_lists() -> None:
    chain = [LEAF.certificate, MIDDLE.certificate, ROOT.certificate]
    day = timedelta(days=1)
    for begin, end, words in ((NOW + day, NOW + YEAR, "check the clock"), (NOW - YEAR, NOW - day, "expired on")):
        with pytest.raises(OutsideValidity, match=words):
            verify_chain(chain, Family.NVIDIA, ROOTS, NOW, crl(ROOT, begin=begin, end=end))
    assert verify_chain(chain, Family.NVIDIA, ROOTS, NOW, crl(ROOT, begin=NOW, end=NOW)) == NOW


def test_a_list_of_no_known_version_is_refused() -> None:
    """RFC 5280, 5.1.2.1: the version is 1, for v2. `cryptography` says so with an error that is no ValueError."""
    good = crl(ROOT)
    bad = good.replace(b"\x02\x01\x01", b"\x02\x01\x17", 1)
    assert read_crl(good, "list").next_update_utc
    assert bad != good
    with pytest.raises(MalformedEvidence):
        read_crl(bad, "list")


def test_whoever_loads_certificates_expects_every_error_of_the_library() -> None:
    loading = re.compile(r"load_(der|pem)_x509")
    texts = {path: path.read_text() for path in Path(confide.__file__).parent.rglob("*.py")}
    loaders = {path: text for path, text in texts.items() if loading.search(text)}
    assert {path.name for path in loaders} == {"chain.py", "eif.py", "gateway.py", "tls.py"}
    assert all("*PARSE_ERRORS" in text or "except PARSE_ERRORS" in text for text in loaders.values())

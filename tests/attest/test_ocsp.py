"""OCSP responses: good, revoked, unknown, and signed by those who may."""

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.attest.ocsp import MAX_AGE, MAX_OCSP_BYTES, MAX_RESPONSES, OcspResponses, ocsp_request, response_end
from confide.errors import AttestationError, InvalidSignature, MalformedEvidence, OutsideValidity, Revoked

from .families.authorities import YEAR, Party, ec_key, party, rsa_key
from .families.cases import NOW, flips, truncations
from .families.forged_rim import responder, response

ROOT = party("root", ec_key("ocsp root"))
ISSUER = party("issuer", ec_key("ocsp issuer"), ROOT, serial=2)
LEAF = party("leaf", ec_key("ocsp leaf"), ISSUER, ca=False, serial=3)
HOUR = timedelta(hours=1)


def check(document: bytes, certificate: Party = LEAF, issuer: Party = ISSUER) -> object:
    return OcspResponses(document).check(certificate.certificate, issuer.certificate, NOW)


@pytest.mark.parametrize("digest", [hashes.SHA1(), hashes.SHA256(), hashes.SHA384()])  # noqa: S303 - as RFC 6960 has it
def test_good_from_the_issuer_or_whom_it_named(digest: hashes.HashAlgorithm) -> None:
    assert check(response(LEAF, ISSUER, digest=digest)) == NOW + HOUR
    named = responder(ISSUER)
    assert check(response(LEAF, ISSUER, named, certificates=(named,), digest=digest)) == NOW + HOUR


def test_an_issuer_with_an_rsa_key() -> None:
    issuer = party("rsa issuer", rsa_key("ocsp rsa"), ROOT)
    leaf = party("leaf", ec_key("ocsp leaf"), issuer, ca=False, serial=3)
    assert check(response(leaf, issuer), leaf, issuer) == NOW + HOUR


def test_nothing_about_the_certificate_is_no_answer() -> None:
    other = party("other", ec_key("ocsp other"), ISSUER, ca=False, serial=4)
    namesake = party("issuer", ec_key("another"), ROOT, serial=2)
    assert check(response(other, ISSUER)) is None
    assert check(response(LEAF, namesake)) is None
    assert check(response(other, ISSUER) + response(LEAF, ISSUER)) == NOW + HOUR


@pytest.mark.parametrize("reason", [None, *(x509.ReasonFlags.key_compromise, x509.ReasonFlags.certificate_hold)])
def test_revoked(reason: x509.ReasonFlags | None) -> None:
    revoked = response(LEAF, ISSUER, status=ocsp.OCSPCertStatus.REVOKED, reason=reason)
    with pytest.raises(Revoked, match=r"; .*\.$"):
        check(revoked)
    for both in (revoked + response(LEAF, ISSUER), response(LEAF, ISSUER) + revoked):
        with pytest.raises(Revoked):
            check(both)


def test_a_certificate_that_the_responder_does_not_know() -> None:
    with pytest.raises(Revoked, match="does not know"):
        check(response(LEAF, ISSUER, status=ocsp.OCSPCertStatus.UNKNOWN))


def test_time() -> None:
    old = {"begin": NOW - 2 * HOUR, "end": NOW - HOUR}
    for times in (old, {"begin": NOW + HOUR, "end": NOW + 2 * HOUR}):
        with pytest.raises(OutsideValidity, match=r"; .*\.$"):
            check(response(LEAF, ISSUER, **times))
    assert check(response(LEAF, ISSUER, **old) + response(LEAF, ISSUER)) == NOW + HOUR
    begin = NOW - MAX_AGE
    assert check(response(LEAF, ISSUER, begin=begin, end=None)) == NOW
    with pytest.raises(OutsideValidity):
        check(response(LEAF, ISSUER, begin=begin - timedelta(seconds=1), end=None))


def test_signed_by_somebody_else() -> None:
    named = responder(ISSUER)
    strangers = (
        response(LEAF, ISSUER, ROOT, certificates=(ROOT,)),
        response(LEAF, ISSUER, named),
        response(LEAF, ISSUER, LEAF, certificates=(LEAF,)),
        *(
            response(LEAF, ISSUER, one, certificates=(one,))
            for one in (
                responder(ROOT),
                responder(ISSUER, x509.OID_SERVER_AUTH),
                responder(ISSUER, begin=NOW - 2 * YEAR, end=NOW - YEAR),
                responder(ISSUER, begin=NOW + YEAR, end=NOW + 2 * YEAR),
                party("issuer", ec_key("thief")),
            )
        ),
    )
    for document in strangers:
        with pytest.raises(InvalidSignature, match=r"; .*\.$"):
            check(document)


def test_every_byte() -> None:
    good = response(LEAF, ISSUER)
    for changed in flips(good):
        try:
            assert check(changed) in (None, NOW + HOUR)
        except AttestationError:
            continue
    assert sum(_accepted(changed) for changed in flips(good)) < 12, "only algorithm parameters and the like may change"
    for short in truncations(good):
        with pytest.raises(MalformedEvidence):
            check(short)


def _accepted(document: bytes) -> bool:
    try:
        return check(document) is not None
    except AttestationError:
        return False


def test_documents_that_are_none() -> None:
    good = response(LEAF, ISSUER)
    refusal = ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.UNAUTHORIZED)
    for document in (
        b"",
        b"\x30\x00",
        good * (MAX_RESPONSES + 1),
        good + b"\0" * MAX_OCSP_BYTES,
        refusal.public_bytes(Encoding.DER),
    ):
        with pytest.raises(MalformedEvidence, match=r"[;,] .*\.$"):
            OcspResponses(document)


def test_a_request_is_always_the_same_bytes() -> None:
    one, two = (ocsp_request(LEAF.certificate, ISSUER.certificate) for _ in range(2))
    assert one == two
    asked = ocsp.load_der_ocsp_request(one)
    assert (asked.serial_number, len(asked.extensions)) == (3, 0)


def test_when_a_response_asks_to_be_renewed() -> None:
    assert response_end(response(LEAF, ISSUER)) == NOW + HOUR
    assert response_end(response(LEAF, ISSUER, end=None)) is None


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_noise(noise: bytes) -> None:
    with pytest.raises(MalformedEvidence):
        OcspResponses(noise)

"""Chains of X.509 certificates (RFC 5280) from a leaf to a trusted root, and revocation lists.

`cryptography.x509.verification` is made for the Web: it asks for names and usages that no hardware vendor's
certificates have. So the path is walked here, with that library's parser and its check of each signature.
"""

import warnings
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Final, Protocol, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature as WrongSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtensionOID

from confide.attest.check import Check, check, skipped
from confide.attest.evidence import Family
from confide.errors import InvalidSignature, MalformedEvidence, OutsideValidity, Revoked, UnknownRoot, WrongCollateral
from confide.errors.certificates import PARSE_ERRORS

MAX_CERTIFICATES: Final = 8
"""NVIDIA's chains have five, AMD's three."""

MAX_CHAIN_BYTES: Final = 1 << 16
MAX_CRL_BYTES: Final = 1 << 20
MIN_RSA_BITS: Final = 2048
REVOKED: Final = "revocation"
"""The code of the check that no certificate was revoked; policies can do without it by this name."""

_HASHES: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_CURVES: Final = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_CRITICAL: Final = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    }
)
"""Extensions that may be critical: a certificate with any other, name constraints for example, is refused."""

# AMD gives every VCEK and VLEK the serial number 0. cryptography loads them, warns, and announces that it will refuse
# them one day; constraints.txt pins it, and tests/attest/families/test_snp.py fails on the day it does. Only this
# warning, only from here.
warnings.filterwarnings(
    "ignore",
    message="Parsed a serial number which wasn't positive",
    category=CryptographyDeprecationWarning,
    module=r"confide\.attest\.chain",
)

Parsed = TypeVar("Parsed")


def read_certificate(data: bytes, what: str) -> x509.Certificate:
    """One certificate, DER or PEM; MalformedEvidence, naming `what`, if it is none."""
    pem = data.startswith(b"-----BEGIN")
    load = x509.load_pem_x509_certificate if pem else x509.load_der_x509_certificate
    return _parsed(lambda data: _touched(load(data)), data, what, MAX_CHAIN_BYTES)


def read_chain(data: bytes, what: str) -> tuple[x509.Certificate, ...]:
    """One to MAX_CERTIFICATES certificates in PEM, in their order; MalformedEvidence otherwise."""
    load = x509.load_pem_x509_certificates
    certificates = _parsed(lambda data: tuple(map(_touched, load(data))), data, what, MAX_CHAIN_BYTES)
    if len(certificates) > MAX_CERTIFICATES:
        raise MalformedEvidence(f"The {what} has more than {MAX_CERTIFICATES} certificates; give the chain alone.")
    return certificates


def read_crl(data: bytes, what: str) -> x509.CertificateRevocationList:
    """A complete revocation list, DER; MalformedEvidence if it is none.

    RFC 5280, 5.2: a critical extension may mean that the list is partial (a delta, or some kinds of certificate only),
    and a list with one is not used.
    """
    crl = _parsed(lambda data: _touched_list(x509.load_der_x509_crl(data)), data, what, MAX_CRL_BYTES)
    if any(extension.critical for extension in crl.extensions):
        raise MalformedEvidence(f"The {what} has a critical extension, so it may be partial; give a complete list.")
    return crl


class Trusts(Protocol):
    """What names the roots: see `roots`."""

    def trusts(self, family: Family, certificate: bytes) -> bool:
        """Whether this certificate (DER) is a root for this family."""


def path_from(leaf: x509.Certificate, others: Sequence[x509.Certificate]) -> tuple[x509.Certificate, ...]:
    """The leaf, its issuer, and so on to one that issued itself, from certificates in any order. Nothing is verified.

    WrongCollateral where an issuer is not among them.
    """
    path, left = [leaf], [one for one in others if one != leaf]
    while path[-1].issuer != path[-1].subject:
        issuer = next((one for one in left if one.subject == path[-1].issuer), None)
        if issuer is None:
            raise WrongCollateral(
                f"The certificate {_name(path[-1])!r} was issued by {path[-1].issuer.rfc4514_string()[:200]!r}, which "
                "is not in the chain; fetch the chain for it, up to the root."
            )
        left.remove(issuer)
        path.append(issuer)
    return tuple(path)


def verify_chain(
    chain: Sequence[x509.Certificate], family: Family, roots: Trusts, now: datetime, crl: bytes | None = None
) -> datetime:
    """Check a chain, leaf first and root last, at `now`, against a revocation list if given. Until when it holds.

    UnknownRoot, InvalidSignature, OutsideValidity, Revoked or MalformedEvidence otherwise.
    """
    root = chain[-1]
    if not roots.trusts(family, root.public_bytes(Encoding.DER)):
        raise UnknownRoot(
            f"The chain ends in {_name(root)!r}, which is no root trusted here for {family}; "
            "get the chain from the vendor, or check that the product is supported."
        )
    for depth, (certificate, issuer) in enumerate(pairwise([*chain, root])):
        _check_issued(certificate, issuer, depth)
    until = min(_check_validity(certificate, now) for certificate in chain)
    return until if crl is None else min(until, check_revocation(chain, read_crl(crl, "revocation list"), now))


def check_current(crl: x509.CertificateRevocationList, what: str, now: datetime) -> datetime:
    """The one rule of time for revocation lists, AMD's and Intel's alike; until when the list holds.

    OutsideValidity before thisUpdate, after nextUpdate, and without a nextUpdate (RFC 5280, 5.1.2.4 and 5.1.2.5).
    """
    begin, end = crl.last_update_utc, crl.next_update_utc
    if end is None or now > end:
        until = f"expired on {end:%Y-%m-%d}" if end else "does not say when it expires"
        raise OutsideValidity(f"The {what} {until}, and it is {now:%Y-%m-%d}; fetch a current one.")
    if now < begin:
        raise OutsideValidity(f"The {what} is of {begin:%Y-%m-%d}, later than {now:%Y-%m-%d}; check the clock.")
    return end


def revocation_check(chain: Sequence[x509.Certificate], crl: bytes | None, clause: str) -> Check:
    """What `verify_chain` made of this list: a check that was skipped where there is none, or none of the root's."""
    expected = "no certificate of the chain on its root's list"
    if crl is None:
        return skipped(REVOKED, expected, "no revocation list was given; give the vendor's", clause)
    read = read_crl(crl, "revocation list")
    if read.issuer != chain[-1].subject:
        return skipped(REVOKED, expected, "the revocation list given is not the root's; give the vendor's", clause)
    return check(REVOKED, expected, f"none, list of {read.last_update_utc:%Y-%m-%d}", ok=True, clause=clause)


def list_date(crl: bytes | None) -> datetime | None:
    """When a revocation list was issued, if there is one."""
    return None if crl is None else read_crl(crl, "revocation list").last_update_utc


def _parsed(load: Callable[[bytes], Parsed], data: bytes, what: str, limit: int) -> Parsed:
    if len(data) > limit:
        raise MalformedEvidence(f"The {what} is larger than {limit} bytes; give the right document.")
    try:
        return load(data)
    except PARSE_ERRORS as error:
        raise MalformedEvidence(f"The {what} cannot be parsed; fetch it from the vendor again.") from error


def _touched(certificate: x509.Certificate) -> x509.Certificate:
    """The certificate, after using all that the library parses only on demand."""
    _ = (certificate.extensions, certificate.public_key(), certificate.subject, certificate.issuer)
    _validity = (certificate.not_valid_before_utc, certificate.not_valid_after_utc, certificate.serial_number)
    return certificate


def _touched_list(crl: x509.CertificateRevocationList) -> x509.CertificateRevocationList:
    """The list, after using all that the library parses only on demand."""
    _ = (crl.extensions, crl.issuer, crl.last_update_utc, crl.next_update_utc, len(list(crl)))
    return crl


def _name(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string()[:200]


def _check_issued(certificate: x509.Certificate, issuer: x509.Certificate, depth: int) -> None:
    """That `issuer`, with `depth` authorities between it and the leaf, may and did sign this certificate."""
    problem = f"The certificate {_name(certificate)!r} is not validly issued by {_name(issuer)!r}; get the right chain."
    unknown = any(one.critical and one.oid not in _CRITICAL for one in certificate.extensions)
    if unknown or not _may_issue(issuer, depth):
        raise InvalidSignature(problem)
    try:
        strong = isinstance(certificate.signature_hash_algorithm, _HASHES)
        certificate.verify_directly_issued_by(issuer)
    except (WrongSignature, *PARSE_ERRORS) as error:
        raise InvalidSignature(problem) from error
    if not strong:
        raise InvalidSignature(problem)


def _may_issue(issuer: x509.Certificate, depth: int) -> bool:
    key = issuer.public_key()
    strong = (isinstance(key, rsa.RSAPublicKey) and key.key_size >= MIN_RSA_BITS) or (
        isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, _CURVES)
    )
    try:
        constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = issuer.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return False
    within = constraints.path_length is None or depth <= constraints.path_length
    return strong and constraints.ca and within and usage.key_cert_sign


def _check_validity(certificate: x509.Certificate, now: datetime) -> datetime:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begin <= now <= end:
        raise OutsideValidity(
            f"The certificate {_name(certificate)!r} is valid from {begin:%Y-%m-%d} to {end:%Y-%m-%d}, not at "
            f"{now:%Y-%m-%d}; fetch a current one, or appraise at the time the evidence was made."
        )
    return end


def check_revocation(chain: Sequence[x509.Certificate], crl: x509.CertificateRevocationList, now: datetime) -> datetime:
    """Revoked if the list, which an authority of the chain must have signed, has a certificate that it issued."""
    authority = next((one for one in chain[1:] if one.subject == crl.issuer), None)
    if authority is None or not _signed_list(crl, authority):
        raise InvalidSignature("The revocation list is not signed by an authority of the chain; get the right list.")
    end = check_current(crl, "revocation list", now)
    for certificate in chain:
        revoked = crl.get_revoked_certificate_by_serial_number(certificate.serial_number)
        if certificate.issuer == authority.subject and revoked is not None:
            raise Revoked(f"The certificate {_name(certificate)!r} was revoked; do not trust this platform.")
    return end


def _signed_list(crl: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    key = authority.public_key()
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        return False
    try:
        usage = authority.extensions.get_extension_for_class(x509.KeyUsage).value
        return usage.crl_sign and isinstance(crl.signature_hash_algorithm, _HASHES) and crl.is_signature_valid(key)
    except (x509.ExtensionNotFound, *PARSE_ERRORS):
        return False

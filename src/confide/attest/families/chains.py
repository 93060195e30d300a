"""Chains of X.509 certificates that end in a pinned root: reading them, and why one is refused."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature as BadSignature
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from confide.attest.evidence import Family
from confide.attest.roots import INTEL_SGX_ROOT_SHA256, Roots, SimulatedRoots
from confide.errors import InvalidSignature, MalformedEvidence, OutsideValidity, Revoked, UnknownRoot, WrongCollateral

MAX_CERTIFICATES: Final = 8
"""Longer than any vendor's chain."""

UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises for certificates and lists that it cannot read."""

_BEGIN: Final = b"-----BEGIN"

Chain = Sequence[x509.Certificate]


def fingerprint(certificate: x509.Certificate) -> bytes:
    """SHA-256 of the DER form, 32 bytes."""
    return certificate.fingerprint(hashes.SHA256())


def read_chain(pem: bytes) -> Chain:
    """The certificates of a PEM text, the leaf first. MalformedEvidence if there is none, or one is not readable."""
    if pem.count(_BEGIN) > MAX_CERTIFICATES:
        raise MalformedEvidence(f"A chain of more than {MAX_CERTIFICATES} certificates is no vendor's; fetch it again.")
    try:
        chain = x509.load_pem_x509_certificates(pem)
        for certificate in chain:
            _read_whole(certificate)
    except UNREADABLE as problem:
        raise MalformedEvidence("The evidence holds no readable chain of certificates; fetch it again.") from problem
    return chain


def _read_whole(certificate: x509.Certificate) -> None:
    """Read now what would be read, and perhaps refused, on first use."""
    _ = certificate.subject, certificate.issuer, certificate.extensions, certificate.public_key()
    _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc, certificate.signature_hash_algorithm


def read_list(der: bytes) -> x509.CertificateRevocationList:
    """A revocation list; MalformedEvidence if it is not readable."""
    try:
        revoked = x509.load_der_x509_crl(der)
        _ = revoked.issuer, [entry.serial_number for entry in revoked]
    except UNREADABLE as problem:
        raise MalformedEvidence("A revocation list is not readable; fetch the collateral again.") from problem
    return revoked


def intel_root(roots: Roots, family: Family, candidates: Iterable[x509.Certificate]) -> x509.Certificate:
    """The root for SGX or TDX: the simulated one, or that of the candidates which has Intel's fingerprint.

    UnknownRoot where there is none.
    """
    if isinstance(roots, SimulatedRoots):
        return _simulated(roots, family)
    for candidate in candidates:
        if fingerprint(candidate) == INTEL_SGX_ROOT_SHA256:
            return candidate
    raise UnknownRoot("No chain here ends in Intel's SGX root; do not trust this machine as Intel hardware.")


def _simulated(roots: SimulatedRoots, family: Family) -> x509.Certificate:
    try:
        root = x509.load_der_x509_certificate(roots.certificates[family])
        _read_whole(root)
    except KeyError as problem:
        raise UnknownRoot(
            f"No simulated root for {family} was given; give the folder of the simulated TEE."
        ) from problem
    except UNREADABLE as problem:
        raise MalformedEvidence(f"The simulated root for {family} is not a DER certificate; make it anew.") from problem
    return root


def check_links(chain: Chain, root: x509.Certificate) -> None:
    """Every certificate is signed by the next, and the last is the root or signed by it; each issuer is an authority.

    UnknownRoot or InvalidSignature where that does not hold.
    """
    path = [*chain] if chain[-1] == root else [*chain, root]
    for issued, issuer in pairwise(path):
        _check_link(issued, issuer, root)


def _check_link(issued: x509.Certificate, issuer: x509.Certificate, root: x509.Certificate) -> None:
    if issued.issuer != issuer.subject:
        raise UnknownRoot(f"{_name(issued)} has another issuer than its chain says; do not trust the evidence.")
    if not _is_authority(issuer):
        raise InvalidSignature(f"{_name(issuer)} issued another, and is no authority; do not trust the evidence.")
    try:
        issued.verify_directly_issued_by(issuer)
    except (BadSignature, *UNREADABLE) as problem:
        error = UnknownRoot if issuer == root else InvalidSignature
        raise error(f"{_name(issued)} was not signed by its issuer; do not trust the evidence.") from problem


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return False


def check_validity(chain: Chain, now: datetime) -> None:
    """Every certificate is valid at `now`; OutsideValidity if not."""
    for certificate in chain:
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            raise OutsideValidity(
                f"{_name(certificate)} is valid from {certificate.not_valid_before_utc:%Y-%m-%d} to "
                f"{certificate.not_valid_after_utc:%Y-%m-%d}, not at {now:%Y-%m-%d}; fetch fresh collateral."
            )


def check_list(revoked: x509.CertificateRevocationList, issuer: x509.Certificate) -> None:
    """The list is the issuer's; WrongCollateral if it is another's, InvalidSignature if it was changed."""
    if revoked.issuer != issuer.subject:
        raise WrongCollateral("A revocation list is by another issuer than the certificates; fetch it for this quote.")
    key = issuer.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey) or not _signed_by(revoked, key):
        raise InvalidSignature("The signature of a revocation list does not hold; fetch the collateral again.")


def _signed_by(revoked: x509.CertificateRevocationList, key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> bool:
    try:
        return revoked.is_signature_valid(key)
    except UNREADABLE:
        return False


def check_revocation(chain: Chain, lists: Iterable[x509.CertificateRevocationList]) -> None:
    """No certificate of the chain is on a list of its issuer; Revoked if one is."""
    for revoked in lists:
        for certificate in chain:
            listed = revoked.get_revoked_certificate_by_serial_number(certificate.serial_number)
            if certificate.issuer == revoked.issuer and listed is not None:
                raise Revoked(f"{_name(certificate)} was revoked by its issuer; do not trust this machine.")


def _name(certificate: x509.Certificate) -> str:
    try:
        return f"The certificate {certificate.subject.rfc4514_string()[:100]!r}"
    except ValueError:
        return "A certificate"

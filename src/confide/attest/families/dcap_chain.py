"""Intel's chains, step by step: the library that verifies quotes says only that a chain failed, and not why."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature as BadSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from confide.attest.chain import read_certificate
from confide.attest.evidence import Family
from confide.attest.roots import INTEL_SGX_ROOT_SHA256, Roots, SimulatedRoots
from confide.errors import InvalidSignature, OutsideValidity, Revoked, UnknownRoot, WrongCollateral
from confide.errors.certificates import PARSE_ERRORS

Chain = Sequence[x509.Certificate]


def fingerprint(certificate: x509.Certificate) -> bytes:
    """SHA-256 of the DER form, 32 bytes."""
    return certificate.fingerprint(hashes.SHA256())


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
    if family not in roots.certificates:
        raise UnknownRoot(f"No simulated root for {family} was given; give the folder of the simulated TEE.")
    return read_certificate(roots.certificates[family], f"simulated root for {family}")


def check_links(chains: Iterable[Chain], root: x509.Certificate) -> None:
    """Every certificate is signed by the next, and the last is the root or signed by it; each issuer is an authority.

    A link that several chains share is checked once. UnknownRoot or InvalidSignature where one does not hold.
    """
    paths = ([*chain] if chain[-1] == root else [*chain, root] for chain in chains)
    for issued, issuer in dict.fromkeys(link for path in paths for link in pairwise(path)):
        _check_link(issued, issuer, root)


def _check_link(issued: x509.Certificate, issuer: x509.Certificate, root: x509.Certificate) -> None:
    if issued.issuer != issuer.subject:
        raise UnknownRoot(f"{_name(issued)} has another issuer than its chain says; do not trust the evidence.")
    if not _is_authority(issuer):
        raise InvalidSignature(f"{_name(issuer)} issued another, and is no authority; do not trust the evidence.")
    try:
        issued.verify_directly_issued_by(issuer)
    except (BadSignature, *PARSE_ERRORS) as problem:
        error = UnknownRoot if issuer == root else InvalidSignature
        raise error(f"{_name(issued)} was not signed by its issuer; do not trust the evidence.") from problem


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, *PARSE_ERRORS):
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
    except PARSE_ERRORS:
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

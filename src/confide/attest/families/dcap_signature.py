"""The signatures inside a DCAP quote, without collateral and without a time.

A quote carries three links: the PCK certificate's chain to Intel's root, the quoting enclave's report signed by the
PCK key, and the quote signed by an attestation key whose hash that report holds. Nothing here looks at validity,
revocation or how current the platform is, so the result is a `SignatureOnly`, which no policy takes for claims.

Source: Intel SGX ECDSA Quote Library API, appendix A.4 ("Quote Format") and section 3.4 of the DCAP white paper
"Supporting Third Party Attestation for Intel SGX with Intel Data Center Attestation Primitives".
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from cryptography.exceptions import InvalidSignature as BadSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from confide.attest.chain import read_chain
from confide.attest.claims import RootKind
from confide.attest.evidence import Family
from confide.attest.families.dcap_chain import check_links, intel_root
from confide.attest.families.dcap_quote import Quote
from confide.attest.families.dcap_words import in_debug, measurements
from confide.attest.roots import ProductionRoots, Roots
from confide.errors import InvalidSignature, MalformedEvidence

_SHA256: Final = ec.ECDSA(hashes.SHA256())
_QE_REPORT_DATA: Final = slice(320, 384)


@dataclass(frozen=True)
class SignatureOnly:
    """A quote whose signatures hold. It is not an appraisal, and deliberately not a Claims."""

    says: ClassVar[str] = (
        "Checked for signature and structure alone: validity, revocation and the TCB status were not checked."
    )

    family: Family
    root: RootKind
    version: int
    report_data: bytes
    debug: bool
    measurements: Mapping[str, bytes]


def parse(raw: bytes, roots: Roots | None = None) -> SignatureOnly:
    """Take a quote of SGX v3 or TDX v4 or v5 apart and check its signatures up to the root; Intel's without `roots`.

    MalformedEvidence, InvalidSignature or UnknownRoot.
    """
    roots = roots or ProductionRoots()
    quote = Quote.parse(raw)
    chain = read_chain(quote.chain, "quote's chain of certificates")
    check_links([chain], intel_root(roots, quote.family, chain[-1:]))
    key = chain[0].public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise MalformedEvidence("The PCK certificate's key is not P-256; fetch the evidence again.")
    check_quote(quote, key)
    return SignatureOnly(
        family=quote.family,
        root=roots.kind,
        version=quote.version,
        report_data=quote.report["report_data"],
        debug=in_debug(quote.report),
        measurements=measurements(quote.report),
    )


def check_quote(quote: Quote, pck: ec.EllipticCurvePublicKey) -> None:
    """The quoting enclave vouches for the attestation key, and that for the quote; InvalidSignature if not."""
    _check(pck, quote.qe_signature, quote.qe_report, "quoting enclave's report")
    bound = hashlib.sha256(quote.attestation_key + quote.qe_auth).digest().ljust(64, b"\0")
    if quote.qe_report[_QE_REPORT_DATA] != bound:
        raise InvalidSignature("The quoting enclave vouches for another attestation key; fetch the evidence again.")
    _check(_public_key(quote.attestation_key), quote.signature, quote.signed, "quote")


def _public_key(point: bytes) -> ec.EllipticCurvePublicKey:
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + point)
    except ValueError as problem:
        raise MalformedEvidence("The attestation key is no point of P-256; fetch the evidence again.") from problem


def _check(key: ec.EllipticCurvePublicKey, signature: bytes, signed: bytes, what: str) -> None:
    r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
    try:
        key.verify(encode_dss_signature(r, s), signed, _SHA256)
    except BadSignature as problem:
        raise InvalidSignature(f"The signature of the {what} does not hold; fetch the evidence again.") from problem

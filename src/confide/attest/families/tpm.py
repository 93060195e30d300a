"""TPM 2.0 quotes: TPMS_ATTEST of type quote, the attestation key's signature, and the values of the PCRs.

Formats: TCG, "TPM 2.0 Library, Part 2: Structures": TPMS_ATTEST (table "Definition of TPMS_ATTEST Structure"),
TPMS_CLOCK_INFO, TPMS_QUOTE_INFO, TPML_PCR_SELECTION, TPMT_SIGNATURE; numbers are big-endian. Part 3, TPM2_Quote: the
digest is over the selected PCRs' values, bank by bank as selected and in ascending order, with the signature's hash.

The evidence's raw bytes are the TPMS_ATTEST. Parts: `signature`, the whole TPMT_SIGNATURE with its algorithms in
front; `pcrs`, the values of the selected PCRs one after another, in the order just said. Collateral: `ak`, the
attestation key, as a public key (SubjectPublicKeyInfo) or a certificate (DER or PEM); `chain` (PEM, authorities up to
the root) and `crl` (DER) for a certificate.

What is trusted. No vendor has one root for all TPMs, so the roots say which attestation keys the policy's author has
enrolled, or which roots certify them: see `ProductionRoots`. A quote proves something only if that key is restricted:
a TPM then signs nothing with it that begins with TPM_GENERATED and was not made by itself. Who enrols a key, or
certifies one, answers for that. A TPM in a debug mode does not exist, and nobody lists levels: the status is Unknown.
"""

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from types import MappingProxyType
from typing import Final, Self

from cryptography.exceptions import InvalidSignature as WrongSignature
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_public_key,
)

from confide.attest.chain import (
    MAX_CHAIN_BYTES,
    MIN_RSA_BITS,
    read_certificate,
    read_chain,
    revocation_check,
    verify_chain,
)
from confide.attest.check import Check, check
from confide.attest.claims import Claims, TcbStatus
from confide.attest.collateral import Collateral
from confide.attest.cursor import Cursor
from confide.attest.evidence import Evidence, Family
from confide.attest.roots import Roots
from confide.errors import InvalidSignature, MalformedEvidence, UnknownRoot, WrongCollateral

MAX_BANKS: Final = 8
_KEYS: Final = "TCG TPM 2.0 Part 1, attestation keys; RFC 5280, 6.1"
MAX_PCRS: Final = 32

_Hash = hashes.SHA256 | hashes.SHA384 | hashes.SHA512

_GENERATED: Final = 0xFF544347
_QUOTE: Final = 0x8018
_RSASSA, _RSAPSS, _ECDSA = 0x0014, 0x0016, 0x0018
_BANKS: Final = MappingProxyType(
    {0x0004: ("sha1", 20), 0x000B: ("sha256", 32), 0x000C: ("sha384", 48), 0x000D: ("sha512", 64)}
)
_HASHES: Final[MappingProxyType[int, Callable[[], _Hash]]] = MappingProxyType(
    {0x000B: hashes.SHA256, 0x000C: hashes.SHA384, 0x000D: hashes.SHA512}
)
"""TPM_ALG_ID of what may sign: no SHA-1. A bank of PCRs may be SHA-1, and its claims say so in their names."""


@dataclass(frozen=True)
class Quote:
    """The fields of a TPMS_ATTEST of type quote. selection: each bank's TPM_ALG_ID with its PCRs, ascending."""

    qualified_signer: bytes
    extra_data: bytes
    clock_info: bytes
    firmware_version: bytes
    selection: tuple[tuple[int, tuple[int, ...]], ...]
    pcr_digest: bytes

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Read a TPMS_ATTEST; MalformedEvidence if it is no quote that a TPM made."""
        cursor = Cursor(raw, "TPM quote", "big")
        if cursor.number(4) != _GENERATED or cursor.number(2) != _QUOTE:
            raise MalformedEvidence("These bytes are no quote made by a TPM (TPMS_ATTEST); send the quote's message.")
        quote = cls(
            qualified_signer=cursor.sized(2),
            extra_data=cursor.sized(2),
            clock_info=cursor.take(17),
            firmware_version=cursor.take(8),
            selection=_selection(cursor),
            pcr_digest=cursor.sized(2),
        )
        cursor.finish()
        return quote


@dataclass(frozen=True)
class Signature:
    """A TPMT_SIGNATURE. numbers: the signature of RSA, or r and s of ECDSA."""

    algorithm: int
    hash: _Hash
    numbers: tuple[bytes, ...]

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Read a TPMT_SIGNATURE; MalformedEvidence if its algorithms are not supported."""
        cursor = Cursor(raw, "TPM signature", "big")
        algorithm, chosen = cursor.number(2), _HASHES.get(cursor.number(2))
        if algorithm not in (_RSASSA, _RSAPSS, _ECDSA) or chosen is None:
            raise MalformedEvidence("This TPM signature is not RSASSA, RSAPSS or ECDSA with SHA-2; use such a key.")
        numbers = tuple(cursor.sized(2) for _ in range(2 if algorithm == _ECDSA else 1))
        cursor.finish()
        return cls(algorithm, chosen(), numbers)


def verify(evidence: Evidence, collateral: Collateral, roots: Roots, now: datetime) -> Claims:
    """What a TPM's quote says, after its key, its signature and the PCRs' values were checked at `now`."""
    if missing := {"signature", "pcrs"} - evidence.parts.keys():
        raise MalformedEvidence(f"The TPM evidence lacks {', '.join(sorted(missing))}; send it with the quote.")
    key, until, checks = _trusted_key(collateral, roots, now)
    quote, measurements = verify_quote(evidence.raw, evidence.parts["signature"], evidence.parts["pcrs"], key)
    return Claims(
        family=Family.TPM,
        root=roots.kind,
        report_data=quote.extra_data,
        debug=False,
        tcb_status=TcbStatus.UNKNOWN,
        measurements=MappingProxyType(measurements),
        identity=MappingProxyType(
            {
                "ak": sha256(_encoded(key)).digest(),
                "qualified_signer": quote.qualified_signer,
                "firmware_version": quote.firmware_version,
                "clock_info": quote.clock_info,
            }
        ),
        valid_until=until,
        checks=checks,
    )


def verify_quote(message: bytes, signature: bytes, pcrs: bytes, key: PublicKeyTypes) -> tuple[Quote, dict[str, bytes]]:
    """A quote that this key signed, and its PCRs by name. Whether to trust the key is not asked here."""
    quote, signed = Quote.parse(message), Signature.parse(signature)
    _check_signature(key, signed, message)
    return quote, _measurements(quote, signed, pcrs)


def _selection(cursor: Cursor) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """TPML_PCR_SELECTION: at most 8 different banks, each with a bitmap of at most 32 PCRs, lowest bit first."""
    banks: dict[int, tuple[int, ...]] = {}
    count = cursor.number(4)
    for _ in range(min(count, MAX_BANKS + 1)):
        bank, bitmap = cursor.number(2), cursor.sized(1)
        if bank in banks or bank not in _BANKS or len(banks) == MAX_BANKS or len(bitmap) * 8 > MAX_PCRS:
            raise MalformedEvidence("The TPM quote selects PCRs of unknown or repeated banks; quote SHA-2 banks once.")
        bits = int.from_bytes(bitmap, "little")
        banks[bank] = tuple(index for index in range(len(bitmap) * 8) if bits >> index & 1)
    return tuple(banks.items())


def _trusted_key(
    collateral: Collateral, roots: Roots, now: datetime
) -> tuple[PublicKeyTypes, datetime | None, tuple[Check, ...]]:
    """The attestation key, if it was enrolled or a trusted root certifies it, until when, and what was checked."""
    documents = collateral.documents
    if "ak" not in documents:
        raise WrongCollateral("The TPM's attestation key is missing; give it as `ak`.")
    key, leaf = _public_key(documents["ak"]), None
    if key is None:
        leaf = read_certificate(documents["ak"], "attestation key's certificate")
        key = leaf.public_key()
    if roots.trusts_key(_encoded(key)):
        return key, None, (check("chain", "an attestation key that is trusted", "enrolled", ok=True, clause=_KEYS),)
    if leaf is None or "chain" not in documents:
        raise UnknownRoot("This TPM's attestation key is not enrolled; enrol it, or give its certificate and chain.")
    chain = (leaf, *read_chain(documents["chain"], "chain of the attestation key"))
    crl = documents.get("crl")
    until = verify_chain(chain, Family.TPM, roots, now, crl)
    certified = check(
        "chain", "an attestation key that is trusted", "certified by a trusted root", ok=True, clause=_KEYS
    )
    return key, until, (certified, revocation_check(chain, crl, "RFC 5280, 6.3"))


def _public_key(document: bytes) -> PublicKeyTypes | None:
    """The document as a bare public key; None if it is something else, such as a certificate."""
    pem = document.startswith(b"-----BEGIN")
    try:
        return (load_pem_public_key if pem else load_der_public_key)(document[:MAX_CHAIN_BYTES])
    except (ValueError, UnsupportedAlgorithm):
        return None


def _encoded(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _check_signature(key: PublicKeyTypes, signature: Signature, message: bytes) -> None:
    try:
        if isinstance(key, rsa.RSAPublicKey) and key.key_size >= MIN_RSA_BITS and signature.algorithm != _ECDSA:
            key.verify(signature.numbers[0], message, _padding(signature), signature.hash)
        elif isinstance(key, ec.EllipticCurvePublicKey) and signature.algorithm == _ECDSA:
            r, s = (int.from_bytes(number, "big") for number in signature.numbers)
            key.verify(encode_dss_signature(r, s), message, ec.ECDSA(signature.hash))
        else:
            raise WrongCollateral("The attestation key does not fit the quote's signature; give the key that signed.")
    except WrongSignature as error:
        raise InvalidSignature("The TPM quote's signature does not hold; do not trust its sender.") from error


def _padding(signature: Signature) -> padding.AsymmetricPadding:
    """PKCS #1 v1.5, or PSS with whatever salt: a TPM's own rule for the salt changed between revisions."""
    if signature.algorithm == _RSASSA:
        return padding.PKCS1v15()
    return padding.PSS(padding.MGF1(signature.hash), padding.PSS.AUTO)


def _measurements(quote: Quote, signature: Signature, values: bytes) -> dict[str, bytes]:
    """The PCRs by name: pcr7 for the SHA-256 bank, sha384.pcr7 for others. InvalidSignature if the digest differs."""
    cursor = Cursor(values, "list of PCR values", "big")
    measurements: dict[str, bytes] = {}
    for bank, indices in quote.selection:
        name, size = _BANKS[bank]
        prefix = "" if name == "sha256" else f"{name}."
        measurements |= {f"{prefix}pcr{index}": cursor.take(size) for index in indices}
    cursor.finish()
    digest = hashes.Hash(signature.hash)
    digest.update(values)
    if not hmac.compare_digest(digest.finalize(), quote.pcr_digest):
        raise InvalidSignature("The PCR values are not the ones that the TPM signed; send the values of the quote.")
    return measurements

"""RA-TLS: a TLS certificate that carries evidence about the environment which holds its key.

The certificate is an ordinary self-signed one; what it is worth follows from the evidence in its extension alone. That
the key belongs to the evidence follows from the report data, in one of three bindings, where SPKI is the certificate's
DER SubjectPublicKeyInfo, algorithm included:

- Binding.SPKI: SHA-512(SPKI), 64 bytes. The default here.
- Binding.CLAIMS: SHA-256(claims), then 32 zero bytes, where claims is a CBOR map that comes along, with "pubkey-hash"
  as the CBOR array [hash algorithm, hash of the SPKI]. This is how Gramine 1.8 and later and other implementations of
  the CCC's Interoperable RA-TLS do it.
- Gramine's older one, under Intel's object identifiers: SHA-256(SPKI), then 32 zero bytes. Verified, never made.

A TPM, Azure's included, signs `qualifying_data(report data)` instead of the report data, and a composite is bound by
its first member.

The extension, TCG DICE 2.23.133.5.4.9, holds one tagged CBOR value. Tag 60000 (IANA: Intel TEE quote) is
60000([quote, claims]), in two entries, for SGX and TDX under Binding.CLAIMS. Everything else has a tag of Confide's
own, 1131376233, which IANA has assigned to nobody: [family, raw, {part: bytes}, members, claims], with members of
the same first four entries and claims empty under Binding.SPKI.

Sources: github.com/CCC-Attestation/interoperable-ra-tls (both documents on formats); IANA's registries "CBOR Tags" and
"Named Information"; Gramine's tools/sgx/ra-tls. Gramine wrote Intel's 1.2.840.113741.1337.6 with tag and length inside
its own value (06 0B 06 09 2A ..., which reads as 0.6.9.42.840...), so extensions are found by comparing bytes.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from hmac import compare_digest
from typing import Any, Final

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from confide.attest.cbor import decode as decode_cbor
from confide.attest.claims import Claims
from confide.attest.der import read_fields
from confide.attest.evidence import Evidence, Family
from confide.attest.statement import same_report_data
from confide.errors import MalformedEvidence, OutsideValidity, WrongBinding
from confide.net.tls import alternative_names

MAX_CERTIFICATE_BYTES: Final = 96 << 10
"""OpenSSL refuses chains above 100 KiB before anybody can look at them."""

QUOTE_TAG: Final = 60000
CONFIDE_TAG: Final = 1131376233
DICE_EVIDENCE: Final = x509.ObjectIdentifier("2.23.133.5.4.9")
_DICE_DER: Final = bytes.fromhex("678105050409")
_INTEL_DER: Final = bytes.fromhex("2a864886f84d8a3906")
_GRAMINE_DER: Final = bytes.fromhex("0609") + _INTEL_DER
_HASHES: Final[Mapping[int, str]] = {1: "sha256", 7: "sha384", 8: "sha512"}
_SHA256_ID: Final = 1
_WHAT: Final = "evidence in the RA-TLS certificate"
_FAMILIES: Final = frozenset(family.value for family in Family)
_MAX_MEMBERS: Final = 16
_MAX_PARTS: Final = 32
_CLOCK_SKEW: Final = timedelta(minutes=5)
LIFETIME: Final = timedelta(days=30)
"""Of a certificate made here."""

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


class Binding(Enum):
    """How report data speaks for a key; see the module."""

    SPKI = "spki"
    CLAIMS = "claims"


@dataclass(frozen=True)
class Certificate:
    """A certificate that was taken apart: its evidence, its SPKI in DER, and the claims buffer where there is one."""

    evidence: Evidence
    spki: bytes
    claims_buffer: bytes
    legacy: bool
    not_before: datetime
    not_after: datetime

    def require_current(self, now: datetime) -> None:
        """OutsideValidity where the certificate is not valid at `now`: its evidence may be of any age then."""
        if not self.not_before <= now <= self.not_after:
            raise OutsideValidity(
                f"The server's certificate is valid from {self.not_before:%Y-%m-%d %H:%M} to "
                f"{self.not_after:%Y-%m-%d %H:%M}, and it is {now:%Y-%m-%d %H:%M}, all in UTC; check the clock, or ask "
                "the operator, whose server renews it by itself."
            )

    def accepted_report_data(self) -> bytes:
        """The one value of 64 bytes by which evidence in this form is bound to this key."""
        if self.legacy:
            return _padded(hashlib.sha256(self.spki).digest())
        if self.claims_buffer:
            _check_public_key_hash(self.claims_buffer, self.spki)
            return _padded(hashlib.sha256(self.claims_buffer).digest())
        return hashlib.sha512(self.spki).digest()


def make_certificate(
    key: PrivateKey,
    read_evidence: Callable[[bytes], Evidence],
    *,
    now: datetime,
    names: Iterable[str] = (),
    lifetime: timedelta = LIFETIME,
    common_name: str = "Confide RA-TLS",
    binding: Binding = Binding.SPKI,
) -> bytes:
    """A DER certificate for this key, with evidence that `read_evidence` makes over 64 bytes bound to the key.

    names: host names and addresses that it is for, besides this machine's own; InvalidCertificate for what is neither.
    Clients that know nothing of evidence look at them.
    """
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    claims_buffer = _claims_buffer(spki) if binding is Binding.CLAIMS else b""
    report_data = _padded(hashlib.sha256(claims_buffer).digest()) if claims_buffer else hashlib.sha512(spki).digest()
    extension = encode_evidence(read_evidence(report_data), claims_buffer)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])
    builder = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + lifetime)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(alternative_names(names), critical=False)
        .add_extension(x509.UnrecognizedExtension(DICE_EVIDENCE, extension), critical=False)
    )
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA256()
    return _bounded(builder.sign(key, algorithm).public_bytes(Encoding.DER))


def extract(certificate: bytes) -> Evidence:
    """The evidence in a DER certificate, not yet believed; MalformedEvidence where there is none."""
    return open_certificate(certificate).evidence


def verify_binding(certificate: bytes, claims: Claims) -> None:
    """WrongBinding unless verified claims, those of this certificate's evidence, speak for this certificate's key.

    This is the half that TLS then completes: the handshake proves that the peer holds the key.
    """
    opened = open_certificate(certificate)
    member = claims
    while member.family is Family.COMPOSITE and member.members:
        member = member.members[0]
    if not same_report_data(opened.accepted_report_data(), member.report_data, member.family):
        raise WrongBinding(
            "The certificate's evidence is about another key; do not send anything, and tell the operator that "
            "something may sit in between."
        )


def open_certificate(certificate: bytes) -> Certificate:
    """Take a DER certificate apart. TCG's extension is preferred to Intel's, and that to Gramine's form of it."""
    read = read_fields(_bounded(certificate))
    dates = read.not_before, read.not_after
    if _DICE_DER in read.extensions:
        evidence, claims_buffer = decode_evidence(read.extensions[_DICE_DER])
        return Certificate(evidence, read.spki, claims_buffer, False, *dates)
    for identifier in (_INTEL_DER, _GRAMINE_DER):
        if identifier in read.extensions:
            return Certificate(_from_quote(read.extensions[identifier]), read.spki, b"", True, *dates)
    raise MalformedEvidence(
        "The certificate carries no evidence; connect to the enclave itself, not to a proxy before it."
    )


def encode_evidence(evidence: Evidence, claims_buffer: bytes = b"") -> bytes:
    """The extension's value; the shortest encoding with sorted maps, so equal evidence gives equal bytes."""
    bare = not evidence.parts and not evidence.members
    if claims_buffer and bare and evidence.family in (Family.SGX, Family.TDX):
        return cbor2.dumps(cbor2.CBORTag(QUOTE_TAG, [evidence.raw, claims_buffer]), canonical=True)
    return cbor2.dumps(cbor2.CBORTag(CONFIDE_TAG, [*_to_list(evidence), claims_buffer]), canonical=True)


def decode_evidence(extension: bytes) -> tuple[Evidence, bytes]:
    """Evidence and claims buffer (maybe empty) from the extension's value."""
    tagged = decode_cbor(extension, _WHAT)
    match tagged:
        case cbor2.CBORTag(tag=60000, value=[bytes(quote), bytes(claims_buffer)]) if claims_buffer:
            return _from_quote(quote), claims_buffer
        case cbor2.CBORTag(tag=1131376233, value=[*evidence, bytes(claims_buffer)]):
            return _from_list(evidence), claims_buffer
        case cbor2.CBORTag():
            raise MalformedEvidence(f"Evidence with the CBOR tag {tagged.tag} cannot be read; update Confide.")
    raise _malformed("its evidence is not a tagged CBOR value")


def _to_list(evidence: Evidence) -> list[Any]:
    members = [_to_list(member) for member in evidence.members]
    return [evidence.family.value, evidence.raw, dict(evidence.parts), members]


def _from_list(value: object, depth: int = 0) -> Evidence:
    match value:
        case [str(family), bytes(raw), Mapping() as parts, [*members]] if family in _FAMILIES and depth < 2:
            if len(members) > _MAX_MEMBERS or len(parts) > _MAX_PARTS:
                raise _malformed("its evidence has too many members or parts")
            if not all(isinstance(name, str) and isinstance(part, bytes) for name, part in parts.items()):
                raise _malformed("a part of its evidence is not bytes under a name")
            return Evidence(Family(family), raw, dict(parts), tuple(_from_list(one, depth + 1) for one in members))
    raise _malformed("its evidence is not of a known family and shape")


def _from_quote(quote: bytes) -> Evidence:
    """A DCAP quote's family, from its header: version (2 bytes), key type (2), TEE type (4; version 3 is SGX only)."""
    version, tee = int.from_bytes(quote[:2], "little"), int.from_bytes(quote[4:8], "little")
    if len(quote) < 48 or version not in (3, 4, 5) or tee not in (0, 0x81):
        raise _malformed("its quote is not a DCAP quote of version 3, 4 or 5")
    return Evidence(Family.TDX if tee and version > 3 else Family.SGX, quote)


def _claims_buffer(spki: bytes) -> bytes:
    entry = cbor2.dumps([_SHA256_ID, hashlib.sha256(spki).digest()], canonical=True)
    return cbor2.dumps({"pubkey-hash": entry}, canonical=True)


def _check_public_key_hash(claims_buffer: bytes, spki: bytes) -> None:
    claims = decode_cbor(claims_buffer, _WHAT)
    entry = claims.get("pubkey-hash") if isinstance(claims, Mapping) else None
    match decode_cbor(entry, _WHAT) if isinstance(entry, bytes) else None:
        case [int(algorithm), bytes(digest)] if algorithm in _HASHES:
            if not compare_digest(hashlib.new(_HASHES[algorithm], spki).digest(), digest):
                raise WrongBinding("The certificate's claims are about another key; do not send anything.")
        case _:
            raise _malformed("its claims hold no pubkey-hash by SHA-256, SHA-384 or SHA-512")


def _padded(digest: bytes) -> bytes:
    return digest.ljust(64, b"\0")


def _bounded(certificate: bytes) -> bytes:
    if len(certificate) > MAX_CERTIFICATE_BYTES:
        raise MalformedEvidence(
            f"A certificate of {len(certificate)} bytes is more than TLS carries ({MAX_CERTIFICATE_BYTES}); leave "
            "event logs out of its evidence and serve them beside it."
        )
    return certificate


def _malformed(reason: str) -> MalformedEvidence:
    return MalformedEvidence(f"The RA-TLS certificate cannot be used: {reason}. Ask the operator to make it anew.")

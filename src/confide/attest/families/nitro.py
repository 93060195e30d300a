"""AWS Nitro Enclaves: the attestation document that the Nitro Security Module signs for an enclave.

Formats: AWS, "Nitro Enclaves Attestation Process" (https://github.com/aws/aws-nitro-enclaves-nsm-api,
docs/attestation_process.md): an untagged or tagged COSE_Sign1 (RFC 9052, 4.2) by ES384, whose payload is a map in CBOR.
The enclave's own certificate is in it, and so are its issuers up to AWS's root.

The evidence's raw bytes are the document. It needs no collateral. Measurements: pcr0 (the image), pcr1 (kernel and
boot), pcr2 (application), pcr3 (the parent's role), pcr4 (the parent instance), pcr8 (the image's signer) and what the
enclave extended itself; SHA-384, 48 bytes. A debug enclave has zeros for its image. `user_data` is the report data;
`nonce` and `public_key`, which the enclave chooses as well, are in the identity.

AWS publishes no levels and no revocation lists for these: the status is Unknown, and the enclave's certificate lives
for three hours. The document speaks of the enclave alone; what the Nitro hypervisor is, one takes AWS's word for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, Final, Self

import cbor2
from cryptography import x509
from cryptography.exceptions import InvalidSignature as WrongSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from confide.attest.cbor import decode
from confide.attest.chain import MAX_CERTIFICATES, path_from, read_certificate, verify_chain
from confide.attest.check import skipped
from confide.attest.claims import Claims, TcbStatus
from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence, Family
from confide.attest.roots import Roots
from confide.errors import InvalidSignature, MalformedEvidence, OutsideValidity

MAX_DOCUMENT_BYTES: Final = 1 << 15
"""The module answers with 12 KiB at most."""

PCR_BYTES: Final = 48
MAX_PCRS: Final = 32
MAX_TEXT_BYTES: Final = 1024
"""Of each of user_data, nonce and public_key, and of the module's id."""

CLOCK_SKEW: Final = timedelta(minutes=5)
"""How far behind AWS's the clock of whoever appraises may be."""

_SIGN1: Final = 18
_SIGNATURE_BYTES: Final = 96
_ALGORITHM: Final = 1
_ES384: Final = -35
_LATEST_MILLISECONDS: Final = 1 << 43
_IMAGE: Final = 0
_FETCH: Final = "ask the enclave for another document"


@dataclass(frozen=True)
class Document:
    """An attestation document, taken apart. signed: the bytes under `signature` (r and s, 96 bytes)."""

    signed: bytes
    signature: bytes
    module_id: str
    made: datetime
    pcrs: Mapping[int, bytes]
    certificate: bytes
    authorities: tuple[bytes, ...]
    user_data: bytes
    nonce: bytes
    public_key: bytes

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Read a document; MalformedEvidence if it is not what AWS says."""
        if len(raw) > MAX_DOCUMENT_BYTES:
            raise MalformedEvidence(f"A Nitro document has at most {MAX_DOCUMENT_BYTES} bytes; {_FETCH}.")
        protected, payload, signature = _sign1(decode(raw, "Nitro document", any_keys=True))
        if decode(protected, "Nitro document's header", any_keys=True) != {_ALGORITHM: _ES384}:
            raise MalformedEvidence(f"The Nitro document is not signed by ES384; {_FETCH}.")
        fields = decode(payload, "Nitro document's payload", any_keys=True)
        if not isinstance(fields, Mapping) or fields.get("digest") != "SHA384":
            raise MalformedEvidence(f"The Nitro document's payload is no map of SHA-384 registers; {_FETCH}.")
        return cls(
            signed=cbor2.dumps(["Signature1", protected, b"", payload]),
            signature=signature,
            module_id=_module_id(fields.get("module_id")),
            made=_time(fields.get("timestamp")),
            pcrs=_pcrs(fields.get("pcrs")),
            certificate=_bytes(fields, "certificate"),
            authorities=_authorities(fields.get("cabundle")),
            user_data=_optional(fields, "user_data"),
            nonce=_optional(fields, "nonce"),
            public_key=_optional(fields, "public_key"),
        )


def verify(evidence: Evidence, collateral: Collateral, roots: Roots, now: datetime) -> Claims:
    """What an enclave's document says, after its signature and its chain of certificates were checked at `now`."""
    document = Document.parse(evidence.raw)
    leaf = read_certificate(document.certificate, "Nitro enclave's certificate")
    authorities = [read_certificate(one, "Nitro document's chain") for one in document.authorities]
    until = verify_chain(path_from(leaf, authorities), Family.NITRO, roots, now)
    _check_time(document, leaf, now)
    _check_signature(document, leaf)
    return Claims(
        family=Family.NITRO,
        root=roots.kind,
        report_data=document.user_data,
        debug=not any(document.pcrs[_IMAGE]),
        tcb_status=TcbStatus.UNKNOWN,
        measurements=MappingProxyType({f"pcr{index}": value for index, value in document.pcrs.items()}),
        identity=MappingProxyType(
            {
                "module_id": document.module_id.encode(),
                "nonce": document.nonce,
                "public_key": document.public_key,
                "made": document.made.isoformat().encode(),
            }
        ),
        valid_until=until,
        checks=(
            skipped(
                "revocation",
                "no certificate revoked",
                "AWS has no lists for enclaves' certificates to hold them against; each lives for three hours",
                "AWS, Nitro Enclaves Attestation Process, 3.2.4",
            ),
        ),
        speaks=True,
    )


def _sign1(value: Any) -> tuple[bytes, bytes, bytes]:
    """Protected header, payload and signature of a COSE_Sign1."""
    if isinstance(value, cbor2.CBORTag) and value.tag == _SIGN1:
        value = value.value
    match value:
        case [bytes(protected), Mapping(), bytes(payload), bytes(signature)] if len(signature) == _SIGNATURE_BYTES:
            return protected, payload, signature
    raise MalformedEvidence(f"The Nitro document is no COSE_Sign1 with a signature of P-384; {_FETCH}.")


def _module_id(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT_BYTES:
        raise MalformedEvidence(f"The Nitro document does not name its module; {_FETCH}.")
    return value


def _time(value: object) -> datetime:
    if type(value) is not int or not 0 < value < _LATEST_MILLISECONDS:
        raise MalformedEvidence(f"The Nitro document does not say when it was made; {_FETCH}.")
    return datetime.fromtimestamp(value / 1000, UTC)


def _pcrs(value: object) -> dict[int, bytes]:
    """Registers by their numbers; the image's must be there, whatever else is."""
    if not isinstance(value, Mapping) or len(value) > MAX_PCRS or _IMAGE not in value:
        raise MalformedEvidence(f"The Nitro document has not its registers; {_FETCH}.")
    pcrs = {index: one for index, one in value.items() if type(index) is int and 0 <= index < MAX_PCRS}
    if len(pcrs) != len(value) or not all(isinstance(one, bytes) and len(one) == PCR_BYTES for one in pcrs.values()):
        raise MalformedEvidence(f"A register of the Nitro document is not SHA-384, or has no number; {_FETCH}.")
    return dict(sorted(pcrs.items()))


def _authorities(value: object) -> tuple[bytes, ...]:
    if not isinstance(value, list) or not 0 < len(value) < MAX_CERTIFICATES:
        raise MalformedEvidence(f"The Nitro document has no chain of certificates, or too long a one; {_FETCH}.")
    if not all(isinstance(one, bytes) for one in value):
        raise MalformedEvidence(f"The Nitro document's chain holds something else than certificates; {_FETCH}.")
    return tuple(value)


def _bytes(fields: Mapping[Any, Any], name: str) -> bytes:
    value = fields.get(name)
    if not isinstance(value, bytes):
        raise MalformedEvidence(f"The Nitro document's {name} is missing; {_FETCH}.")
    return value


def _optional(fields: Mapping[Any, Any], name: str) -> bytes:
    """What an enclave may put in, or nothing."""
    if fields.get(name) is None:
        return b""
    value = _bytes(fields, name)
    if len(value) > MAX_TEXT_BYTES:
        raise MalformedEvidence(f"The Nitro document's {name} has more than {MAX_TEXT_BYTES} bytes; {_FETCH}.")
    return value


def _check_time(document: Document, leaf: x509.Certificate, now: datetime) -> None:
    if not leaf.not_valid_before_utc - CLOCK_SKEW <= document.made <= min(leaf.not_valid_after_utc, now + CLOCK_SKEW):
        raise OutsideValidity(
            f"The Nitro document was made at {document.made:%Y-%m-%d %H:%M UTC}, which is after the time of appraisal "
            f"or outside its certificate's; check the clock, or {_FETCH}."
        )


def _check_signature(document: Document, leaf: x509.Certificate) -> None:
    key = leaf.public_key()
    if not (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1)):
        raise MalformedEvidence(f"The Nitro enclave's certificate has no P-384 key; {_FETCH}.")
    half = _SIGNATURE_BYTES // 2
    r, s = (int.from_bytes(number, "big") for number in (document.signature[:half], document.signature[half:]))
    try:
        key.verify(encode_dss_signature(r, s), document.signed, ec.ECDSA(hashes.SHA384()))
    except WrongSignature as error:
        raise InvalidSignature("The Nitro document's signature does not hold; do not trust its sender.") from error

"""NVIDIA GPUs in confidential computing mode (Hopper): a signed SPDM measurement report.

Formats: DMTF DSP0274 (SPDM) 1.1, tables "GET_MEASUREMENTS request message format", "Successful MEASUREMENTS response
message format", "Measurement block format" and "DMTF measurement specification format"; numbers are little-endian.
The opaque data are NVIDIA's, as its attestation SDK reads them: fields of a type and a size (2 bytes each) and data.

The evidence's raw bytes are the request followed by the response; the signature, ECDSA P-384 with SHA-384, is the
last 96 bytes (r and s, big-endian) and covers everything before. Collateral: `chain` (PEM, the GPU's leaf first,
NVIDIA's root last), and `crl` (DER) where the caller has one. Measurements are named block1, block2...

Without NVIDIA's signed reference measurements a report says what runs, not whether that is current: the status is
Unknown, and a policy names the measurements or versions it accepts. The report has no flag for debugging either:
`debug` is False because nothing says True, and only the measurements tell.
"""

from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from types import MappingProxyType
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature as WrongSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from confide.attest.chain import list_date, read_chain, revocation_check, verify_chain
from confide.attest.check import check
from confide.attest.claims import Claims, TcbStatus
from confide.attest.collateral import Collateral
from confide.attest.cursor import Cursor
from confide.attest.evidence import Evidence, Family
from confide.attest.roots import Roots
from confide.errors import InvalidSignature, MalformedEvidence, WrongCollateral

NONCE_BYTES: Final = 32
SIGNATURE_BYTES: Final = 96

_SPDM_1_1: Final = 0x11
_GET_MEASUREMENTS: Final = 0xE0
_MEASUREMENTS: Final = 0x60
_SIGNED: Final = 0x01
_DMTF: Final = 0x01

_DRIVER_VERSION, _VBIOS_VERSION, _FIRMWARE_ID = 3, 6, 20
_OID_FIRMWARE_ID: Final = x509.ObjectIdentifier("2.23.133.5.4.1")
_OID_DEVICE: Final = x509.ObjectIdentifier("1.3.6.1.4.1.412.274.1")


@dataclass(frozen=True)
class Report:
    """What the messages hold. nonce: the requester's. blocks: measurements by index. opaque: fields by type."""

    nonce: bytes
    blocks: dict[int, bytes]
    opaque: dict[int, bytes]

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Read request and response; MalformedEvidence if they are not what SPDM 1.1 says."""
        cursor = Cursor(raw, "GPU report", "little")
        nonce = _request(cursor)
        if cursor.number(1) != _SPDM_1_1 or cursor.number(1) != _MEASUREMENTS:
            raise MalformedEvidence("The GPU report has no SPDM 1.1 MEASUREMENTS response; fetch it again.")
        cursor.take(2)
        count, record = cursor.number(1), cursor.sized(3)
        cursor.take(NONCE_BYTES)
        opaque = cursor.sized(2)
        cursor.take(SIGNATURE_BYTES)
        cursor.finish()
        return cls(nonce, _blocks(record, count), _fields(opaque))


def verify(evidence: Evidence, collateral: Collateral, roots: Roots, now: datetime) -> Claims:
    """What a GPU's report says, after its signature and its chain of certificates were checked at `now`."""
    report = Report.parse(evidence.raw)
    if "chain" not in collateral.documents:
        raise WrongCollateral("The GPU's certificates are missing; give them as `chain`, leaf first.")
    chain = read_chain(collateral.documents["chain"], "chain of the GPU")
    until = verify_chain(chain, Family.NVIDIA, roots, now, collateral.documents.get("crl"))
    _check_signature(evidence.raw, chain[0])
    _check_firmware(report, chain[0])
    return Claims(
        family=Family.NVIDIA,
        root=roots.kind,
        report_data=report.nonce,
        debug=False,
        tcb_status=TcbStatus.UNKNOWN,
        measurements=MappingProxyType({f"block{index}": value for index, value in report.blocks.items()}),
        identity=MappingProxyType(_identity(report, chain[0])),
        valid_until=until,
        issued_at=list_date(collateral.documents.get("crl")),
        checks=(
            check("chain", "certificates up to NVIDIA's root", "valid", ok=True, clause="RFC 5280, 6.1"),
            check("signature", "by the GPU's key", "valid", ok=True, clause="DMTF DSP0274, MEASUREMENTS"),
            revocation_check(chain, collateral.documents.get("crl"), "RFC 5280, 6.3; RFC 6960"),
        ),
    )


def _request(cursor: Cursor) -> bytes:
    """GET_MEASUREMENTS, 37 bytes, asking for a signature: the nonce of it."""
    head = cursor.take(4)
    if head[0] != _SPDM_1_1 or head[1] != _GET_MEASUREMENTS or not head[2] & _SIGNED:
        raise MalformedEvidence("The GPU report begins with no SPDM 1.1 GET_MEASUREMENTS request; send both messages.")
    nonce = cursor.take(NONCE_BYTES)
    cursor.take(1)
    return nonce


def _blocks(record: bytes, count: int) -> dict[int, bytes]:
    """Measurement blocks: index, specification, size, then DMTF's value type and value."""
    cursor = Cursor(record, "GPU's measurement record", "little")
    blocks: dict[int, bytes] = {}
    for _ in range(count):
        index, specification = cursor.number(1), cursor.number(1)
        block = Cursor(cursor.sized(2), "GPU's measurement block", "little")
        block.take(1)
        value = block.sized(2)
        block.finish()
        if index in blocks or specification != _DMTF:
            raise MalformedEvidence("The GPU's measurements are repeated or not DMTF's; fetch the report again.")
        blocks[index] = value
    cursor.finish()
    return blocks


def _fields(opaque: bytes) -> dict[int, bytes]:
    cursor = Cursor(opaque, "GPU's opaque data", "little")
    fields: dict[int, bytes] = {}
    while not cursor.done:
        kind = cursor.number(2)
        if kind in fields:
            raise MalformedEvidence("The GPU's opaque data repeat a field; fetch the report again.")
        fields[kind] = cursor.sized(2)
    return fields


def _check_signature(raw: bytes, leaf: x509.Certificate) -> None:
    key = leaf.public_key()
    if not (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1)):
        raise WrongCollateral("The first certificate of the GPU's chain has no P-384 key; give the chain leaf first.")
    numbers = raw[-SIGNATURE_BYTES:]
    half = SIGNATURE_BYTES // 2
    r, s = int.from_bytes(numbers[:half], "big"), int.from_bytes(numbers[half:], "big")
    try:
        key.verify(encode_dss_signature(r, s), raw[:-SIGNATURE_BYTES], ec.ECDSA(hashes.SHA384()))
    except WrongSignature as error:
        raise InvalidSignature("The GPU report's signature does not hold; do not trust its sender.") from error


def _check_firmware(report: Report, leaf: x509.Certificate) -> None:
    """The firmware that reports must be the one that the leaf was made for: its digest ends the leaf's extension."""
    firmware = report.opaque.get(_FIRMWARE_ID)
    try:
        certified = leaf.extensions.get_extension_for_oid(_OID_FIRMWARE_ID).value.public_bytes()
    except x509.ExtensionNotFound:
        return
    if firmware is None or not certified.endswith(b"\x04\x30" + firmware) or len(firmware) != 48:
        raise InvalidSignature("The GPU's firmware is not the one its certificate was made for; do not trust it.")


def _identity(report: Report, leaf: x509.Certificate) -> dict[str, bytes]:
    """driver_version, such as 550.90.07; vbios_version, such as 96.00.9F.00.01; device, DMTF's name of it.

    device_key: SHA-256 of the leaf's SubjectPublicKeyInfo, whose private key one GPU alone has.
    """
    public = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    identity = {"device_key": sha256(public).digest()}
    if _DRIVER_VERSION in report.opaque:
        identity["driver_version"] = report.opaque[_DRIVER_VERSION].rstrip(b"\0")
    if len(vbios := report.opaque.get(_VBIOS_VERSION, b"")) == 8:
        # The two numbers are little-endian, the most significant first when written.
        written = vbios[3::-1] + vbios[4:5]
        identity["vbios_version"] = ".".join(f"{byte:02X}" for byte in written).encode()
    return identity | _device(leaf)


def _device(leaf: x509.Certificate) -> dict[str, bytes]:
    """SPDM's DMTFOtherName of the leaf, vendor:product:serial, if it has one."""
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return {}
    found = [name for name in names.get_values_for_type(x509.OtherName) if name.type_id == _OID_DEVICE]
    return {"device": found[0].value[2:]} if found else {}

"""NVIDIA GPUs in confidential computing mode (Hopper, Blackwell): a signed SPDM measurement report.

The evidence's raw bytes are the request followed by the response (see `nvidia_report`); the signature, ECDSA P-384 with
SHA-384, is the last 96 bytes before any zeros (r and s, big-endian) and covers everything before. Part: `chain` (PEM,
the GPU's leaf first, NVIDIA's root last), as the GPU hands it out. Collateral: `chain` where the evidence has none,
`driver-rim` and `vbios-rim` (NVIDIA's reference manifests, see `nvidia_rim`), `ocsp` (responses in DER, one behind the
other), `crl` (DER). Measurements are named block1, block2...

Manifests say which measurements NVIDIA's own driver and VBIOS have, not that nothing newer is out: the status stays
Unknown, and a policy names the versions that it accepts. The report has no flag for debugging: `debug` is False
because nothing says True, and only the measurements tell. A GPU signs any nonce that it is handed, so it speaks for no
workload.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature as WrongSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from confide.attest.chain import read_chain, verify_chain
from confide.attest.check import Check, check, skipped
from confide.attest.claims import Claims, TcbStatus
from confide.attest.collateral import Collateral
from confide.attest.der import elements
from confide.attest.evidence import Evidence, Family
from confide.attest.families.nvidia_report import SIGNATURE_BYTES, Report
from confide.attest.revocation import Revocation
from confide.attest.roots import ReferenceRoots, Roots
from confide.errors import InvalidSignature, MalformedEvidence, WrongCollateral

if TYPE_CHECKING:
    from confide.attest.families.nvidia_rim import ReferenceManifest

MODES: Final = {0: "single-gpu", 1: "multi-gpu", 2: "protected-pcie"}
"""NVIDIA's SPT, MPT and PPCIE. In the last the GPUs talk to one another in the clear."""

_OID_DEVICE_ID: Final = x509.ObjectIdentifier("2.23.133.5.4.1")
_OID_TCB_INFO: Final = x509.ObjectIdentifier("2.23.133.5.4.1.1")
_OID_DEVICE: Final = x509.ObjectIdentifier("1.3.6.1.4.1.412.274.1")
_TCB_INFO_FIRMWARE: Final = 0xA6
_RIM: Final = "TCG RIM Information Model 1.01, 3"
_DICE: Final = "TCG DICE Attestation Architecture 1.1, 6.1"


def verify(evidence: Evidence, collateral: Collateral, roots: Roots, now: datetime) -> Claims:
    """What a GPU's report says, after its signature and its chain of certificates were checked at `now`."""
    report = Report.parse(evidence.raw)
    document = evidence.parts.get("chain") or collateral.documents.get("chain")
    if document is None:
        raise WrongCollateral("The GPU's certificates are missing; give them as `chain`, leaf first.")
    chain = read_chain(document, "chain of the GPU")
    ends = [verify_chain(chain, Family.NVIDIA, roots, now)]
    _check_signature(report, chain[0])
    revocation = Revocation.read(collateral.documents)
    # The GPU makes the leaf itself, at every start; nobody publishes that certificate's status.
    checks = [
        check("chain", "certificates up to NVIDIA's root", "valid", ok=True, clause="RFC 5280, 6.1"),
        check("signature", "by the GPU's key", "valid", ok=True, clause="DMTF DSP0274 1.1, MEASUREMENTS"),
        revocation.check(chain, "GPU", now, ends, unlisted=1),
        _firmware(report, chain[0]),
    ]
    checks += _measurements(report, product_of(chain[0]), collateral.documents, roots, revocation, now, ends)
    return Claims(
        family=Family.NVIDIA,
        root=roots.kind,
        report_data=report.nonce,
        debug=False,
        tcb_status=TcbStatus.UNKNOWN,
        measurements=MappingProxyType({f"block{index}": value for index, value in report.blocks.items()}),
        identity=MappingProxyType(_identity(report, chain[0])),
        valid_until=min(ends),
        issued_at=revocation.issued,
        checks=tuple(checks),
        speaks=False,
    )


def _check_signature(report: Report, leaf: x509.Certificate) -> None:
    key = leaf.public_key()
    if not (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1)):
        raise WrongCollateral("The first certificate of the GPU's chain has no P-384 key; give the chain leaf first.")
    half = SIGNATURE_BYTES // 2
    r, s = int.from_bytes(report.signature[:half], "big"), int.from_bytes(report.signature[half:], "big")
    try:
        key.verify(encode_dss_signature(r, s), report.signed, ec.ECDSA(hashes.SHA384()))
    except WrongSignature as error:
        raise InvalidSignature("The GPU report's signature does not hold; do not trust its sender.") from error


# -- firmware ------------------------------------------------------------------------------------------------------


def _firmware(report: Report, leaf: x509.Certificate) -> Check:
    """The firmware that reports must be the one that the leaf was made for, where both say which that is."""
    expected = "the firmware that the GPU's certificate was made for"
    certified = list(_certified_firmware(leaf))
    if report.firmware_id is None or not certified:
        lacks = "certificate" if report.firmware_id is not None else "report"
        return skipped("nvidia-firmware", expected, f"the GPU's {lacks} does not name its firmware", _DICE)
    if any(one != report.firmware_id for one in certified):
        raise InvalidSignature("The GPU's firmware is not the one its certificate was made for; do not trust it.")
    return check("nvidia-firmware", expected, report.firmware_id.hex(), ok=True, clause=_DICE)


def _certified_firmware(leaf: x509.Certificate) -> Iterator[bytes]:
    """The digest of it in each extension that has one: Hopper's CompositeDeviceID, Blackwell's DiceTcbInfo.

    CompositeDeviceID ::= SEQUENCE { version, SubjectPublicKeyInfo, FWID }, of DICE's early drafts; DiceTcbInfo ::=
    SEQUENCE { ..., fwids [6] IMPLICIT SEQUENCE OF FWID, ... }; FWID ::= SEQUENCE { hashAlg, digest OCTET STRING }. Of
    several the first is the firmware that reports.
    """
    for extension in leaf.extensions:
        if extension.oid not in (_OID_DEVICE_ID, _OID_TCB_INFO):
            continue
        try:
            fields = elements(elements(extension.value.public_bytes())[0].content)
            if extension.oid == _OID_DEVICE_ID:
                identifier = fields[2].content
            else:
                identifier = elements(next(one.content for one in fields if one.tag == _TCB_INFO_FIRMWARE))[0].content
            yield elements(identifier)[1].content
        except (MalformedEvidence, LookupError, StopIteration) as error:
            problem = "The GPU's certificate names its firmware in no known way; fetch it again."
            raise MalformedEvidence(problem) from error


# -- reference measurements ----------------------------------------------------------------------------------------


def _measurements(
    report: Report,
    product: str,
    documents: Mapping[str, bytes],
    roots: Roots,
    revocation: Revocation,
    now: datetime,
    ends: list[datetime],
) -> Iterator[Check]:
    """That the report has the measurements of NVIDIA's manifests, and the status of who signed those."""
    code, expected = "nvidia-measurements", "those of NVIDIA's manifests for this driver and VBIOS"
    missing = [name for name in ("driver-rim", "vbios-rim") if name not in documents]
    if missing:
        because = f"no reference manifest was given as {' and '.join(missing)}"
        yield skipped(code, expected, because, _RIM)
        return
    references: dict[int, tuple[bytes, ...]] = {}
    for name, version in (("driver", report.driver_version), ("VBIOS", report.vbios_version)):
        manifest = _manifest(documents[f"{name.lower()}-rim"], _Wanted(name, version, product), roots, now, ends)
        yield revocation.check(manifest.chain, f"{name} manifest's signer", now, ends)
        if references.keys() & manifest.measurements.keys():
            raise WrongCollateral("Both manifests of the GPU set the same measurement; fetch them from NVIDIA again.")
        references |= manifest.measurements
    from confide.attest.families.nvidia_rim import NVDEC_INDEX

    if report.nvdec_is_off:
        references.pop(NVDEC_INDEX + 1, None)
    others = [index for index, allowed in sorted(references.items()) if report.blocks.get(index) not in allowed]
    seen = f"all {len(references)}" if not others else f"others: {', '.join(f'block{index}' for index in others)}"
    yield check(code, expected, seen, not others, _RIM)


@dataclass(frozen=True)
class _Wanted:
    """What a manifest has to be for. name: driver or VBIOS."""

    name: str
    version: str
    product: str


def _manifest(
    document: bytes, wanted: _Wanted, roots: Roots, now: datetime, ends: list[datetime]
) -> "ReferenceManifest":
    # lxml and signxml take a tenth of a second to import, and most evidence is of other families.
    from confide.attest.families.nvidia_rim import ReferenceManifest

    manifest = ReferenceManifest.read(document, f"GPU's {wanted.name} manifest")
    ends.append(verify_chain(manifest.chain, Family.NVIDIA, ReferenceRoots(roots), now))
    if not wanted.version or manifest.version.upper() != wanted.version.upper() or manifest.product != wanted.product:
        raise WrongCollateral(
            f"The manifest is for {manifest.product} {wanted.name} {manifest.version!r}, and this is a "
            f"{wanted.product} with {wanted.version!r}; fetch the one for that version."
        )
    return manifest


# -- identity ------------------------------------------------------------------------------------------------------


def _identity(report: Report, leaf: x509.Certificate) -> dict[str, bytes]:
    """driver_version, such as 550.90.07; vbios_version, such as 96.00.9F.00.01; device, DMTF's name of it; mode.

    device_key: SHA-256 of the leaf's SubjectPublicKeyInfo, whose private key one GPU alone has.
    """
    public = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    texts = {
        "driver_version": report.driver_version,
        "vbios_version": report.vbios_version,
        "device": _device(leaf),
        "mode": MODES.get(report.feature, ""),
    }
    return {"device_key": sha256(public).digest()} | {name: text.encode() for name, text in texts.items() if text}


def _device(leaf: x509.Certificate) -> str:
    """SPDM's DMTFOtherName of the leaf, vendor:product:serial; empty if it has none that can be read."""
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ""
    found = [name for name in names.get_values_for_type(x509.OtherName) if name.type_id == _OID_DEVICE]
    text = found[0].value[2:].decode("ascii", "replace") if found else ""
    return text if text.isprintable() and text.isascii() else ""


def product_of(leaf: x509.Certificate) -> str:
    """What kind of GPU a leaf is for, such as GH100; empty where it does not say."""
    parts = _device(leaf).split(":")
    return parts[1] if len(parts) == 3 else ""

"""AMD SEV-SNP attestation reports, versions 2 and 3, signed by a chip's VCEK or a provider's VLEK.

Formats: AMD, "SEV Secure Nested Paging Firmware ABI Specification" (document 56860), tables ATTESTATION_REPORT,
TCB_VERSION and the policy of a guest; "Versioned Chip Endorsement Key (VCEK) Certificate and KDS Interface
Specification" (document 57230), table of X.509 extensions.

The evidence's raw bytes are the report, 1184 of them. Collateral: `vcek` or `vlek` (DER), `chain` (PEM: ASK or ASVK,
then ARK), and `crl` (DER, the list of the ARK) where the caller has it. Products: Milan under AMD's pinned root, and
whatever has Milan's layout of the TCB version (Genoa has) under simulated ones; Turin's layout differs and is refused.

AMD publishes no signed list of current TCB levels, so the status is Unknown, and a policy names the least versions
that it accepts: `bootloader`, `tee`, `snp`, `microcode` of the TCB that the report and its certificate agree on.
"""

import struct
from dataclasses import dataclass, replace
from datetime import datetime
from types import MappingProxyType
from typing import Final, Literal, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature as WrongSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from confide.attest.chain import list_date, read_certificate, read_chain, revocation_check, verify_chain
from confide.attest.check import check
from confide.attest.claims import Claims, TcbStatus
from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence, Family
from confide.attest.roots import Roots
from confide.errors import InvalidSignature, MalformedEvidence, WrongCollateral

REPORT_BYTES: Final = 1184
SIGNED_BYTES: Final = 0x2A0
VERSIONS: Final = (2, 3)

_LAYOUT: Final = struct.Struct(
    "<IIQ16s16sII8sQI4x"  # 0x000: version ... flags
    "64s48s32s48s48s32s32s"  # 0x050: report_data ... report_id_ma
    "8sBBB21x64s"  # 0x180: reported_tcb, family, model and stepping (version 3), chip_id
    "8sBBBxBBBx8s168x"  # 0x1e0: committed_tcb, current and committed firmware, launch_tcb
)
_SIGNATURE_NUMBER: Final = 72
_ECDSA_P384_SHA384: Final = 1
_FAMILY_TURIN: Final = 0x1A
_POLICY_DEBUG: Final = 1 << 19

_OID: Final = "1.3.6.1.4.1.3704.1"
_OID_CHIP_ID: Final = f"{_OID}.4"
_OID_PROVIDER: Final = f"{_OID}.5"
_COMPONENTS: Final = MappingProxyType({"bootloader": (0, "1"), "tee": (1, "2"), "snp": (6, "3"), "microcode": (7, "8")})
"""Where each component stands: its byte of TCB_VERSION (56860), and the last arc of 1.3.6.1.4.1.3704.1.3 (57230)."""

_Kind = Literal["vcek", "vlek"]
_SIGNERS: Final[MappingProxyType[int, _Kind]] = MappingProxyType({0: "vcek", 1: "vlek"})


@dataclass(frozen=True)
class Report:
    """The fields of ATTESTATION_REPORT, in the specification's order and names; reserved ones are left out."""

    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    signature_algorithm: int
    current_tcb: bytes
    platform_info: int
    flags: int
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: bytes
    cpu_family: int
    cpu_model: int
    cpu_stepping: int
    chip_id: bytes
    committed_tcb: bytes
    current_build: int
    current_minor: int
    current_major: int
    committed_build: int
    committed_minor: int
    committed_major: int
    launch_tcb: bytes

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Read a report of 1184 bytes; MalformedEvidence if it is none that is supported."""
        if len(raw) != REPORT_BYTES:
            raise MalformedEvidence(f"An SEV-SNP report has {REPORT_BYTES} bytes, not {len(raw)}; fetch it again.")
        report = cls(*_LAYOUT.unpack_from(raw))
        if report.version not in VERSIONS or report.signature_algorithm != _ECDSA_P384_SHA384:
            raise MalformedEvidence(
                f"SEV-SNP report version {report.version} with signature algorithm {report.signature_algorithm} is "
                "not supported; ask for version 2 or 3, signed with ECDSA P-384."
            )
        if report.version > VERSIONS[0] and report.cpu_family >= _FAMILY_TURIN:
            raise MalformedEvidence("This SEV-SNP report is of Turin or later, which is not supported; use Milan.")
        return report

    @property
    def signer(self) -> _Kind:
        """Which kind of key signed: SIGNING_KEY, bits 4:2 of the flags."""
        kind = _SIGNERS.get(self.flags >> 2 & 7)
        if kind is None:
            raise MalformedEvidence("This SEV-SNP report is not signed; ask the firmware for a signed one.")
        return kind


def verify(evidence: Evidence, collateral: Collateral, roots: Roots, now: datetime) -> Claims:
    """What a SEV-SNP report says, after its signature, its certificates and their match were checked at `now`."""
    report = Report.parse(evidence.raw)
    documents = collateral.documents
    kind = report.signer
    if kind not in documents or "chain" not in documents:
        raise WrongCollateral(f"The report is signed by a {kind.upper()}; give its certificate and its chain.")
    leaf = read_certificate(documents[kind], kind.upper())
    chain = (leaf, *read_chain(documents["chain"], "chain of AMD certificates"))
    until = verify_chain(chain, Family.SNP, roots, now, documents.get("crl"))
    _check_platform(report, leaf, kind)
    _check_signature(evidence.raw, leaf)
    checks = (
        check("chain", "certificates up to AMD's root", "valid", ok=True, clause="AMD 57230; RFC 5280, 6.1"),
        check("signature", f"by the {kind.upper()}", "valid", ok=True, clause="AMD 56860, ATTESTATION_REPORT"),
        revocation_check(chain, documents.get("crl"), "AMD 57230, CRL; RFC 5280, 6.3"),
    )
    return replace(_claims(report, leaf, kind, roots, until), checks=checks, issued_at=list_date(documents.get("crl")))


def _check_signature(raw: bytes, leaf: x509.Certificate) -> None:
    """ECDSA P-384 with SHA-384 over the first 0x2a0 bytes; r and s follow, 72 bytes each, little-endian."""
    key = leaf.public_key()
    if not (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1)):
        raise WrongCollateral("The certificate that should have signed the report has no P-384 key; fetch AMD's.")
    end = SIGNED_BYTES + 2 * _SIGNATURE_NUMBER
    r = int.from_bytes(raw[SIGNED_BYTES : SIGNED_BYTES + _SIGNATURE_NUMBER], "little")
    s = int.from_bytes(raw[SIGNED_BYTES + _SIGNATURE_NUMBER : end], "little")
    if any(raw[end:]):
        raise MalformedEvidence("The bytes after the SEV-SNP report's signature are not zero; fetch the report again.")
    try:
        key.verify(encode_dss_signature(r, s), raw[:SIGNED_BYTES], ec.ECDSA(hashes.SHA384()))
    except WrongSignature as error:
        raise InvalidSignature("The SEV-SNP report's signature does not hold; do not trust its sender.") from error


def _check_platform(report: Report, leaf: x509.Certificate, kind: _Kind) -> None:
    """WrongCollateral unless the certificate was issued for this kind of key, this TCB and (VCEK) this chip."""
    names = [name.value for name in leaf.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
    certified = {name: _certified(leaf, arc) for name, (_, arc) in _COMPONENTS.items()}
    matches = names == [f"SEV-{kind.upper()}"] and certified == _components(report.reported_tcb)
    if kind == "vcek":
        matches = matches and _extension(leaf, _OID_CHIP_ID) == report.chip_id
    if not matches:
        raise WrongCollateral(
            f"The {kind.upper()} certificate is for another chip or another TCB than the report's; "
            "fetch the one for the report's chip_id and reported_tcb."
        )


def _components(tcb: bytes) -> dict[str, int]:
    return {name: tcb[at] for name, (at, _) in _COMPONENTS.items()}


def _extension(leaf: x509.Certificate, oid: str) -> bytes:
    try:
        value = leaf.extensions.get_extension_for_oid(x509.ObjectIdentifier(oid)).value
    except x509.ExtensionNotFound as error:
        raise WrongCollateral(f"The certificate lacks AMD's extension {oid}; fetch a VCEK or VLEK.") from error
    return value.public_bytes()


def _certified(leaf: x509.Certificate, arc: str) -> int:
    """One TCB component of the certificate: a DER INTEGER of 0 to 255, so one or two bytes of content."""
    encoded = _extension(leaf, f"{_OID}.3.{arc}")
    if encoded[:-1] not in (b"\x02\x01", b"\x02\x02\0"):
        raise WrongCollateral("The certificate's TCB versions cannot be parsed; fetch a VCEK or VLEK from AMD.")
    return encoded[-1]


def _claims(report: Report, leaf: x509.Certificate, kind: _Kind, roots: Roots, until: datetime) -> Claims:
    identity = {
        "chip_id": report.chip_id,
        "report_id": report.report_id,
        "report_id_ma": report.report_id_ma,
        "family_id": report.family_id,
        "image_id": report.image_id,
        "signer": kind.encode(),
        "vmpl": report.vmpl.to_bytes(4, "big"),
        "policy": report.policy.to_bytes(8, "big"),
        "platform_info": report.platform_info.to_bytes(8, "big"),
        "reported_tcb": report.reported_tcb,
        "committed_tcb": report.committed_tcb,
    }
    if kind == "vlek":
        identity["provider"] = _extension(leaf, _OID_PROVIDER)[2:]
    return Claims(
        family=Family.SNP,
        root=roots.kind,
        report_data=report.report_data,
        speaks=True,
        debug=bool(report.policy & _POLICY_DEBUG),
        # AMD certifies versions, these very ones (`_check_platform`), and has no list of which are current.
        tcb_status=TcbStatus.UNKNOWN,
        measurements=MappingProxyType(
            {
                "measurement": report.measurement,
                "host_data": report.host_data,
                "id_key_digest": report.id_key_digest,
                "author_key_digest": report.author_key_digest,
            }
        ),
        identity=MappingProxyType(identity),
        valid_until=until,
        versions=MappingProxyType(_versions(report)),
    )


def _versions(report: Report) -> dict[str, int]:
    firmware = report.committed_major << 16 | report.committed_minor << 8 | report.committed_build
    return _components(report.reported_tcb) | {
        "guest_svn": report.guest_svn,
        "firmware": firmware,
    }

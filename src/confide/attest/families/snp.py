"""AMD SEV-SNP attestation reports, versions 2 to 5, signed by a chip's VCEK or a provider's VLEK.

Formats: AMD, "SEV Secure Nested Paging Firmware ABI Specification" (document 56860), tables ATTESTATION_REPORT,
TCB_VERSION and the policy of a guest; "Versioned Chip Endorsement Key (VCEK) Certificate and KDS Interface
Specification" (document 57230), tables of X.509 extensions. All versions have one layout: 3 added CPUID's family,
model and stepping, and 5 the mitigation vectors, where the earlier ones have reserved bytes.

The evidence's raw bytes are the report, 1184 of them. Collateral: `vcek` or `vlek` (DER), `chain` (PEM, in any order:
ASK or ASVK, and ARK), and `crl` (DER, the list of the ARK) where the caller has it. Products: Milan, Genoa (with
Bergamo and Siena) and Turin, each under AMD's root for it. The certificate, its authorities and the report's
processor must be of one product, because the product says how the TCB version is to be read.

AMD publishes no signed list of current TCB levels, so a policy names the least versions that it accepts: `fmc` (Turin
alone), `bootloader`, `tee`, `snp`, `microcode` of the TCB that the report and its certificate agree on.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from types import MappingProxyType
from typing import Final, Literal, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature as WrongSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from confide.attest.amd import COMPONENTS, HARDWARE_ID_BYTES, Product, product_named, product_of
from confide.attest.chain import list_date, path_from, read_certificate, read_chain, revocation_check, verify_chain
from confide.attest.check import check
from confide.attest.claims import Claims, TcbStatus
from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence, Family
from confide.attest.roots import Roots
from confide.errors import InvalidSignature, MalformedEvidence, WrongCollateral

REPORT_BYTES: Final = 1184
SIGNED_BYTES: Final = 0x2A0
VERSIONS: Final = (2, 3, 4, 5)

_LAYOUT: Final = struct.Struct(
    "<IIQ16s16sII8sQI4x"  # 0x000: version ... flags
    "64s48s32s48s48s32s32s"  # 0x050: report_data ... report_id_ma
    "8sBBB21x64s"  # 0x180: reported_tcb, family, model and stepping (version 3), chip_id
    "8sBBBxBBBx8sQQ152x"  # 0x1e0: committed_tcb, current and committed firmware, launch_tcb, mitigations (version 5)
)
_SIGNATURE_NUMBER: Final = 72
_ECDSA_P384_SHA384: Final = 1
_WITH_CPUID: Final = 3
_WITH_MITIGATIONS: Final = 5
_POLICY_DEBUG: Final = 1 << 19
_MASKED_KEY: Final = 1 << 1

_OID: Final = "1.3.6.1.4.1.3704.1"
_OID_PRODUCT: Final = f"{_OID}.2"
_OID_HARDWARE_ID: Final = f"{_OID}.4"
_OID_PROVIDER: Final = f"{_OID}.5"
_IA5_STRING: Final = 0x16
_OCTET_STRING: Final = 0x04

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
    launch_mitigations: int
    current_mitigations: int

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Read a report of 1184 bytes; MalformedEvidence if it is none that is supported."""
        if len(raw) != REPORT_BYTES:
            raise MalformedEvidence(f"An SEV-SNP report has {REPORT_BYTES} bytes, not {len(raw)}; fetch it again.")
        report = cls(*_LAYOUT.unpack_from(raw))
        if report.version not in VERSIONS or report.signature_algorithm != _ECDSA_P384_SHA384:
            raise MalformedEvidence(
                f"SEV-SNP report version {report.version} with signature algorithm {report.signature_algorithm} is "
                "not supported; ask for version 2 to 5, signed with ECDSA P-384."
            )
        if report.version >= _WITH_CPUID and report.product is None:
            raise MalformedEvidence(
                f"This SEV-SNP report is of a processor of family {report.cpu_family:#x}, model "
                f"{report.cpu_model:#x}, which is not supported; use Milan, Genoa or Turin, or update Confide."
            )
        return report

    @property
    def product(self) -> Product | None:
        """The product line, by the processor that the report names; reports of version 2 name none."""
        return product_of(self.cpu_family, self.cpu_model) if self.version >= _WITH_CPUID else None

    @property
    def signer(self) -> _Kind:
        """Which kind of key signed: SIGNING_KEY, bits 4:2 of the flags."""
        kind = _SIGNERS.get(self.flags >> 2 & 7)
        if self.flags & _MASKED_KEY:
            raise MalformedEvidence(
                "This SEV-SNP report is not signed, because the host masks the chip's key (MASK_CHIP_KEY); ask the "
                "operator to switch that off, or for a VLEK."
            )
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
    chain = path_from(leaf, read_chain(documents["chain"], "chain of AMD certificates"))
    until = verify_chain(chain, Family.SNP, roots, now, documents.get("crl"))
    product = _check_product(report, chain, kind)
    _check_platform(report, product, leaf, kind)
    _check_signature(evidence.raw, leaf)
    checks = (
        check("chain", "certificates up to AMD's root", "valid", ok=True, clause="AMD 57230; RFC 5280, 6.1"),
        check("signature", f"by the {kind.upper()}", "valid", ok=True, clause="AMD 56860, ATTESTATION_REPORT"),
        revocation_check(chain, documents.get("crl"), "AMD 57230, CRL; RFC 5280, 6.3"),
    )
    return replace(
        _claims(report, product, leaf, kind, roots, until), checks=checks, issued_at=list_date(documents.get("crl"))
    )


def _check_product(report: Report, chain: Sequence[x509.Certificate], kind: _Kind) -> Product:
    """The product that certificate, authorities and report agree on; WrongCollateral if they do not."""
    leaf, *authorities = chain
    product = product_named(_text(_extension(leaf, _OID_PRODUCT)))
    if product is None:
        raise WrongCollateral("The certificate is for a product of AMD's that is not supported; use another machine.")
    signer = f"SEV-{product}" if kind == "vcek" else f"SEV-VLEK-{product}"
    if [_common_name(one) for one in authorities] != [signer, f"ARK-{product}"]:
        raise WrongCollateral(
            f"The {kind.upper()} is for {product}, and the authorities beside it are not {product}'s; "
            f"fetch AMD's chain for {product}."
        )
    if report.product not in (None, product):
        raise WrongCollateral(
            f"The {kind.upper()} is for {product}, and the report is by a {report.product}; fetch the one for that."
        )
    return product


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


def _check_platform(report: Report, product: Product, leaf: x509.Certificate, kind: _Kind) -> None:
    """WrongCollateral unless the certificate was issued for this kind of key, this TCB and (VCEK) this chip."""
    certified = {name: _certified(leaf, component.arc) for name, component in COMPONENTS[product].items()}
    matches = _common_name(leaf) == f"SEV-{kind.upper()}" and certified == _components(report.reported_tcb, product)
    if kind == "vcek":
        size = HARDWARE_ID_BYTES[product]
        matches = matches and _hardware_id(leaf, size) == report.chip_id[:size] and not any(report.chip_id[size:])
    if not matches:
        raise WrongCollateral(
            f"The {kind.upper()} certificate is for another chip or another TCB than the report's; "
            "fetch the one for the report's chip_id and reported_tcb."
        )


def _components(tcb: bytes, product: Product) -> dict[str, int]:
    return {name: tcb[component.at] for name, component in COMPONENTS[product].items()}


def _common_name(certificate: x509.Certificate) -> str:
    """The one common name of the subject, and otherwise nothing."""
    names = [str(name.value) for name in certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
    return names[0] if len(names) == 1 else ""


def _extension(leaf: x509.Certificate, oid: str) -> bytes:
    try:
        value = leaf.extensions.get_extension_for_oid(x509.ObjectIdentifier(oid)).value
    except x509.ExtensionNotFound as error:
        raise WrongCollateral(f"The certificate lacks AMD's extension {oid}; fetch a VCEK or VLEK.") from error
    return value.public_bytes()


def _text(encoded: bytes) -> str:
    """A DER IA5String of less than 128 bytes; WrongCollateral if it is none."""
    if len(encoded) < 2 or encoded[0] != _IA5_STRING or encoded[1] != len(encoded) - 2 or encoded[1] >= 0x80:
        raise WrongCollateral("A text in AMD's certificate cannot be parsed; fetch a VCEK or VLEK from AMD.")
    return encoded[2:].decode("ascii", "replace")


def _hardware_id(leaf: x509.Certificate, size: int) -> bytes:
    """The chip that a VCEK is for: the bare bytes, or, as AMD's later ones have it, a DER OCTET STRING of them."""
    encoded = _extension(leaf, _OID_HARDWARE_ID)
    wrapped = len(encoded) == size + 2 and encoded[:2] == bytes((_OCTET_STRING, size))
    return encoded[2:] if wrapped else encoded


def _certified(leaf: x509.Certificate, arc: int) -> int:
    """One TCB component of the certificate: a DER INTEGER of 0 to 255, so one or two bytes of content."""
    encoded = _extension(leaf, f"{_OID}.3.{arc}")
    if encoded[:-1] not in (b"\x02\x01", b"\x02\x02\0"):
        raise WrongCollateral("The certificate's TCB versions cannot be parsed; fetch a VCEK or VLEK from AMD.")
    return encoded[-1]


def _claims(
    report: Report, product: Product, leaf: x509.Certificate, kind: _Kind, roots: Roots, until: datetime
) -> Claims:
    identity = {
        "product": product.encode(),
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
        "current_tcb": report.current_tcb,
        "launch_tcb": report.launch_tcb,
    }
    if report.version >= _WITH_MITIGATIONS:
        identity["launch_mit_vector"] = report.launch_mitigations.to_bytes(8, "big")
        identity["current_mit_vector"] = report.current_mitigations.to_bytes(8, "big")
    if kind == "vlek":
        identity["provider"] = _text(_extension(leaf, _OID_PROVIDER)).encode()
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
        versions=MappingProxyType(_versions(report, product)),
    )


def _versions(report: Report, product: Product) -> dict[str, int]:
    firmware = report.committed_major << 16 | report.committed_minor << 8 | report.committed_build
    return _components(report.reported_tcb, product) | {
        "guest_svn": report.guest_svn,
        "firmware": firmware,
    }

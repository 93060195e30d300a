"""What to ask each vendor for, and how its answers become `Collateral`.

Intel: "Provisioning Certification Service API" version 4, which also caches (PCCS) speak. Issuer chains come as
URL-encoded PEM in headers. The signatures cover the very bytes of `tcbInfo` and `enclaveIdentity`, so these are cut out
of their answers and never encoded again. The result is dcap-qvl's QuoteCollateralV3 in JSON.

AMD: document 57230, "VCEK Certificate and KDS Interface Specification"; see `amd` for its products. A VLEK is not
served to the public: it comes with the report, as the host's certificate table (document 56421, "GHCB
Standardization", 4.1.8.1: entries of GUID, offset and length, ended by an entry of zeros).
"""

import struct
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final, Literal, TypeVar
from urllib.parse import unquote

import msgspec

from confide.attest.amd import CHIP_ID_BYTES, COMPONENTS, HARDWARE_ID_BYTES, TCB_BYTES, Product
from confide.attest.chain import read_certificate, read_chain, read_crl
from confide.attest.collateral import Collateral, Provenance
from confide.attest.collateral_cache import CollateralCache, Document, Ends, Response
from confide.attest.evidence import Family
from confide.errors import MalformedEvidence

INTEL_PCS: Final = "https://api.trustedservices.intel.com"
INTEL_ROOT_CRL: Final = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
AMD_KDS: Final = "https://kdsintf.amd.com"

T = TypeVar("T")
_TABLE_NAMES: Final[Mapping[uuid.UUID, str]] = {
    uuid.UUID("63da758d-e664-4564-adc5-f4b93be8accd"): "vcek",
    uuid.UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1"): "vlek",
    uuid.UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782"): "ask",
    uuid.UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae"): "ark",
    uuid.UUID("92f81bc3-5811-4d3d-97ff-d19f88dc67ea"): "crl",
}
_TABLE_ENTRY: Final = struct.Struct("<16sII")
_MAX_TABLE_ENTRIES: Final = 64


@dataclass(frozen=True)
class Gathered:
    """Collateral, and the addresses whose answers are stale, empty unless the caller allowed that."""

    collateral: Collateral
    stale: tuple[str, ...] = ()


@dataclass(frozen=True)
class IntelPlatform:
    """What a quote's PCK certificate says: FMSPC (12 hexadecimal digits) and which CA issued it; SGX or TDX."""

    fmspc: str
    ca: Literal["processor", "platform"]
    family: Family

    def __post_init__(self) -> None:
        if len(self.fmspc) != 12 or set(self.fmspc) - set("0123456789abcdefABCDEF"):
            raise MalformedEvidence(f"{self.fmspc!r} is no FMSPC; take the 12 digits of the quote's certificate.")
        if self.family not in (Family.SGX, Family.TDX) or self.ca not in ("processor", "platform"):
            raise MalformedEvidence("Intel serves SGX and TDX platforms of the CAs processor and platform only.")


@dataclass(frozen=True)
class AmdPlatform:
    """What an SNP report says: chip id (64 bytes) and reported TCB (8 bytes, as in the report); the product's name."""

    product: Product
    chip_id: bytes
    tcb: bytes

    def __post_init__(self) -> None:
        if len(self.tcb) != TCB_BYTES or len(self.chip_id) != CHIP_ID_BYTES:
            raise MalformedEvidence("An SNP platform is a product of AMD's, 64 bytes of chip id and 8 bytes of TCB.")

    @property
    def vcek_path(self) -> str:
        """The address of this chip's certificate at this TCB, below the service's own."""
        chip = self.chip_id[: HARDWARE_ID_BYTES[self.product]].hex()
        components = COMPONENTS[self.product].values()
        levels = "&".join(f"{component.kds}={self.tcb[component.at]:02d}" for component in components)
        return f"/vcek/v1/{self.product}/{chip}?{levels}"


def intel_collateral(
    cache: CollateralCache,
    platform: IntelPlatform,
    *,
    service: str = INTEL_PCS,
    root_crl: str = INTEL_ROOT_CRL,
    allow_stale: bool = False,
) -> Gathered:
    """The document `dcap` for one platform. root_crl: for a PCCS, its .../sgx/certification/v4/rootcacrl."""
    tee = platform.family.value

    def get(url: str, ends: Ends) -> Document:
        return cache.get(url, ends, allow_stale=allow_stale)

    crl = get(f"{service}/sgx/certification/v4/pckcrl?ca={platform.ca}&encoding=der", _crl_ends)
    root = get(root_crl, _crl_ends)
    tcb = get(f"{service}/{tee}/certification/v4/tcb?fmspc={platform.fmspc.upper()}", _signed_ends("tcbInfo"))
    identity = get(f"{service}/{tee}/certification/v4/qe/identity", _signed_ends("enclaveIdentity"))
    tcb_info, tcb_signature = signed_text(tcb.response.body, "tcbInfo")
    qe_identity, qe_signature = signed_text(identity.response.body, "enclaveIdentity")
    dcap = {
        "pck_crl_issuer_chain": _chain(crl.response, "sgx-pck-crl-issuer-chain"),
        "root_ca_crl": _der(root.response.body).hex(),
        "pck_crl": _der(crl.response.body).hex(),
        "tcb_info_issuer_chain": _chain(tcb.response, "tcb-info-issuer-chain"),
        "tcb_info": tcb_info,
        "tcb_info_signature": tcb_signature,
        "qe_identity_issuer_chain": _chain(identity.response, "sgx-enclave-identity-issuer-chain"),
        "qe_identity": qe_identity,
        "qe_identity_signature": qe_signature,
    }
    return _gathered({"dcap": msgspec.json.encode(dcap)}, crl, root, tcb, identity)


def amd_collateral(
    cache: CollateralCache,
    platform: AmdPlatform,
    *,
    vlek: bytes | None = None,
    service: str = AMD_KDS,
    allow_stale: bool = False,
) -> Gathered:
    """The documents `vcek` (or the `vlek` given, in DER), `chain` and `crl` for one chip."""
    kind = "vcek" if vlek is None else "vlek"
    chain = cache.get(f"{service}/{kind}/v1/{platform.product}/cert_chain", _chain_ends, allow_stale=allow_stale)
    crl = cache.get(f"{service}/{kind}/v1/{platform.product}/crl", _crl_ends, allow_stale=allow_stale)
    documents = {"chain": chain.response.body, "crl": _der(crl.response.body)}
    if vlek is not None:
        return _gathered(documents | {"vlek": vlek}, chain, crl)
    leaf = cache.get(service + platform.vcek_path, _leaf_ends, allow_stale=allow_stale)
    return _gathered(documents | {"vcek": leaf.response.body}, chain, crl, leaf)


def certificate_table(auxblob: bytes) -> dict[str, bytes]:
    """The host's certificates by name (vcek, vlek, ask, ark, crl), from an SNP report's auxblob; others left out.

    Hosts have written the GUIDs in either byte order, so both are known here.
    """
    found: dict[str, bytes] = {}
    for index in range(_MAX_TABLE_ENTRIES):
        entry = auxblob[index * _TABLE_ENTRY.size : (index + 1) * _TABLE_ENTRY.size]
        if len(entry) < _TABLE_ENTRY.size:
            break
        guid, offset, length = _TABLE_ENTRY.unpack(entry)
        if not any(guid):
            return found
        if offset + length > len(auxblob):
            break
        name = _TABLE_NAMES.get(uuid.UUID(bytes=guid)) or _TABLE_NAMES.get(uuid.UUID(bytes_le=guid))
        if name:
            found[name] = auxblob[offset : offset + length]
    raise MalformedEvidence("The host's certificate table is cut off; fetch the certificates from AMD instead.")


class _Dated(msgspec.Struct):
    next_update: Annotated[datetime, msgspec.Meta(tz=True)] = msgspec.field(name="nextUpdate")


def _gathered(documents: dict[str, bytes], *answers: Document) -> Gathered:
    provenance = Provenance(fetched=min(answer.fetched for answer in answers))
    return Gathered(Collateral(documents, provenance=provenance), tuple(one.url for one in answers if one.stale))


def signed_text(answer: bytes, name: str) -> tuple[str, str]:
    """Of Intel's answer, the exact text under this name, which was signed, and the signature in hexadecimal."""
    try:
        parts = msgspec.json.decode(answer, type=dict[str, msgspec.Raw])
        return bytes(parts[name]).decode(), msgspec.json.decode(parts["signature"], type=str)
    except (msgspec.MsgspecError, KeyError, UnicodeDecodeError, RecursionError) as error:
        raise _unusable(f"no signed {name}") from error


def _signed_ends(name: str) -> Ends:
    def ends(response: Response) -> datetime:
        text, _ = signed_text(response.body, name)
        try:
            return msgspec.json.decode(text, type=_Dated).next_update
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise _unusable(f"no nextUpdate in its {name}") from error

    return ends


def _crl_ends(response: Response) -> datetime | None:
    return read_crl(_der(response.body), "vendor's revocation list").next_update_utc


def _leaf_ends(response: Response) -> datetime:
    return read_certificate(response.body, "vendor's certificate").not_valid_after_utc


def _chain_ends(response: Response) -> datetime:
    chain = read_chain(response.body, "vendor's chain of certificates")
    return min(certificate.not_valid_after_utc for certificate in chain)


def _der(body: bytes) -> bytes:
    """DER, which a PCCS writes in hexadecimal; that begins with the digit 3, never with the byte 0x30."""
    if body.startswith(b"\x30"):
        return body
    try:
        return bytes.fromhex(body.decode("ascii"))
    except ValueError:
        return body


def _chain(response: Response, header: str) -> str:
    text = unquote(response.headers.get(header, ""))
    if "-----BEGIN CERTIFICATE-----" not in text:
        raise _unusable(f"no chain of certificates in the header {header}")
    return text


def _unusable(missing: str) -> MalformedEvidence:
    return MalformedEvidence(f"The vendor's answer has {missing}; check the service's address, or try again later.")

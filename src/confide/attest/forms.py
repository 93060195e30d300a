"""Evidence and collateral in the JSON that tools write: what is in it, in the form that families take.

A form is told by its keys. Bytes come as hexadecimal, as base64 of either alphabet, or as lists of numbers. Nothing is
believed here, and what does not fit is MalformedEvidence.

Sources: the Confidential Containers' Trustee, https://github.com/confidential-containers/trustee, deps/verifier (`tdx`,
`sgx`, `snp`, `tpm`, `az_snp_vtpm` and `az_tdx_vtpm`, with the versions of their evidence); the report's fields by
https://github.com/virtee/sev, AttestationReport; Intel's Provisioning Certification Service API, version 4.
"""

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from confide.attest.amd import COMPONENTS, Product
from confide.attest.chain import read_certificate
from confide.attest.collateral import Collateral
from confide.attest.evidence import MAX_EVIDENCE_BYTES, Evidence, Family
from confide.attest.families.eventlog import PART as EVENT_LOG
from confide.attest.families.snp import REPORT_BYTES
from confide.errors import MalformedEvidence

MAX_CERTIFICATES: Final = 16

_BASE64: Final = re.compile(rb"[A-Za-z0-9+/_\s-]+=*\s*")
_HEX: Final = re.compile(rb"\s*(?:0[xX])?((?:[0-9A-Fa-f]{2}|\s)+)")
_RSA_SIGNATURE_BYTES: Final = (256, 384, 512)
_RSASSA_SHA256: Final = bytes.fromhex("0014000b")
_TCB_BYTES: Final = 8

_Json = Mapping[str, Any]
_Read = tuple[Evidence, Collateral]


def read_form(document: _Json, of_quote: Callable[[bytes], Family]) -> _Read:
    """Evidence, and such collateral as came with it, from a JSON object. of_quote: who made a DCAP quote."""
    readers: tuple[tuple[set[str], Callable[[], _Read]], ...] = (
        ({"ak_public", "tpm_quote"}, lambda: _tpm(document)),
        ({"hcl_report", "tpm_quote"}, lambda: _azure(document, document["tpm_quote"], document["hcl_report"])),
        ({"quote", "report", "vcek"}, lambda: _azure(document, document["quote"], document["report"])),
        ({"attestation_report"}, lambda: _snp(document)),
        ({"quote"}, lambda: _dcap(document, of_quote)),
    )
    for keys, reader in readers:
        if keys <= document.keys():
            try:
                return reader()
            except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
                names = " and ".join(sorted(keys))
                raise MalformedEvidence(
                    f"This JSON has {names}, as evidence of a tool's has, and then not what belongs to it; "
                    "fetch it again."
                ) from None
    raise MalformedEvidence("This JSON is no evidence in a form that is known; fetch it again, or send the raw bytes.")


def read_object(data: bytes) -> _Json:
    """The JSON object in these bytes."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise MalformedEvidence("This begins as JSON does and is no JSON object, or is cut off; fetch it again.")
    return document


def octets(text: bytes) -> list[bytes]:
    """What a text may stand for, as hexadecimal and as base64 of either alphabet; nothing where it is neither."""
    found = []
    if match := _HEX.fullmatch(text):
        found.append(bytes.fromhex(match[1].decode("ascii")))
    if _BASE64.fullmatch(text):
        try:
            found.append(from_base64(text.decode("ascii")))
        except ValueError:
            return found
    return found


def from_base64(text: str) -> bytes:
    """Bytes of base64 in either alphabet, in lines or not, padded or not; ValueError if it is none."""
    bare = "".join(text.split()).rstrip("=").translate({ord("-"): "+", ord("_"): "/"})
    try:
        return base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None


def pem(ders: Iterable[bytes]) -> bytes:
    """PEM around certificates (RFC 7468: lines of 64)."""
    blocks = []
    for der in ders:
        text = base64.b64encode(der).decode()
        lines = "\n".join(text[at : at + 64] for at in range(0, len(text), 64))
        blocks.append(f"-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n")
    return "".join(blocks).encode()


def _bytes(value: object, decode: Callable[[str], bytes]) -> bytes:
    """A list of numbers, or a text."""
    if isinstance(value, list):
        return bytes(value)
    if not isinstance(value, str):
        raise TypeError("neither a text nor a list")
    return decode(value)


def _quoted(quote: _Json, decode: Callable[[str], bytes]) -> dict[str, bytes]:
    """A TPM's quote: message, signature, and the PCRs of the SHA-256 bank, in order."""
    signature = _bytes(quote["signature"], decode)
    if len(signature) in _RSA_SIGNATURE_BYTES:  # as Azure's tools write it, without the TPMT_SIGNATURE around it
        signature = _RSASSA_SHA256 + len(signature).to_bytes(2, "big") + signature
    return {
        "quote": _bytes(quote["message"], decode),
        "signature": signature,
        "pcrs": b"".join(_bytes(value, bytes.fromhex) for value in quote["pcrs"]),
    }


def _tpm(document: _Json) -> _Read:
    parts = _quoted(document["tpm_quote"], from_base64)
    key = _bytes(document["ak_public"], from_base64)
    return Evidence(Family.TPM, parts.pop("quote"), parts), Collateral({"ak": key})


def _azure(document: _Json, quote: _Json, report: object) -> _Read:
    """Version 0 has lists and a PEM, versions 1 and 2 texts."""
    parts = _quoted(quote, bytes.fromhex)
    if "td_quote" in document:
        parts["td_quote"] = _bytes(document["td_quote"], from_base64)
    documents = {}
    if vcek := document.get("vcek"):
        armoured = isinstance(vcek, str) and vcek.lstrip().startswith("-----BEGIN")
        documents["vcek"] = vcek.strip().encode("ascii") if armoured else _bytes(vcek, from_base64)
        read_certificate(documents["vcek"], "VCEK beside Azure's evidence")
    return Evidence(Family.AZURE, _bytes(report, from_base64), parts), Collateral(documents)


def _dcap(document: _Json, of_quote: Callable[[bytes], Family]) -> _Read:
    """A quote with its event log, by the names of Trustee's tools and of Intel's."""
    quote = _bytes(document["quote"], from_base64)
    log = document.get("cc_eventlog") or document.get("event_log")
    return Evidence(of_quote(quote), quote, {EVENT_LOG: _bytes(log, from_base64)} if log else {}), Collateral()


# -- AMD's report, field by field ---------------------------------------------------------------------------------

_NUMBERS: Final[Mapping[str, tuple[int, int]]] = {
    "version": (0x000, 4),
    "guest_svn": (0x004, 4),
    "policy": (0x008, 8),
    "vmpl": (0x030, 4),
    "sig_algo": (0x034, 4),
    "plat_info": (0x040, 8),
    "key_info": (0x048, 4),
    "_author_key_en": (0x048, 4),
    "cpuid_fam_id": (0x188, 1),
    "cpuid_mod_id": (0x189, 1),
    "cpuid_step": (0x18A, 1),
    "current_build": (0x1E8, 1),
    "current_minor": (0x1E9, 1),
    "current_major": (0x1EA, 1),
    "committed_build": (0x1EC, 1),
    "committed_minor": (0x1ED, 1),
    "committed_major": (0x1EE, 1),
    "launch_mit_vector": (0x1F8, 8),
    "current_mit_vector": (0x200, 8),
}
_FIELDS: Final[Mapping[str, tuple[int, int]]] = {
    "family_id": (0x010, 16),
    "image_id": (0x020, 16),
    "report_data": (0x050, 64),
    "measurement": (0x090, 48),
    "host_data": (0x0C0, 32),
    "id_key_digest": (0x0E0, 48),
    "author_key_digest": (0x110, 48),
    "report_id": (0x140, 32),
    "report_id_ma": (0x160, 32),
    "chip_id": (0x1A0, 64),
}
_TCBS: Final[Mapping[str, int]] = {
    "current_tcb": 0x038,
    "reported_tcb": 0x180,
    "committed_tcb": 0x1E0,
    "launch_tcb": 0x1F0,
}
_SIGNATURE: Final[Mapping[str, int]] = {"r": 0x2A0, "s": 0x2E8}
_SIGNATURE_NUMBER: Final = 72


def _snp(document: _Json) -> _Read:
    """The report in fields, and the host's certificates by their kinds. The signature is over the whole again."""
    fields = dict(document["attestation_report"])
    for name in ("current", "committed"):
        if isinstance(fields.get(name), dict):
            fields |= {f"{name}_{part}": number for part, number in fields.pop(name).items()}
    raw = bytearray(REPORT_BYTES)
    for name, (at, size) in _NUMBERS.items():
        if fields.get(name) is not None:
            raw[at : at + size] = int(fields[name]).to_bytes(size, "little")
    for name, (at, size) in _FIELDS.items():
        raw[at : at + size] = _exactly(_bytes(fields[name], bytes.fromhex), size)
    for name, at in _TCBS.items():
        raw[at : at + _TCB_BYTES] = _tcb(fields[name])
    for name, at in _SIGNATURE.items():
        number = _bytes(fields["signature"][name], bytes.fromhex)
        raw[at : at + _SIGNATURE_NUMBER] = _exactly(number, _SIGNATURE_NUMBER)
    return Evidence(Family.SNP, bytes(raw)), Collateral(_host_certificates(document.get("cert_chain") or []))


def _exactly(value: bytes, size: int) -> bytes:
    if len(value) != size:
        raise ValueError(f"{len(value)} bytes and not {size}")
    return value


def _tcb(levels: _Json) -> bytes:
    """Turin's layout where there is an FMC, and otherwise the earlier one."""
    product = Product.MILAN if levels.get("fmc") is None else Product.TURIN
    tcb = bytearray(_TCB_BYTES)
    for name, component in COMPONENTS[product].items():
        tcb[component.at] = levels[name]
    return bytes(tcb)


def _host_certificates(entries: list[_Json]) -> dict[str, bytes]:
    if len(entries) > MAX_CERTIFICATES:
        raise ValueError("too many certificates")
    return host_documents({entry["cert_type"].lower(): _bytes(entry["data"], from_base64) for entry in entries})


def host_documents(table: Mapping[str, bytes]) -> dict[str, bytes]:
    """SEV-SNP's collateral out of certificates by name (vcek, vlek, ask, asvk, ark, crl), as hosts have them."""
    documents = {name: table[name] for name in ("vcek", "vlek", "crl") if table.get(name)}
    chain = [table[name] for name in ("ask", "asvk", "ark") if table.get(name)]
    return documents | ({"chain": pem(chain)} if chain else {})


def bounded(data: bytes) -> bytes:
    """The same bytes; MalformedEvidence if they are more than evidence can be."""
    if len(data) > MAX_EVIDENCE_BYTES:
        raise MalformedEvidence(f"The evidence is larger than {MAX_EVIDENCE_BYTES} bytes; send the evidence alone.")
    return data

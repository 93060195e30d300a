"""Files of unknown make: what evidence and what collateral they hold, told by their content.

Only the outermost marks are looked at; whether a thing holds is for its verifier to say. Text of any armour is taken
off: hexadecimal, base64, PEM, and the JSON of tools (`forms`).
"""

import re
from collections.abc import Iterable
from typing import Final

from confide.attest.collateral import Collateral
from confide.attest.collateral_files import gather
from confide.attest.collateral_sources import certificate_table
from confide.attest.evidence import Evidence, Family
from confide.attest.families import nvidia_json
from confide.attest.families.snp import REPORT_BYTES, VERSIONS
from confide.attest.forms import bounded, host_documents, octets, read_form, read_object
from confide.errors import MalformedEvidence

_TOKEN: Final = re.compile(rb"\s*eyJ[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*\s*")
_SPDM_REQUEST: Final = b"\x11\xe0"
_HCL: Final = b"HCLA"
_COSE_SIGN1: Final = (b"\x84\x44\xa1\x01\x38\x22", b"\xd2\x84\x44\xa1\x01\x38\x22")
"""An array of four, of which the first is the header {1: -35}, ES384; tagged or not."""

_QUOTE_HEADER_BYTES: Final = 48
_ECDSA_P256: Final = 2
_TEES: Final = {0x00: Family.SGX, 0x81: Family.TDX}
_RESPONSE_HEADER: Final = bytes(4) + REPORT_BYTES.to_bytes(4, "little") + bytes(24)
"""What the firmware's response has before the report (document 56860, MSG_REPORT_RSP): status, size and zeros."""

_UNKNOWN: Final = "This is no evidence of a known family, or the end of it is missing; fetch it again, or say --family."


def family_of(data: bytes) -> Family | None:
    """Who made this evidence, in its plain form; None if nothing about it says so."""
    if _TOKEN.fullmatch(data):
        return Family.TOKEN
    if data.startswith(_SPDM_REQUEST):
        return Family.NVIDIA
    if data.startswith(_HCL):
        return Family.AZURE
    if data.startswith(_COSE_SIGN1):
        return Family.NITRO
    if len(data) >= REPORT_BYTES and int.from_bytes(data[:4], "little") in VERSIONS:
        return Family.SNP
    return _quoted(data)


def _quoted(data: bytes) -> Family | None:
    """The family that a DCAP quote's header names."""
    version, key_type = (int.from_bytes(data[at : at + 2], "little") for at in (0, 2))
    if len(data) < _QUOTE_HEADER_BYTES or key_type != _ECDSA_P256 or version not in (3, 4, 5):
        return None
    return Family.SGX if version == 3 else _TEES.get(int.from_bytes(data[4:8], "little"))


def read_evidence(data: bytes, family: Family | None = None) -> tuple[Evidence, Collateral]:
    """Evidence from a file, with such collateral as came in the same file. family: if it is known already."""
    bounded(data)
    if data.lstrip()[:1] == b"{":
        evidence, collateral = read_form(read_object(data), _family_of_quote)
        if family not in (None, evidence.family):
            raise MalformedEvidence(f"This is evidence of {evidence.family} and not of {family}; leave --family out.")
        return evidence, collateral
    if data.lstrip()[:1] == b"[":
        return _listed(data, family)
    plain = _plain(data, family)
    family = family or family_of(plain)
    if family is None:
        raise MalformedEvidence(_UNKNOWN)
    if family is Family.SNP:
        return _extended(plain)
    return Evidence(family, plain), Collateral()


def _listed(data: bytes, family: Family | None) -> tuple[Evidence, Collateral]:
    """NVIDIA's lists: evidence of a GPU, or a bundle of tokens."""
    found = nvidia_json.family_of(data)
    if family not in (None, found):
        raise MalformedEvidence(f"This is evidence of {found} and not of {family}; leave --family out.")
    made = nvidia_json.read_evidence(data) if found is Family.NVIDIA else Evidence(found, data)
    return made, Collateral()


def _plain(data: bytes, family: Family | None) -> bytes:
    """The evidence out of its armour: the reading of the bytes that shows its marks, and otherwise the bytes."""
    readings = list(map(_unwrapped, (data, *octets(data))))
    plain = next((one for one in readings if family_of(one) in ({family} if family else set(Family))), None)
    if plain is None and family is Family.NVIDIA:
        raise MalformedEvidence("The GPU's report is neither binary nor hexadecimal; fetch it again.")
    return readings[0] if plain is None else plain


def _unwrapped(data: bytes) -> bytes:
    return data[len(_RESPONSE_HEADER) :] if data.startswith(_RESPONSE_HEADER) else data


def _extended(data: bytes) -> tuple[Evidence, Collateral]:
    """A report, and behind it nothing, zeros, or the host's table of certificates (document 56421, 4.1.8.1)."""
    report, table = data[:REPORT_BYTES], data[REPORT_BYTES:]
    if not any(table):
        return Evidence(Family.SNP, report), Collateral()
    return Evidence(Family.SNP, report, {"auxblob": table}), Collateral(host_documents(certificate_table(table)))


def _family_of_quote(quote: bytes) -> Family:
    family = _quoted(quote)
    if family is None:
        raise MalformedEvidence(_UNKNOWN)
    return family


def read_collateral(files: Iterable[bytes]) -> Collateral:
    """Collateral from files in any order and form; see `collateral_files`."""
    return gather(files)

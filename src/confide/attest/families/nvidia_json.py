"""What NVIDIA's tools write as JSON: the evidence of GPUs, and the bundle of tokens of its attestation service.

Evidence, as the attestation SDK serializes it: a list with one object for each GPU, of which `evidence` (the report)
and `certificate` (the PEM chain) are in base64 and `nonce` is hexadecimal. A bundle: see `tokens`.
"""

import base64
import binascii
import hmac
import re
from typing import Final

import msgspec

from confide.attest.evidence import MAX_EVIDENCE_BYTES, Evidence, Family
from confide.attest.families.nvidia_report import Report
from confide.errors import MalformedEvidence

MANIFEST_HEAD: Final = 1 << 14
_VERSION: Final = re.compile(rb'\bcolloquialVersion="([0-9A-Fa-f.]{1,40})"')
_VBIOS_DOTS: Final = 4
_ADVICE: Final = "write it again with NVIDIA's attestation tools"


class _Gpu(msgspec.Struct):
    """As far as it is used: versions and architecture are in the signed report."""

    evidence: str
    certificate: str
    nonce: str = ""


def family_of(data: bytes) -> Family:
    """Whether a JSON list holds evidence or tokens; MalformedEvidence if neither. Only its outermost marks count."""
    try:
        items = msgspec.json.decode(data, type=list[msgspec.Raw])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise _malformed("it is no JSON, or cut off") from error
    first = bytes(items[0]).lstrip()[:1] if items else b""
    if first == b"{":
        return Family.NVIDIA
    if first == b"[":
        return Family.TOKEN
    raise _malformed("it has no evidence and no tokens")


def read_evidence(data: bytes) -> Evidence:
    """The evidence of the one GPU in a list, its chain as the part `chain`."""
    if len(data) > MAX_EVIDENCE_BYTES:
        raise _malformed(f"it has more than {MAX_EVIDENCE_BYTES >> 20} MiB")
    try:
        gpus = msgspec.json.decode(data, type=list[_Gpu])
        reports = [(_base64(gpu.evidence), _base64(gpu.certificate), bytes.fromhex(gpu.nonce)) for gpu in gpus]
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _malformed("it has no `evidence` and `certificate` in base64") from error
    if len(reports) != 1:
        raise MalformedEvidence(
            f"The file holds the evidence of {len(reports)} GPUs, which are verified one by one; put each into a list "
            "of its own, or have `confide serve` bind them to their machine."
        )
    raw, chain, nonce = reports[0]
    if nonce and not hmac.compare_digest(nonce, Report.parse(raw).nonce):
        raise _malformed("its nonce is not the one in the report")
    return Evidence(Family.NVIDIA, raw, {"chain": chain})


def manifest_kind(data: bytes) -> str:
    """Whether a reference manifest is a driver's or a VBIOS's, by the version it names; nothing of it is verified."""
    found = _VERSION.search(data[:MANIFEST_HEAD])
    if found is None:
        raise MalformedEvidence("A file of collateral is XML, but no reference manifest of NVIDIA's; fetch it again.")
    return "vbios-rim" if found[1].count(b".") == _VBIOS_DOTS else "driver-rim"


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None


def _malformed(why: str) -> MalformedEvidence:
    return MalformedEvidence(f"The GPU's JSON cannot be read, for {why}; {_ADVICE}.")

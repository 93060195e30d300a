"""Files of unknown make: what evidence and what collateral they hold, told by their content.

Only the outermost marks are looked at; whether a thing holds is for its verifier to say.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterable
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_public_key
from cryptography.x509.ocsp import load_der_ocsp_response

from confide.attest.chain import read_certificate
from confide.attest.collateral import Collateral
from confide.attest.evidence import MAX_EVIDENCE_BYTES, Evidence, Family
from confide.attest.families import nvidia_json
from confide.attest.release import RELEASE
from confide.errors import MalformedEvidence

_TOKEN: Final = re.compile(rb"\s*eyJ[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*\s*")
_SPDM_HEX: Final = re.compile(rb"\s*11e0(?:[0-9a-f]{2})*\s*", re.IGNORECASE)
_SPDM_REQUEST: Final = b"\x11\xe0"
_QUOTE_HEADER_BYTES: Final = 48
_ECDSA_P256: Final = 2
_TEES: Final = {0x00: Family.SGX, 0x81: Family.TDX}
_SNP_REPORT_BYTES: Final = 1184
_SNP_VERSIONS: Final = range(2, 6)
_PEM: Final = b"-----BEGIN "
_SIGSTORE_BUNDLE: Final = "application/vnd.dev.sigstore.bundle"
_DCAP_KEYS: Final = {"tcb_info", "qe_identity"}


def family_of(data: bytes) -> Family:
    """Who made this evidence; MalformedEvidence if nothing about it says so."""
    if len(data) > MAX_EVIDENCE_BYTES:
        raise MalformedEvidence(f"The evidence is larger than {MAX_EVIDENCE_BYTES} bytes; send the evidence alone.")
    if _TOKEN.fullmatch(data):
        return Family.TOKEN
    if data.lstrip()[:1] == b"{":
        return Family.TPM
    if data.lstrip()[:1] == b"[":
        return nvidia_json.family_of(data)
    if data.startswith(_SPDM_REQUEST) or _SPDM_HEX.fullmatch(data):
        return Family.NVIDIA
    if len(data) == _SNP_REPORT_BYTES and int.from_bytes(data[:4], "little") in _SNP_VERSIONS:
        return Family.SNP
    family = _quoted(data)
    if family is None:
        raise MalformedEvidence(
            "This is no evidence of a known family, or the end of it is missing; fetch it again, or say --family."
        )
    return family


def _quoted(data: bytes) -> Family | None:
    """The family that a DCAP quote's header names."""
    version, key_type = (int.from_bytes(data[at : at + 2], "little") for at in (0, 2))
    if len(data) < _QUOTE_HEADER_BYTES or key_type != _ECDSA_P256 or version not in (3, 4, 5):
        return None
    return Family.SGX if version == 3 else _TEES.get(int.from_bytes(data[4:8], "little"))


def read_evidence(data: bytes, family: Family | None = None) -> tuple[Evidence, Collateral]:
    """Evidence from a file, with such collateral as came in the same file. family: if it is known already."""
    family = family or family_of(data)
    if family is Family.TPM:
        return _tpm(data)
    if family is Family.NVIDIA and data.lstrip()[:1] == b"[":
        return nvidia_json.read_evidence(data), Collateral()
    if family is Family.NVIDIA and not data.startswith(_SPDM_REQUEST):
        try:
            data = bytes.fromhex(data.decode("ascii"))
        except ValueError:
            raise MalformedEvidence("The GPU's report is neither binary nor hexadecimal; fetch it again.") from None
    return Evidence(family, data), Collateral()


def _tpm(data: bytes) -> tuple[Evidence, Collateral]:
    """JSON: ak_public, and tpm_quote with message, signature (both base64) and the PCRs (hexadecimal)."""
    try:
        document: Any = json.loads(data)
        quote = document["tpm_quote"]
        message, signature, key = map(_base64, (quote["message"], quote["signature"], document["ak_public"]))
        pcrs = b"".join(bytes.fromhex(value) for value in quote["pcrs"])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise MalformedEvidence(
            "TPM evidence is a JSON object with ak_public and tpm_quote (message, signature, pcrs); fetch it again."
        ) from None
    return Evidence(Family.TPM, message, {"signature": signature, "pcrs": pcrs}), Collateral({"ak": key})


def read_collateral(files: Iterable[bytes]) -> Collateral:
    """Collateral from files in any order: DCAP's JSON, a PEM chain, NVIDIA's manifests, a release; in DER the rest."""
    documents: dict[str, bytes] = {}
    for data in files:
        name = _name_of(data)
        if name == "ocsp":  # one response for each certificate is how they come
            data = documents.pop(name, b"") + data
        if name in documents:
            raise MalformedEvidence(f"Two of the files of collateral are a {name}; give each thing once.")
        documents[name] = data
    return Collateral(documents)


def _name_of(data: bytes) -> str:
    if data.lstrip()[:1] == b"{":
        return _json_name(data)
    if data.lstrip().startswith(_PEM):
        return "ak" if b"PUBLIC KEY-----" in data[:64] else "chain"
    if data.lstrip()[:1] == b"<":
        return nvidia_json.manifest_kind(data)
    for name_if in (_certificate_name, _crl_name, _ocsp_name, _key_name):
        try:
            return name_if(data)
        except (ValueError, MalformedEvidence):
            continue
    raise MalformedEvidence(
        "A file of collateral is no DCAP JSON, PEM chain, certificate, key or CRL, or is cut off; fetch it again."
    )


def _json_name(data: bytes) -> str:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = {}
    if isinstance(document, dict) and str(document.get("mediaType", "")).startswith(_SIGSTORE_BUNDLE):
        return RELEASE
    if not isinstance(document, dict) or not document.keys() >= _DCAP_KEYS:
        raise MalformedEvidence("A file of collateral is JSON, but not DCAP's, or it is cut off; fetch it again.")
    return "dcap"


def _certificate_name(data: bytes) -> str:
    """AMD names its leaves; any other single certificate is an attestation key's."""
    subject = read_certificate(data, "certificate of the collateral").subject.rfc4514_string()
    return next((name for name in ("vcek", "vlek") if f"SEV-{name.upper()}" in subject), "ak")


def _crl_name(data: bytes) -> str:
    x509.load_der_x509_crl(data)
    return "crl"


def _ocsp_name(data: bytes) -> str:
    load_der_ocsp_response(data)
    return "ocsp"


def _key_name(data: bytes) -> str:
    load_der_public_key(data)
    return "ak"


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None

"""Azure confidential virtual machines: evidence of the processor about the paravisor, and a quote of its virtual TPM.

The paravisor (Azure's "host compatibility layer", HCL), in the most privileged part of the guest, asked the processor
once for a report over its runtime data, a JSON that holds the public half of the virtual TPM's attestation key,
HCLAkPub. The guest itself never chooses the processor's report data: its nonce is in the TPM's quote. So the chain is:
the processor's evidence is genuine and over SHA-256 of the runtime data; these name the key; that signs the quote.

Formats: Microsoft, "Confidential VM guest attestation design"
(https://learn.microsoft.com/azure/confidential-computing/guest-attestation-confidential-virtual-machines-design),
"Attestation report" and "Runtime data"; numbers are little-endian.

The evidence's raw bytes are the HCL report, as NV index 0x01400001 of the TPM holds it. Parts: `quote` (TPMS_ATTEST),
`signature` (TPMT_SIGNATURE) and `pcrs`, as in `tpm`; for TDX also `td_quote`, a DCAP quote over the same report data.
Collateral: the processor's, as in `snp` or `tdx`.

What is believed of the TPM is what the paravisor is believed, so a policy must name the paravisor: the measurement of
SEV-SNP, or the MRTD of TDX. Anybody can have a genuine processor sign a runtime data of their own making with another
paravisor in it. That a report of SEV-SNP is by the paravisor, and not by the guest, its VMPL tells: 0.

The claims' measurements are the PCRs, their report data is the quote's nonce, and `members` has the processor's own.
"""

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final, Self

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from confide.attest.check import check
from confide.attest.claims import Claims
from confide.attest.collateral import Collateral
from confide.attest.cursor import Cursor
from confide.attest.evidence import Evidence, Family
from confide.attest.families import snp, tdx, tpm
from confide.attest.roots import Roots
from confide.errors import MalformedEvidence, WrongBinding

MAX_HCL_BYTES: Final = 1 << 16
"""Real ones have 2600 bytes."""

PARTS: Final = ("quote", "signature", "pcrs")
TD_QUOTE: Final = "td_quote"

_SIGNATURE: Final = b"HCLA"
_HARDWARE_BYTES: Final = 1184
_KEY_ID: Final = "HCLAkPub"
_PROCESSORS: Final[Mapping[int, Family]] = MappingProxyType({2: Family.SNP, 4: Family.TDX})
_SHA256: Final = 1
_PARAVISOR_VMPL: Final = 0
_MAX_EXPONENT_BYTES: Final = 4
_RSA_BYTES: Final = range(256, 513)
_CLAUSE: Final = "Microsoft, Confidential VM guest attestation design, Runtime data"


@dataclass(frozen=True)
class HclReport:
    """What the paravisor keeps. hardware: the report of SEV-SNP, or TDX's report for its own machine, padded to 1184
    bytes. runtime_data: the very bytes that were hashed.
    """

    processor: Family
    hardware: bytes
    runtime_data: bytes

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Take one apart; MalformedEvidence if it is none that is known. What follows the runtime data is unused."""
        if len(raw) > MAX_HCL_BYTES:
            raise MalformedEvidence(f"Azure's HCL report has at most {MAX_HCL_BYTES} bytes; fetch it again.")
        cursor = Cursor(raw, "HCL report", "little")
        if cursor.take(4) != _SIGNATURE:
            raise MalformedEvidence("This is no HCL report of Azure's; read NV index 0x01400001 of the virtual TPM.")
        cursor.take(28)
        hardware = cursor.take(_HARDWARE_BYTES)
        cursor.take(8)
        processor, hashed = _PROCESSORS.get(cursor.number(4)), cursor.number(4)
        if processor is None or hashed != _SHA256:
            raise MalformedEvidence("Azure's HCL report is not of SEV-SNP or TDX with SHA-256; update Confide.")
        return cls(processor, hardware, cursor.sized(4))

    def report_data(self) -> bytes:
        """What the processor must have signed: SHA-256 of the runtime data, and zeros."""
        return hashlib.sha256(self.runtime_data).digest().ljust(64, b"\0")

    def evidence(self, parts: Mapping[str, bytes]) -> Evidence:
        """The processor's own evidence, among the parts where it is not in here."""
        if self.processor is Family.SNP:
            return Evidence(Family.SNP, self.hardware, {"auxblob": parts["auxblob"]} if "auxblob" in parts else {})
        if TD_QUOTE not in parts:
            raise MalformedEvidence(
                f"Azure's evidence of TDX has a {TD_QUOTE}; fetch it from Azure's metadata service."
            )
        return Evidence(Family.TDX, parts[TD_QUOTE])


def verify(evidence: Evidence, collateral: Collateral, roots: Roots, now: datetime) -> Claims:
    """What the machine's processor and its virtual TPM say, once the key of the second is bound to the first."""
    hcl = HclReport.parse(evidence.raw)
    if missing := set(PARTS) - evidence.parts.keys():
        raise MalformedEvidence(f"Azure's evidence lacks {', '.join(sorted(missing))}; send the virtual TPM's quote.")
    processor = (snp if hcl.processor is Family.SNP else tdx).verify(
        hcl.evidence(evidence.parts), collateral, roots, now
    )
    _check_binding(hcl, processor)
    runtime = parse_runtime_data(hcl.runtime_data)
    key = attestation_key(runtime)
    quote, measurements = tpm.verify_quote(
        evidence.parts["quote"], evidence.parts["signature"], evidence.parts["pcrs"], key
    )
    return Claims(
        family=Family.AZURE,
        root=processor.root,
        report_data=quote.extra_data,
        debug=processor.debug,
        tcb_status=processor.tcb_status,
        measurements=MappingProxyType(measurements),
        identity=MappingProxyType(runtime_identity(runtime, key)),
        advisories=processor.advisories,
        tcb_date=processor.tcb_date,
        valid_until=processor.valid_until,
        # The guest has no say in what the processor signed, so that part does not speak for any workload.
        members=(replace(processor, speaks=False),),
        checks=(
            check("key-binding", "the TPM's key, in the processor's report", "it is there", ok=True, clause=_CLAUSE),
        ),
        speaks=True,
    )


def _check_binding(hcl: HclReport, processor: Claims) -> None:
    """The processor signed this runtime data, at the paravisor's asking; WrongBinding if not."""
    if not hmac.compare_digest(hcl.report_data(), processor.report_data):
        raise WrongBinding(
            "The processor signed other runtime data than Azure's evidence holds, so the virtual TPM's key is not "
            "bound to it; fetch HCL report and TD quote together, and do not trust the TPM."
        )
    if processor.family is Family.SNP and int.from_bytes(processor.identity["vmpl"], "big") != _PARAVISOR_VMPL:
        raise WrongBinding(
            "The processor's report was asked for at another VMPL than the paravisor's, so the guest could have made "
            "the virtual TPM's key itself; do not trust it."
        )


def parse_runtime_data(content: bytes) -> Mapping[str, Any]:
    """The JSON, once its hash has been compared."""
    try:
        runtime = json.loads(content)
    except (ValueError, RecursionError):
        runtime = None
    if not isinstance(runtime, dict):
        raise MalformedEvidence("Azure's runtime data are no JSON object; fetch the HCL report again.")
    return runtime


def attestation_key(runtime: Mapping[str, Any]) -> rsa.RSAPublicKey:
    """The one RSA key by the name of HCLAkPub (RFC 7517); MalformedEvidence if there is none, or more."""
    try:
        found = [key for key in runtime["keys"] if key["kid"] == _KEY_ID]
        [key] = found
        if key["kty"] != "RSA":
            raise ValueError("another kind of key")
        modulus, exponent = (_base64url(key[name]) for name in ("n", "e"))
        if len(modulus) not in _RSA_BYTES or len(exponent) > _MAX_EXPONENT_BYTES:
            raise ValueError("a key of another size")
        return rsa.RSAPublicNumbers(int.from_bytes(exponent), int.from_bytes(modulus)).public_key()
    except (LookupError, TypeError, ValueError, AttributeError):
        raise MalformedEvidence(
            f"Azure's runtime data hold no RSA key named {_KEY_ID}, or several; fetch the HCL report again."
        ) from None


def _base64url(text: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError(str(error)) from None


def runtime_identity(runtime: Mapping[str, Any], key: rsa.RSAPublicKey) -> dict[str, bytes]:
    """ak: SHA-256 of the key's SubjectPublicKeyInfo. vm_id, secure_boot and user_data as the paravisor writes them."""
    encoded = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    identity = {"ak": hashlib.sha256(encoded).digest()}
    configuration = runtime.get("vm-configuration")
    if isinstance(configuration, dict):
        for ours, theirs in (("vm_id", "vmUniqueId"), ("secure_boot", "secure-boot"), ("console", "console-enabled")):
            if isinstance(value := configuration.get(theirs), bool | str):
                identity[ours] = str(value).lower().encode() if isinstance(value, bool) else _utf8(value)
    if isinstance(user_data := runtime.get("user-data"), str):
        identity["user_data"] = _utf8(user_data)
    return identity


def _utf8(text: str) -> bytes:
    """JSON can spell halves of characters, which have no encoding."""
    return text.encode("utf-8", "replace")

"""Where each check comes from: the clause of a specification, by the check's code.

Families name the clause of what they verify themselves; this is for checks of policies, whose code says what is asked
for. Sources: RFC 9334 (RATS architecture); Intel SDM volume 3D (SGX); Intel TDX Module ABI, structure TDREPORT; Intel
PCS API v4; AMD 56860 (SEV-SNP firmware ABI); TPM 2.0 Library, part 2; AWS Nitro Enclaves, "attestation process";
ACI: Attested Confidential Inference, version aci/1 (receipts); in-toto Attestation Framework and DSSE (certificates).
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

_STATEMENT: Final = "RFC 9334, 8.1 (evidence), in a statement under report data"
_SDM: Final = "Intel SDM 3D, REPORT"
_TDX: Final = "Intel TDX Module ABI, TDREPORT_STRUCT"
_SNP: Final = "AMD 56860, ATTESTATION_REPORT"
_DEBUG: Final = "AMD 56860, guest policy, bit 19; Intel TDX ATTRIBUTES.TUD; Intel SGX ATTRIBUTES.DEBUG"
_CERTIFICATE: Final = "in-toto Attestation Framework 1.0, statement; DSSE 1.0, protocol"
_STATED: Final = (
    "adapters",
    "confide-digest",
    "confide-version",
    "context",
    "corpus",
    "corpus-head",
    "corpus-owner",
    "egress",
    "engine",
    "engine-version",
    "environment",
    "graph",
    "graph-digest",
    "graph-service",
    "graph-version",
    "model",
    "options",
    "policy-version",
    "quantization",
    "template",
    "upstream",
    "weights",
)
"""What a workload says of itself."""

_BY_CODE: Final[Mapping[str, str]] = MappingProxyType(
    {
        **dict.fromkeys(_STATED, _STATEMENT),
        "self-test": f"{_STATEMENT}; 10.1 (its time)",
        "channel-key": f"{_STATEMENT}; RFC 9180 (HPKE), 4",
        "family": "RFC 9334, 8.1",
        "record": "RFC 9334, 8.4 (attestation results)",
        "debug": _DEBUG,
        "tcb-status": "Intel PCS v4, tcbStatus; AMD 56860, TCB_VERSION",
        "any-of": "RFC 9334, 8.5 (appraisal policies)",
        "not-after": "RFC 9334, 8.5 (appraisal policies)",
        "report-data": "RFC 9334, 10.2; report data of each family",
        "nonce": "RFC 9334, 10.2",
        "advisories": "Intel PCS v4, advisoryIDs",
        "ppid": "Intel SGX PCK certificate profile, 1.2.840.113741.1.13.1.1",
        "fmspc": "Intel SGX PCK certificate profile, 1.2.840.113741.1.13.1.4",
        "chip-id": f"{_SNP}, CHIP_ID",
        "verifier-service": "RFC 9334, 5.2 (background check) and 8.4 (attestation results)",
        "release-age": "RFC 9334, 10.1; in-toto statement v1",
        "release-measurements": "RFC 9334, 8.3 (reference values)",
        "score-at-least": f"{_CERTIFICATE}; RFC 9334, 8.4 (attestation results)",
        "trained-on": f"{_CERTIFICATE}; RFC 9334, 8.4 (attestation results)",
        "not-trained-on": f"{_CERTIFICATE}; RFC 9334, 8.4 (attestation results)",
        "malformed-score": _CERTIFICATE,
        "malformed-training": _CERTIFICATE,
        "migration-agent": f"{_SNP}, REPORT_ID_MA",
        "signer": f"{_SNP}, SIGNING_KEY",
        "guest-svn": f"{_SNP}, GUEST_SVN",
        "tee-tcb-svn": f"{_TDX}, TEE_TCB_SVN",
        "secure-boot": "Microsoft Azure, runtime claims of the HCL report",
        "vm-id": "Microsoft Azure, runtime claims of the HCL report",
        "nvidia-driver": "NVIDIA attestation, opaque data of the SPDM report",
        "nvidia-vbios": "NVIDIA attestation, opaque data of the SPDM report",
        "attestation": "RFC 9334, 8.4 (attestation results)",
        "attestation-refused": "RFC 9334, 8.4 (attestation results)",
        "collateral-unavailable": "RFC 9334, 8.2 (endorsements)",
        "corpus-refused": f"{_STATEMENT}; 10 (freshness)",
        "graph-refused": f"{_STATEMENT}; 10 (freshness)",
        "debug-enabled": _DEBUG,
        "event-log-mismatch": "TCG PC Client Platform Firmware Profile, event log; Intel TDX Module ABI, RTMR",
        "evidence-unavailable": "RFC 9334, 8.1 (evidence)",
        "invalid-signature": "RFC 5280, 6.1.3; RFC 9334, 12.2 (protection of messages)",
        "malformed-evidence": "RFC 9334, 8.1 (evidence)",
        "malformed-receipt": "ACI aci/1, 7.2 and 7.3 (receipts), appendix A",
        "no-trusted-environment": "RFC 9334, 3.1 (attesting environment)",
        "outside-validity": "RFC 5280, 6.1.3 and 6.3.3; Intel PCS v4, nextUpdate",
        "receipt-refused": "ACI aci/1, 9.3 (verify the response)",
        "receipt-missing": "ACI aci/1, 9.3 (verify the response)",
        "revoked": "RFC 5280, 6.3.3",
        "unknown-root": "RFC 5280, 6.1.1; RFC 9334, 7.4 (trust anchors)",
        "unknown-tcb": "Intel PCS v4, tcbLevels",
        "unsafe-configuration": "Intel TDX Module ABI, ATTRIBUTES",
        "wrong-binding": "RFC 9334, 3.3 (composite device)",
        "wrong-collateral": "RFC 9334, 8.2 (endorsements)",
    }
)
_BY_PATTERN: Final = (
    (re.compile(r"mrenclave|mrsigner|isv.*|miscselect|config(id|svn)"), _SDM),
    (re.compile(r"rtmr[0-3]|mrtd|mrseam|mrsignerseam|mrconfigid|mrowner|mrownerconfig|mrservicetd"), _TDX),
    (re.compile(r"td-attributes|xfam"), f"{_TDX}, TDINFO"),
    (re.compile(r"measurement|host-data|(id|author)-key-digest|family-id|image-id|report-id-ma"), _SNP),
    (
        re.compile(r"(score|training)-(signature|harness|measurement|approvals|time|model|dataset|nonce|base|adapter)"),
        _CERTIFICATE,
    ),
    (re.compile(r"pcr[0-9]{1,2}"), "TPM 2.0 part 2, TPMS_QUOTE_INFO; AWS Nitro, attestation document, pcrs"),
)


def clause_of(code: str) -> str:
    """The clause for a check of this code, or for evidence that is refused whole with an error of this code.

    Empty for a code that is not listed: then whoever makes the check names its clause.
    """
    if code in _BY_CODE:
        return _BY_CODE[code]
    return next((clause for pattern, clause in _BY_PATTERN if pattern.fullmatch(code)), "")

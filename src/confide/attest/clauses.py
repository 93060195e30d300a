"""Where each check comes from: the clause of a specification, by the check's code.

Families name the clause of what they verify themselves; this is for checks of policies, whose code says what is asked
for. Sources: RFC 9334 (RATS architecture); Intel SDM volume 3D (SGX); Intel TDX Module ABI, structure TDREPORT; Intel
PCS API v4; AMD 56860 (SEV-SNP firmware ABI); TPM 2.0 Library, part 2; AWS Nitro Enclaves, "attestation process".
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from confide.errors import AttestationError, error_class

_STATEMENT: Final = "RFC 9334, 8.4 (claims) and 10 (freshness), in a statement under report data"
_SDM: Final = "Intel SDM 3D, REPORT"
_TDX: Final = "Intel TDX Module ABI, TDREPORT_STRUCT"
_SNP: Final = "AMD 56860, ATTESTATION_REPORT"
_EVIDENCE: Final = "RFC 9334, 8.1 (evidence) and 9 (its appraisal)"

_BY_CODE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "family": "RFC 9334, 8.1",
        "any-of": "RFC 9334, 8.5 (appraisal policies)",
        "report-data": "RFC 9334, 10; report data of each family",
        "nonce": "RFC 9334, 10.2",
        "advisories": "Intel PCS v4, advisoryIDs",
        "ppid": "Intel SGX PCK certificate profile, 1.2.840.113741.1.13.1.1",
        "fmspc": "Intel SGX PCK certificate profile, 1.2.840.113741.1.13.1.4",
        "chip-id": f"{_SNP}, CHIP_ID",
        "verifier-service": "RFC 9334, 5.2 (background check) and 8.4 (attestation results)",
        "release-age": "RFC 9334, 10.1; in-toto statement v1",
        "release-measurements": "RFC 9334, 8.3 (reference values)",
        "channel-key": "RFC 9334, 7.4; HPKE key in the statement",
        "guest-svn": f"{_SNP}, GUEST_SVN",
        "tee-tcb-svn": f"{_TDX}, TEE_TCB_SVN",
        "secure-boot": "Microsoft Azure, runtime claims of the HCL report",
        "vm-id": "Microsoft Azure, runtime claims of the HCL report",
        "nvidia-driver": "NVIDIA attestation, opaque data of the SPDM report",
        "nvidia-vbios": "NVIDIA attestation, opaque data of the SPDM report",
    }
)
_BY_PATTERN: Final = (
    (re.compile(r"mrenclave|mrsigner|isv.*|miscselect|config(id|svn)"), _SDM),
    (re.compile(r"rtmr[0-3]|mrtd|mrseam|mrsignerseam|mrconfigid|mrowner|mrownerconfig|mrservicetd"), _TDX),
    (re.compile(r"td-attributes|xfam"), f"{_TDX}, TDINFO"),
    (re.compile(r"measurement|host-data|(id|author)-key-digest|family-id|image-id|report-id-ma"), _SNP),
    (re.compile(r"pcr[0-9]{1,2}"), "TPM 2.0 part 2, TPMS_QUOTE_INFO; AWS Nitro, attestation document, pcrs"),
)


def clause_of(code: str) -> str:
    """The clause for a check of this code.

    For the code of an error, by which evidence is refused whole, that on appraisal; for every other, which asks for
    something that the workload states, that on claims and their freshness.
    """
    if code in _BY_CODE:
        return _BY_CODE[code]
    found = next((clause for pattern, clause in _BY_PATTERN if pattern.fullmatch(code)), None)
    if found is not None:
        return found
    return _EVIDENCE if issubclass(error_class(code), AttestationError) else _STATEMENT

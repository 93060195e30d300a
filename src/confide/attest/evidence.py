"""Evidence of a trusted execution environment, as it was made: bytes of one family, not yet believed."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final

MAX_EVIDENCE_BYTES: Final = 1 << 20
"""Larger than any quote with its chain and event log."""


class Family(StrEnum):
    """Who made it."""

    SGX = "sgx"
    TDX = "tdx"
    SNP = "sev-snp"
    TPM = "tpm"
    NVIDIA = "nvidia-gpu"
    AZURE = "azure-cvm"
    NITRO = "aws-nitro"
    COMPOSITE = "composite"
    TOKEN = "verifier-token"  # noqa: S105 - a service's word about any of the others, as a JWT


@dataclass(frozen=True)
class Evidence:
    """A quote or report, what came with it, and for a composite its members.

    raw: the signed structure as its family defines it (DCAP quote, SNP report, TPMS_ATTEST, SPDM report, HCL report,
    COSE_Sign1). parts: what else the attester sent, by name: see each family's module. members: for Family.COMPOSITE
    only, the virtual machine first.
    """

    family: Family
    raw: bytes
    parts: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))
    members: tuple["Evidence", ...] = ()


def qualifying_data(report_data: bytes) -> bytes:
    """What a TPM is asked to sign for given report data: its SHA-256. Many refuse 64 bytes."""
    return hashlib.sha256(report_data).digest()

"""What a policy can ask for. Each requirement is a value: comparable, printable, and the same in Python and TOML.

Digests and other bytes are texts in hexadecimal, as every tool prints them. A requirement looks at a `Subject` and
answers with checks; it never raises, and what is absent from the claims has failed.
"""

from confide.attest.requirements.base import Requirement, Subject, name_of
from confide.attest.requirements.composition import AllOf, AnyOf, AnyRequirement, all_of, any_of, services_of
from confide.attest.requirements.hardware import Nvidia, Sgx, Snp, SnpTcb, Tdx, Tpm
from confide.attest.requirements.platform import (
    ChipIdIn,
    CollateralValid,
    NoAdvisory,
    NotDebug,
    PpidIn,
    ProductionRoot,
    TcbAtLeast,
    VerifierService,
    roots_check,
)
from confide.attest.requirements.workload import Fresh, Model, PolicyVersion, ReportData

__all__ = [
    "AllOf",
    "AnyOf",
    "AnyRequirement",
    "ChipIdIn",
    "CollateralValid",
    "Fresh",
    "Model",
    "NoAdvisory",
    "NotDebug",
    "Nvidia",
    "PolicyVersion",
    "PpidIn",
    "ProductionRoot",
    "ReportData",
    "Requirement",
    "Sgx",
    "Snp",
    "SnpTcb",
    "Subject",
    "TcbAtLeast",
    "Tdx",
    "Tpm",
    "VerifierService",
    "all_of",
    "any_of",
    "name_of",
    "roots_check",
    "services_of",
]

"""What a policy can ask for. Each requirement is a value: comparable, printable, and the same in Python and TOML.

Digests and other bytes are texts in hexadecimal, as every tool prints them. A requirement looks at a `Subject` and
answers with checks; it never raises, and what is absent from the claims has failed.
"""

from confide.attest.requirements.base import Requirement, Subject, name_of
from confide.attest.requirements.composition import (
    AllOf,
    AnyOf,
    AnyRequirement,
    all_of,
    any_of,
    everywhere,
    services_of,
)
from confide.attest.requirements.configuration import (
    ConfideVersion,
    ContextAtLeast,
    Engine,
    Environment,
    NoAdapters,
    NoEgress,
    NoUpstream,
    Options,
    Quantization,
    SelfTest,
    Template,
    Weights,
)
from confide.attest.requirements.hardware import Azure, Nitro, Nvidia, Sgx, Snp, SnpTcb, Tdx, Tpm
from confide.attest.requirements.platform import (
    ChipIdIn,
    CollateralValid,
    Default,
    FmspcIn,
    NoAdvisory,
    NotDebug,
    PpidIn,
    ProductionRoot,
    TcbAtLeast,
    VerifierService,
)
from confide.attest.requirements.release import SignedRelease
from confide.attest.requirements.workload import Fresh, Model, PolicyVersion, ReportData

__all__ = [
    "AllOf",
    "AnyOf",
    "AnyRequirement",
    "Azure",
    "ChipIdIn",
    "CollateralValid",
    "ConfideVersion",
    "ContextAtLeast",
    "Default",
    "Engine",
    "Environment",
    "FmspcIn",
    "Fresh",
    "Model",
    "Nitro",
    "NoAdapters",
    "NoAdvisory",
    "NoEgress",
    "NoUpstream",
    "NotDebug",
    "Nvidia",
    "Options",
    "PolicyVersion",
    "PpidIn",
    "ProductionRoot",
    "Quantization",
    "ReportData",
    "Requirement",
    "SelfTest",
    "Sgx",
    "SignedRelease",
    "Snp",
    "SnpTcb",
    "Subject",
    "TcbAtLeast",
    "Tdx",
    "Template",
    "Tpm",
    "VerifierService",
    "Weights",
    "all_of",
    "any_of",
    "everywhere",
    "name_of",
    "services_of",
]

"""The roots that evidence may end in: the vendors', pinned by fingerprint, and simulated ones that a person made.

A simulated root is another type, not another value: `ProductionRoots` cannot hold one, and claims that rest on one say
so. No policy for production accepts these, and there is no setting that would make it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from confide.attest.claims import RootKind
from confide.attest.evidence import Family

INTEL_SGX_ROOT_SHA256: Final = bytes.fromhex("44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3")
"""`CN=Intel SGX Root CA`, P-256, 2018 to 2049, which signs for SGX and TDX alike.

Source: https://certificates.trustedservices.intel.com/Intel_SGX_Provisioning_Certification_RootCA.cer
"""


@dataclass(frozen=True)
class ProductionRoots:
    """The vendors' roots: SHA-256 fingerprints of DER certificates, below, each with its source."""

    @property
    def kind(self) -> RootKind:
        """Production."""
        return RootKind.PRODUCTION


@dataclass(frozen=True)
class SimulatedRoots:
    """Roots that were made for tests: the DER certificate for each family."""

    certificates: Mapping[Family, bytes] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def kind(self) -> RootKind:
        """Simulated."""
        return RootKind.SIMULATED


Roots = ProductionRoots | SimulatedRoots

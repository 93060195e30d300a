"""The roots that evidence may end in: the vendors', pinned by fingerprint, and simulated ones that a person made.

A simulated root is another type, not another value: `ProductionRoots` cannot hold one, and claims that rest on one say
so. No policy for production accepts these, and there is no setting that would make it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from types import MappingProxyType
from typing import Final

from confide.attest.claims import RootKind
from confide.attest.evidence import Family

INTEL_SGX_ROOT_SHA256: Final = bytes.fromhex("44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3")
"""`CN=Intel SGX Root CA`, P-256, 2018 to 2049, which signs for SGX and TDX alike.

Source: https://certificates.trustedservices.intel.com/Intel_SGX_Provisioning_Certification_RootCA.cer
"""
VENDOR_ROOTS: Final[Mapping[Family, frozenset[str]]] = MappingProxyType(
    {
        # AMD's root key of each product line, ARK-Milan (EPYC 7003), ARK-Genoa (EPYC 9004 and 8004, with Bergamo and
        # Siena) and ARK-Turin (EPYC 9005): https://kdsintf.amd.com/vcek/v1/{Milan,Genoa,Turin}/cert_chain, the last
        # certificate of each. VLEKs end in the same roots.
        Family.SNP: frozenset(
            {
                "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd",
                "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1",
                "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a",
            }
        ),
        # NVIDIA Device Identity CA, the last certificate of the chain that a Hopper GPU itself hands out.
        Family.NVIDIA: frozenset({"102bf659d5419614c9d8e6aecebc80454eb26b1df6a769ac720b9a690b167b48"}),
        # CN=aws.nitro-enclaves, G1, P-384, 2019 to 2049, of AWS's commercial partition (others have their own roots):
        # https://aws-nitro-enclaves.amazonaws.com/AWS_NitroEnclaves_Root-G1.zip, with the fingerprint as AWS's
        # documentation has it, https://docs.aws.amazon.com/enclaves/latest/user/verify-root.html.
        Family.NITRO: frozenset({"641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b"}),
    }
)
"""SHA-256 fingerprints (hex) of the vendors' self-signed certificates in DER."""

VENDOR_REFERENCE_ROOTS: Final[Mapping[Family, frozenset[str]]] = MappingProxyType(
    {
        # NVIDIA CoRIM signing Root CA, P-384, 2023 to 2053, as NVIDIA's own verifier carries it: certs/
        # verifier_RIM_root.pem of nv-local-gpu-verifier 2.7.3 (PyPI) and of github.com/NVIDIA/nvtrust.
        Family.NVIDIA: frozenset({"12977b5115acb0381179279fffeb5a8c4d264971ebb32298023a465fa41df5d1"}),
    }
)
"""The same of the roots under which vendors sign reference values. They certify no device, and those no values."""


@dataclass(frozen=True)
class ProductionRoots:
    """The vendors' roots, and for TPMs, which have no one vendor, what the policy's author accepts.

    attestation_keys: SHA-256 (hex) of the SubjectPublicKeyInfo (DER) of each attestation key that was enrolled by
    hand, after seeing that it is a restricted signing key of a real TPM. attestation_key_roots: SHA-256 (hex) of root
    certificates (DER) whose owners certify only such keys, a cloud's vTPM authority for example.
    """

    attestation_keys: frozenset[str] = frozenset()
    attestation_key_roots: frozenset[str] = frozenset()

    @property
    def kind(self) -> RootKind:
        """Production."""
        return RootKind.PRODUCTION

    def trusts(self, family: Family, certificate: bytes) -> bool:
        """Whether this certificate (DER) is a root for this family."""
        accepted = self.attestation_key_roots if family is Family.TPM else VENDOR_ROOTS.get(family, frozenset())
        return sha256(certificate).hexdigest() in accepted

    def trusts_reference(self, family: Family, certificate: bytes) -> bool:
        """Whether this certificate (DER) is a root for reference values of this family."""
        return sha256(certificate).hexdigest() in VENDOR_REFERENCE_ROOTS.get(family, frozenset())

    def trusts_key(self, public_key: bytes) -> bool:
        """Whether this attestation key (SubjectPublicKeyInfo, DER) was enrolled."""
        return sha256(public_key).hexdigest() in self.attestation_keys


@dataclass(frozen=True)
class SimulatedRoots:
    """Roots that were made for tests: the DER certificate for each family; attestation keys as above.

    references: the same for reference values.
    """

    certificates: Mapping[Family, bytes] = field(default_factory=lambda: MappingProxyType({}))
    attestation_keys: frozenset[str] = frozenset()
    references: Mapping[Family, bytes] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def kind(self) -> RootKind:
        """Simulated."""
        return RootKind.SIMULATED

    def trusts(self, family: Family, certificate: bytes) -> bool:
        """Whether this certificate (DER) is the root made for this family."""
        return self.certificates.get(family) == certificate

    def trusts_reference(self, family: Family, certificate: bytes) -> bool:
        """Whether this certificate (DER) is the root made for reference values of this family."""
        return self.references.get(family) == certificate

    def trusts_key(self, public_key: bytes) -> bool:
        """Whether this attestation key (SubjectPublicKeyInfo, DER) was enrolled."""
        return sha256(public_key).hexdigest() in self.attestation_keys


Roots = ProductionRoots | SimulatedRoots


@dataclass(frozen=True)
class ReferenceRoots:
    """The roots for reference values among these roots, for whatever walks a chain."""

    roots: Roots

    def trusts(self, family: Family, certificate: bytes) -> bool:
        """Whether this certificate (DER) is a root for reference values of this family."""
        return self.roots.trusts_reference(family, certificate)

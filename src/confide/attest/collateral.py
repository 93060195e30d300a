"""What a verifier needs besides the evidence, all of it signed by the vendors: certificates, CRLs, TCB lists."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class Collateral:
    """Documents by name. The names of each family stand in its module.

    dcap: the JSON of QuoteCollateralV3. snp: vcek or vlek (DER), chain (PEM: ASK or ASVK, and ARK), crl (DER).
    azure: the processor's, as snp or dcap. nitro: none. tpm: ak (DER or PEM public key or certificate), chain (PEM),
    crl (DER). nvidia: chain (PEM, leaf first), crl (DER).
    composite: nothing of its own, but one collateral for each member of the evidence, in the same order, in members.
    """

    documents: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))
    members: tuple["Collateral", ...] = ()

"""What a verifier needs besides the evidence, all of it signed by the vendors: certificates, CRLs, TCB lists."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True)
class Provenance:
    """Who chose the collateral, and what the verifier knows besides. Never part of what a workload sends.

    sent: the workload chose it, so that it may be an older one that is still valid. fetched: when the verifier fetched
    the oldest document of it. newest_evaluation: the highest tcbEvaluationDataNumber that the verifier has fetched for
    this platform.
    """

    sent: bool = False
    fetched: datetime | None = None
    newest_evaluation: int | None = None


OWN: Final = Provenance()
"""Given by whoever verifies."""


@dataclass(frozen=True)
class Collateral:
    """Documents by name. The names of each family stand in its module.

    dcap: the JSON of QuoteCollateralV3. snp: vcek or vlek (DER), chain (PEM: ASK or ASVK, and ARK), crl (DER).
    azure: the processor's, as snp or dcap. nitro: none. tpm: ak (DER or PEM public key or certificate), chain (PEM),
    crl (DER). nvidia: chain (PEM, leaf first), driver-rim and vbios-rim (XML), ocsp (DER), crl (DER).
    composite: nothing of its own, but one collateral for each member of the evidence, in the same order, in members.
    Of any, and of a composite itself: release, scores and training, see the modules of these names.
    """

    documents: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))
    members: tuple["Collateral", ...] = ()
    provenance: Provenance = OWN

"""One door to all families: evidence in, claims or a verdict out. Opens no socket and reads no clock."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from types import MappingProxyType
from typing import Final, Protocol

from confide.attest.appraise import appraise
from confide.attest.claims import Claims
from confide.attest.collateral import Collateral
from confide.attest.evidence import MAX_EVIDENCE_BYTES, Evidence, Family
from confide.attest.policy import AnyPolicy
from confide.attest.result import AttestationResult
from confide.attest.roots import Roots
from confide.attest.statement import Statement
from confide.errors import MalformedEvidence, WrongCollateral

_MODULES: Final[Mapping[Family, str]] = MappingProxyType(
    {
        Family.SGX: "sgx",
        Family.TDX: "tdx",
        Family.SNP: "snp",
        Family.TPM: "tpm",
        Family.NVIDIA: "nvidia",
        Family.AZURE: "azure",
        Family.NITRO: "nitro",
        Family.COMPOSITE: "composite",
    }
)


class _Verify(Protocol):
    def __call__(self, evidence: Evidence, collateral: Collateral, roots: Roots, now: datetime) -> Claims: ...


@dataclass(frozen=True)
class Verifier:
    """Verifies evidence of every family under the roots given once."""

    roots: Roots

    def appraise(
        self,
        evidence: Evidence,
        collateral: Collateral,
        policy: AnyPolicy,
        now: datetime,
        *,
        statement: Statement | None = None,
    ) -> AttestationResult:
        """The verdict of a policy at `now`. Evidence that does not hold is a verdict too; nothing is raised for it.

        statement: what the report data must sign, where the policy asks for that. ValueError as for `verify`.
        """
        return appraise(self, evidence, collateral, policy, now, statement=statement)

    def verify(self, evidence: Evidence, collateral: Collateral, now: datetime) -> Claims:
        """The claims of evidence that holds at `now`; an AttestationError that says why it does not.

        `now` must know its time zone (ValueError). A family's module is imported when it is first needed.
        """
        if now.tzinfo is None:
            raise ValueError("The time of appraisal has no time zone; give datetime.now(UTC), for example.")
        if _size(evidence) > MAX_EVIDENCE_BYTES:
            raise MalformedEvidence(f"The evidence is larger than {MAX_EVIDENCE_BYTES} bytes; send the evidence alone.")
        if evidence.family not in _MODULES:
            raise WrongCollateral(
                f"A {evidence.family} is a service's word, not evidence to verify; appraise it with a policy that "
                "names the service (verifier-service)."
            )
        verify: _Verify = import_module(f"confide.attest.families.{_MODULES[evidence.family]}").verify
        return verify(evidence, collateral, self.roots, now)


def _size(evidence: Evidence) -> int:
    """Bytes of the evidence, without its members, which are verified one by one."""
    return len(evidence.raw) + sum(len(part) for part in evidence.parts.values())

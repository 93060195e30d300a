"""From evidence to a verdict: verify it here or take a named service's word, then hold the claims against a policy."""

from datetime import datetime
from typing import Protocol

from confide.attest.claims import Claims
from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence, Family
from confide.attest.policy import AnyPolicy
from confide.attest.policy import appraise as appraise_claims
from confide.attest.release import RELEASE
from confide.attest.result import AttestationResult
from confide.attest.statement import Statement
from confide.attest.tokens import verify_token
from confide.errors import AttestationError


class Verifies(Protocol):
    """What turns evidence into claims, or raises an AttestationError."""

    def verify(self, evidence: Evidence, collateral: Collateral, now: datetime) -> Claims:
        """The verified claims."""
        ...


def appraise(
    verifier: Verifies,
    evidence: Evidence,
    collateral: Collateral,
    policy: AnyPolicy,
    now: datetime,
    *,
    statement: Statement | None = None,
) -> AttestationResult:
    """The verdict. Evidence that does not hold is a verdict too; nothing is raised for it."""
    found: Claims | AttestationError
    try:
        found = verified(verifier, evidence, collateral, policy, now)
    except AttestationError as error:
        found = error
    return appraise_claims(
        found,
        policy,
        now,
        family=evidence.family,
        statement=statement,
        provenance=collateral.provenance,
        release=collateral.documents.get(RELEASE),
    )


def verified(
    verifier: Verifies, evidence: Evidence, collateral: Collateral, policy: AnyPolicy, now: datetime
) -> Claims:
    """The claims of evidence, or of a token by a service that the policy names; an AttestationError that says why not.

    The policy's other requirements are not looked at.
    """
    if evidence.family is Family.TOKEN:
        return verify_token(evidence.raw, policy.services(), now)
    return verifier.verify(evidence, collateral, now)

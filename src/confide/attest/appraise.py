"""From evidence to a verdict: verify it here or take a named service's word, then hold the claims against a policy."""

from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Protocol

from confide.attest.certificates import AnyCertificate
from confide.attest.claims import Claims
from confide.attest.collateral import OWN, Collateral, Provenance
from confide.attest.evidence import Evidence, Family
from confide.attest.policy import AnyPolicy, SimulatedPolicy
from confide.attest.policy import appraise as appraise_claims
from confide.attest.release import RELEASE
from confide.attest.requirements import AnyRequirement, Fresh, Model
from confide.attest.result import AttestationResult
from confide.attest.scores import SCORES
from confide.attest.statement import Statement
from confide.attest.tokens import verify_token
from confide.attest.training import TRAINING
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
        scores=collateral.documents.get(SCORES),
        training=collateral.documents.get(TRAINING),
        witness=partial(appraise_certificate, verifier, policy),
    )


def appraise_certificate(
    verifier: Verifies,
    policy: AnyPolicy,
    certificate: AnyCertificate,
    signer: tuple[AnyRequirement, ...],
    at: datetime | None = None,
) -> tuple[AttestationResult, ...]:
    """The verdict on each piece of evidence in a certificate, in order: made for its run and its model, by whoever
    `signer` asks for.

    policy: whose kind and exceptions count. at: instead of when the certificate says that it was made, which must lie
    in the validity of its collateral. Whoever made the run chose that collateral, so that for Intel's a policy names
    the evaluation; a simulated machine is its own vendor.
    """
    run = certificate.run
    asked = replace(policy, requirements=(*signer, Fresh(run.digest), Model(run.stated_model)), version="")
    provenance = OWN if isinstance(policy, SimulatedPolicy) else Provenance(sent=True)
    found = []
    for attested, made in certificate.testimonies:
        collateral = replace(attested.collateral.thaw(), provenance=provenance)
        evidence, statement = attested.evidence.thaw(), attested.statement
        found.append(appraise(verifier, evidence, collateral, asked, at or made, statement=statement))
    return tuple(found)


def verified(
    verifier: Verifies, evidence: Evidence, collateral: Collateral, policy: AnyPolicy, now: datetime
) -> Claims:
    """The claims of evidence, or of a token by a service that the policy names; an AttestationError that says why not.

    The policy's other requirements are not looked at.
    """
    if evidence.family is Family.TOKEN:
        return verify_token(evidence.raw, policy.services(), now)
    return verifier.verify(evidence, collateral, now)

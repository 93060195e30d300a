"""Policies: what evidence must show before anything is trusted with it.

A policy adds requirements to what every policy asks for (`defaults`), and takes away only what its exceptions name. A
`Policy` is for production and always asks for the vendors' roots; nothing that it is made of can take that away.
`SimulatedPolicy` is another type for tests and demonstrations: only simulated roots satisfy it, and wherever it is
printed it says so.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final, final

from confide.attest.check import Check, check
from confide.attest.claims import Claims, RootKind
from confide.attest.collateral import OWN, Provenance
from confide.attest.defaults import NO_EXCEPTIONS, Exceptions, default_checks, judged
from confide.attest.evidence import Family
from confide.attest.requirements import (
    AnyRequirement,
    ByCertificate,
    Default,
    NotDebug,
    Snp,
    Subject,
    TcbAtLeast,
    VerifierService,
    Witness,
    everywhere,
    name_of,
    services_of,
)
from confide.attest.result import AttestationResult
from confide.attest.statement import Statement
from confide.errors import AttestationError, InvalidPolicy

_HERE: Final = "verified here"


@final
@dataclass(frozen=True)
class Policy:
    """All of these requirements, what every policy asks for, and a vendor's root.

    version: a name that a workload can state. InvalidPolicy where an exception contradicts a requirement.
    """

    requirements: tuple[AnyRequirement, ...] = ()
    version: str = ""
    exceptions: Exceptions = NO_EXCEPTIONS

    def __post_init__(self) -> None:
        object.__setattr__(self, "requirements", _without_defaults(self.requirements, self.exceptions))

    @classmethod
    def all_of(
        cls, *requirements: AnyRequirement, version: str = "", exceptions: Exceptions = NO_EXCEPTIONS
    ) -> "Policy":
        """A policy that asks for these, and for a vendor's root in any case."""
        return cls(requirements, version, exceptions)

    def checks(self, subject: Subject) -> Iterator[Check]:
        """Every check, the root first."""
        return _checks(self, RootKind.PRODUCTION, subject)

    def services(self) -> tuple[VerifierService, ...]:
        """The verification services whose word it takes."""
        return tuple(services_of(self.requirements))

    def __str__(self) -> str:
        return _summary("production-root", self.requirements)


@final
@dataclass(frozen=True)
class SimulatedPolicy:
    """The same for tests and demonstrations: satisfied by simulated roots, and by nothing else."""

    requirements: tuple[AnyRequirement, ...] = ()
    version: str = ""
    exceptions: Exceptions = NO_EXCEPTIONS

    def __post_init__(self) -> None:
        object.__setattr__(self, "requirements", _without_defaults(self.requirements, self.exceptions))

    @classmethod
    def all_of(
        cls, *requirements: AnyRequirement, version: str = "", exceptions: Exceptions = NO_EXCEPTIONS
    ) -> "SimulatedPolicy":
        """A policy that asks for these, and for a simulated root in any case."""
        return cls(requirements, version, exceptions)

    def checks(self, subject: Subject) -> Iterator[Check]:
        """Every check, the root first."""
        return _checks(self, RootKind.SIMULATED, subject)

    def services(self) -> tuple[VerifierService, ...]:
        """None: a service vouches for real hardware."""
        return ()

    def __str__(self) -> str:
        return "SIMULATED, proves nothing about any hardware: " + _summary("simulated-root", self.requirements)


AnyPolicy = Policy | SimulatedPolicy


def appraise(
    found: Claims | AttestationError,
    policy: AnyPolicy,
    now: datetime,
    *,
    family: Family | None = None,
    statement: Statement | None = None,
    provenance: Provenance = OWN,
    release: bytes | None = None,
    scores: bytes | None = None,
    training: bytes | None = None,
    witness: Witness | None = None,
) -> AttestationResult:
    """The verdict on verified claims, or on evidence that could not be verified: then its one check is the error.

    family: that of the evidence, for an error has none. statement: what the workload says of itself, if it does.
    provenance: of the collateral that the claims were verified with. release, scores, training: what came along of
    that name. witness: see `Subject`.
    """
    exceptions = policy.exceptions.sentences()
    if isinstance(found, AttestationError):
        failed = check(found.code, "evidence that can be verified", str(found), ok=False)
        return AttestationResult(family or Family.COMPOSITE, now, (failed,), None, exceptions)
    checks = tuple(policy.checks(Subject(found, now, statement, provenance, release, scores, training, witness)))
    return AttestationResult(family or found.family, now, checks, found, exceptions)


def _checks(policy: AnyPolicy, root: RootKind, subject: Subject) -> Iterator[Check]:
    yield from default_checks(subject, root, policy.exceptions, _snp_minimum(policy, subject))
    seen = subject.claims.verified_by or _HERE
    allowed = (_HERE, *(service.identity for service in services_of(policy.requirements)))
    yield check("verified-by", " or ".join(allowed), seen, seen in allowed, "RFC 9334, 5")
    for requirement in policy.requirements:
        for found in requirement.checks(subject):
            yield judged(found, policy.exceptions)


def _snp_minimum(policy: AnyPolicy, subject: Subject) -> bool | None:
    """Whether the AMD versions that the policy names anywhere are met; None where it names none."""
    named = [
        one.min_tcb
        for one in everywhere(policy.requirements)
        if isinstance(one, Snp) and one.min_tcb is not None and one.min_tcb.says_enough
    ]
    if not named:
        return None
    return any(all(least.met_by(claims) for claims in subject.of(Family.SNP)) for least in named)


def _without_defaults(requirements: tuple[AnyRequirement, ...], exceptions: Exceptions) -> tuple[AnyRequirement, ...]:
    """They are part of the policy anyway, and then two policies that mean the same are equal.

    Whoever signs a certificate is held to the same exceptions, so that what contradicts them is found here and not when
    one comes.
    """
    for rule in (one for one in everywhere(requirements) if isinstance(one, ByCertificate)):
        _without_defaults(rule.signer, exceptions)
    named = [one for one in requirements if isinstance(one, Default)]
    if exceptions.allow_debug and any(isinstance(one, NotDebug) for one in named):
        raise InvalidPolicy("The policy says both not-debug and allow-debug; decide for one of them.")
    if (exceptions.allow_tcb or exceptions.grace) and any(isinstance(one, TcbAtLeast) for one in named):
        raise InvalidPolicy("The policy says both tcb-at-least and allow-tcb or grace; decide for one of them.")
    return tuple(one for one in requirements if not isinstance(one, Default))


def _summary(root: str, requirements: tuple[AnyRequirement, ...]) -> str:
    return " and ".join((root, "the safe defaults", *map(name_of, requirements)))

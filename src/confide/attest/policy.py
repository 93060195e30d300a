"""Policies: what evidence must show before anything is trusted with it.

A `Policy` is for production and always asks for the vendors' roots; nothing that it is made of can take that away.
`SimulatedPolicy` is another type for tests and demonstrations: only simulated roots satisfy it, and wherever it is
printed it says so.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, final

from confide.attest.check import Check, Outcome, check
from confide.attest.claims import Claims, RootKind
from confide.attest.evidence import Family
from confide.attest.requirements import (
    AnyRequirement,
    CollateralValid,
    NotDebug,
    ProductionRoot,
    Subject,
    TcbAtLeast,
    VerifierService,
    name_of,
    roots_check,
    services_of,
)
from confide.attest.result import AttestationResult
from confide.attest.statement import Statement
from confide.errors import AttestationError

_HERE: Final = "verified here"
DEFAULT: Final = (NotDebug(), TcbAtLeast("UpToDate"), CollateralValid())
"""What is asked for where nothing else is said, besides a genuine root."""


@final
@dataclass(frozen=True)
class Policy:
    """All of these requirements, and a vendor's root. version: a name that a workload can state."""

    requirements: tuple[AnyRequirement, ...] = DEFAULT
    version: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "requirements", _without_root(self.requirements))

    @classmethod
    def all_of(cls, *requirements: AnyRequirement, version: str = "") -> "Policy":
        """A policy that asks for these, and for a vendor's root in any case."""
        return cls(requirements, version)

    def checks(self, subject: Subject) -> Iterator[Check]:
        """Every check, the root first."""
        yield roots_check(subject, RootKind.PRODUCTION)
        yield from _checks(self.requirements, subject)

    def services(self) -> tuple[VerifierService, ...]:
        """The verification services whose word it takes."""
        return tuple(services_of(self.requirements))

    def __str__(self) -> str:
        return _summary("production-root", self.requirements)


@final
@dataclass(frozen=True)
class SimulatedPolicy:
    """The same for tests and demonstrations: satisfied by simulated roots, and by nothing else."""

    requirements: tuple[AnyRequirement, ...] = DEFAULT
    version: str = ""

    @classmethod
    def all_of(cls, *requirements: AnyRequirement, version: str = "") -> "SimulatedPolicy":
        """A policy that asks for these, and for a simulated root in any case."""
        return cls(requirements, version)

    def checks(self, subject: Subject) -> Iterator[Check]:
        """Every check, the root first."""
        yield roots_check(subject, RootKind.SIMULATED)
        yield from _checks(self.requirements, subject)

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
) -> AttestationResult:
    """The verdict on verified claims, or on evidence that could not be verified: then its one check is the error.

    family: that of the evidence, for an error has none. statement: what the workload says of itself, if it does.
    """
    if isinstance(found, AttestationError):
        failed = check(found.code, "evidence that can be verified", str(found), ok=False)
        return AttestationResult(family or Family.COMPOSITE, now, (failed,), None)
    checks = tuple(policy.checks(Subject(found, now, statement)))
    return AttestationResult(family or found.family, now, checks, found)


def _checks(requirements: tuple[AnyRequirement, ...], subject: Subject) -> Iterator[Check]:
    seen = subject.claims.verified_by or _HERE
    allowed = (_HERE, *(service.identity for service in services_of(requirements)))
    yield check("verified-by", " or ".join(allowed), seen, seen in allowed)
    speaker = subject.speaker
    yield check(
        "speaks-for-a-workload", "yes", f"{speaker.family}: {'yes' if speaker.speaks else 'no'}", speaker.speaks
    )
    for found in dict.fromkeys(one for claims in subject.claims.everyone() for one in claims.checks):
        yield replace(found, outcome=Outcome.FAIL) if found.outcome is Outcome.SKIPPED else found
    for requirement in requirements:
        yield from requirement.checks(subject)


def _without_root(requirements: tuple[AnyRequirement, ...]) -> tuple[AnyRequirement, ...]:
    """It is part of the policy anyway, and then two policies that mean the same are equal."""
    return tuple(one for one in requirements if not isinstance(one, ProductionRoot))


def _summary(root: str, requirements: tuple[AnyRequirement, ...]) -> str:
    return " and ".join((root, *map(name_of, requirements)))

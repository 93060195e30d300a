"""Requirements made of others, and the list of all that a policy can name."""

from collections.abc import Iterable, Iterator

from confide.attest.check import Check, check
from confide.attest.requirements.base import Requirement, Subject, name_of
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
from confide.attest.requirements.hardware import Azure, Nitro, Nvidia, Sgx, Snp, Tdx, Tpm
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
from confide.errors import InvalidPolicy


class AllOf(Requirement, frozen=True, tag="all-of"):
    """Every one of these."""

    of: tuple["AnyRequirement", ...]

    def __post_init__(self) -> None:
        if not self.of:
            raise InvalidPolicy("all-of needs something to ask for; name at least one requirement.")

    def sentences(self) -> Iterator[str]:
        for requirement in self.of:
            yield from requirement.sentences()

    def checks(self, subject: Subject) -> Iterator[Check]:
        for requirement in self.of:
            yield from requirement.checks(subject)


class AnyOf(Requirement, frozen=True, tag="any-of"):
    """At least one of these. The first that holds shows its checks; if none does, one check says why of each."""

    of: tuple["AnyRequirement", ...]

    def __post_init__(self) -> None:
        if not self.of:
            raise InvalidPolicy("any-of needs something to choose from; name at least one requirement.")
        for requirement in self.of:
            if isinstance(requirement, Default):
                raise InvalidPolicy(
                    f"{name_of(requirement)} is part of every policy, so an any-of with it asks for nothing; "
                    "leave it out."
                )

    def sentences(self) -> Iterator[str]:
        yield "either " + ", or ".join(" and ".join(one.sentences()) or name_of(one) for one in self.of)

    def checks(self, subject: Subject) -> Iterator[Check]:
        expected = " or ".join(name_of(requirement) for requirement in self.of)
        outcomes = [tuple(requirement.checks(subject)) for requirement in self.of]
        for requirement, outcome in zip(self.of, outcomes, strict=True):
            if outcome and all(one.passed for one in outcome):
                yield check("any-of", expected, name_of(requirement), ok=True)
                yield from outcome
                return
        reasons = (f"{name_of(one)}: {_reasons(checks)}" for one, checks in zip(self.of, outcomes, strict=True))
        yield check("any-of", expected, "; ".join(reasons), ok=False)


AnyRequirement = (
    Sgx
    | Tdx
    | Snp
    | Tpm
    | Azure
    | Nitro
    | Nvidia
    | ProductionRoot
    | NotDebug
    | TcbAtLeast
    | CollateralValid
    | NoAdvisory
    | PpidIn
    | FmspcIn
    | ChipIdIn
    | VerifierService
    | ReportData
    | Fresh
    | Model
    | PolicyVersion
    | SignedRelease
    | ConfideVersion
    | ContextAtLeast
    | Engine
    | Environment
    | NoAdapters
    | NoEgress
    | NoUpstream
    | Options
    | Quantization
    | SelfTest
    | Template
    | Weights
    | AllOf
    | AnyOf
)


def any_of(*requirements: AnyRequirement) -> AnyOf:
    """At least one of these."""
    return AnyOf(requirements)


def all_of(*requirements: AnyRequirement) -> AllOf:
    """Every one of these: for use inside any_of."""
    return AllOf(requirements)


def everywhere(requirements: Iterable[AnyRequirement]) -> Iterator[AnyRequirement]:
    """These requirements, and those inside them."""
    for requirement in requirements:
        yield requirement
        if isinstance(requirement, AllOf | AnyOf):
            yield from everywhere(requirement.of)


def services_of(requirements: Iterable[AnyRequirement]) -> Iterator[VerifierService]:
    """The verification services that are named anywhere in these."""
    return (one for one in everywhere(requirements) if isinstance(one, VerifierService))


def _reasons(checks: Iterable[Check]) -> str:
    return ", ".join(one.code for one in checks if not one.passed) or "nothing to check"

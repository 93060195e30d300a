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
from confide.attest.requirements.hardware import Nvidia, Sgx, Snp, Tdx, Tpm
from confide.attest.requirements.platform import (
    ChipIdIn,
    CollateralValid,
    NoAdvisory,
    NotDebug,
    PpidIn,
    ProductionRoot,
    TcbAtLeast,
    VerifierService,
)
from confide.attest.requirements.workload import Fresh, Model, PolicyVersion, ReportData
from confide.errors import InvalidPolicy


class AllOf(Requirement, frozen=True, tag="all-of"):
    """Every one of these."""

    of: tuple["AnyRequirement", ...]

    def checks(self, subject: Subject) -> Iterator[Check]:
        for requirement in self.of:
            yield from requirement.checks(subject)


class AnyOf(Requirement, frozen=True, tag="any-of"):
    """At least one of these. The first that holds shows its checks; if none does, one check says why of each."""

    of: tuple["AnyRequirement", ...]

    def __post_init__(self) -> None:
        if not self.of:
            raise InvalidPolicy("any_of needs something to choose from; name at least one requirement.")

    def checks(self, subject: Subject) -> Iterator[Check]:
        expected = " or ".join(name_of(requirement) for requirement in self.of)
        outcomes = [tuple(requirement.checks(subject)) for requirement in self.of]
        for requirement, outcome in zip(self.of, outcomes, strict=True):
            if outcome and all(check.passed for check in outcome):
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
    | Nvidia
    | ProductionRoot
    | NotDebug
    | TcbAtLeast
    | CollateralValid
    | NoAdvisory
    | PpidIn
    | ChipIdIn
    | VerifierService
    | ReportData
    | Fresh
    | Model
    | PolicyVersion
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


def services_of(requirements: Iterable[AnyRequirement]) -> Iterator[VerifierService]:
    """The verification services that are named anywhere in these."""
    for requirement in requirements:
        if isinstance(requirement, VerifierService):
            yield requirement
        elif isinstance(requirement, AllOf | AnyOf):
            yield from services_of(requirement.of)


def _reasons(checks: Iterable[Check]) -> str:
    return ", ".join(check.code for check in checks if not check.passed) or "nothing to check"

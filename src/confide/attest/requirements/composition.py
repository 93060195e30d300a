"""Requirements made of others, and the list of all that a policy can name."""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from confide.attest.check import Check, check
from confide.attest.requirements.base import ABSENT, Requirement, Subject, day, name_of, period, require_hex
from confide.attest.requirements.configuration import (
    ConfideVersion,
    ContextAtLeast,
    Corpus,
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
from confide.attest.scores import Metric, Role, ScoreCertificate, read_scores, score_checks
from confide.errors import AttestationError, InvalidPolicy

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
Tells = Callable[[Requirement], bool]


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


class ScoreAtLeast(Requirement, frozen=True, tag="score-at-least"):
    """The model that the signed statement names has a certificate of such a score, by somebody whom `signer` accepts.

    task: SHA-256 of the task file, or its name, which is anybody's to give and so takes data_owner: the public key of
    the owner of the data, who approved the run. signer: what the evidence of whoever measured must show, besides what
    every policy asks for; measured code that is named, in any case. at_most, at_least: whichever of them the metric
    has. max_age: how long ago it may have been measured, such as 365d. The policy's exceptions count for both.
    """

    task: str
    metric: Metric
    signer: tuple["AnyRequirement", ...]
    at_most: float | None = None
    at_least: float | None = None
    data_owner: str = ""
    max_age: str = ""

    def __post_init__(self) -> None:
        wanted, other = (self.at_most, self.at_least) if self.metric.less_is_better else (self.at_least, self.at_most)
        if wanted is None or other is not None or not (math.isfinite(wanted) and wanted >= 0):
            limit = "at_most" if self.metric.less_is_better else "at_least"
            raise InvalidPolicy(f"score-at-least takes {limit} for {self.metric}, a number from 0 on; name that alone.")
        if not self.task:
            raise InvalidPolicy("score-at-least names a task, by the digest of its file; name one.")
        if self.data_owner:
            require_hex("data_owner", self.data_owner, 32)
        elif not _DIGEST.fullmatch(self.task):
            raise InvalidPolicy(
                "Anybody can give a task file any name; name the task by its digest, or in data_owner the key of "
                "whoever has to have approved the run."
            )
        if self.max_age:
            period(self.max_age)
        if any(isinstance(one, ScoreAtLeast) for one in everywhere(self.signer)):
            raise InvalidPolicy("Whoever measures needs no score itself; leave score-at-least out of signer.")
        if not all_ways(self.signer, measures_code):
            raise InvalidPolicy(
                "score-at-least believes nobody by their own word: name in signer the measured code that may measure "
                "(mrtd, measurement, mrenclave)."
            )

    def sentences(self) -> Iterator[str]:
        whose = f" of the data's owner {self.data_owner[:16]}..." if self.data_owner else ""
        ago = f", at most {self.max_age} ago" if self.max_age else ""
        signer = " and ".join(sentence for one in self.signer for sentence in one.sentences())
        yield f"{self._limit} on {self.task[:64]}{whose}, certified{ago} where there was {signer}"

    def checks(self, subject: Subject) -> Iterator[Check]:
        seen, ok = self._look(subject)
        yield check("score-at-least", f"{self._limit} on {self.task}, certified", seen, ok)

    @property
    def _limit(self) -> str:
        bound = f"most {self.at_most:g}" if self.at_most is not None else f"least {self.at_least:g}"
        return f"{self.metric} of at {bound}"

    def _look(self, subject: Subject) -> tuple[str, bool]:
        """What was seen, and whether one certificate satisfies all of this."""
        statement = subject.signed_statement
        if statement is None:
            return "no statement of the model that the hardware signed", False
        if subject.scores is None:
            return "no certificate came with the evidence", False
        try:
            certificates = read_scores(subject.scores)
        except AttestationError as error:
            return f"{error.code}: {error}", False
        reasons = [self._lacking(one, statement.model_digest, subject) for one in certificates]
        for one, reason in zip(certificates, reasons, strict=True):
            if not reason:
                score = one.predicate.score
                return f"{score.value:g} ({score.low:g} to {score.high:g}), {day(one.predicate.finished)}", True
        return "; ".join(reasons) or ABSENT, False

    def _lacking(self, certificate: ScoreCertificate, model: str, subject: Subject) -> str:
        """Why a certificate does not satisfy this; empty where it does."""
        predicate = certificate.predicate
        if predicate.run.model != model:
            return f"of another model, {predicate.run.model[:16]}..."
        # A file's name can look like a digest, and is never taken for one.
        named = predicate.run.dataset if _DIGEST.fullmatch(self.task) else predicate.task
        if named != self.task or predicate.run.metric is not self.metric:
            return f"of {predicate.run.metric} on {predicate.task}, {predicate.run.dataset[:16]}..."
        if self.data_owner and certificate.approved_by(Role.DATA) != self.data_owner:
            return "without the approval of the data's owner"
        if self.max_age and subject.now - predicate.finished > period(self.max_age):
            return f"of {day(predicate.finished)}"
        if not self._suffices(predicate.score.value):
            return f"{predicate.score.value:g}"
        if subject.witness is None:
            return "nobody here appraises who measured"
        evidence = subject.witness(certificate, self.signer)
        checks = score_checks(certificate, evidence, subject.now)
        failed = [*evidence.failures, *(one for one in checks if not one.passed)]
        if evidence.trusted and not failed:
            return ""
        return f"by somebody who is not accepted: {', '.join(one.code for one in failed)}"

    def _suffices(self, value: float) -> bool:
        return value <= self.at_most if self.at_most is not None else value >= (self.at_least or 0)


AnyRequirement = (
    ScoreAtLeast
    | Sgx
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
    | Corpus
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


def measures_code(one: Requirement) -> bool:
    """Whether this asks for measured code that it names."""
    match one:
        case Sgx():
            return one.mrenclave is not None or one.mrsigner is not None
        case Tdx():
            return one.mrtd is not None or one.rtmrs is not None
        case Snp():
            return one.measurement is not None or one.id_key_digest is not None or one.author_key_digest is not None
        case Tpm() | Nitro():
            return one.pcrs is not None
        case _:
            return False


def all_ways(requirements: Iterable[AnyRequirement], tells: Tells) -> bool:
    """Whether this is asked for whichever alternative evidence takes."""
    return any(_every_way(one, tells) for one in requirements)


def _every_way(one: AnyRequirement, tells: Tells) -> bool:
    if isinstance(one, AllOf):
        return all_ways(one.of, tells)
    if isinstance(one, AnyOf):
        return all(_every_way(choice, tells) for choice in one.of)
    return tells(one)


def services_of(requirements: Iterable[AnyRequirement]) -> Iterator[VerifierService]:
    """The verification services that are named anywhere in these."""
    return (one for one in everywhere(requirements) if isinstance(one, VerifierService))


def _reasons(checks: Iterable[Check]) -> str:
    return ", ".join(one.code for one in checks if not one.passed) or "nothing to check"

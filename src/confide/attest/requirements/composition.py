"""Requirements made of others, the time until which one may count, and the list of all that a policy can name."""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Final, NamedTuple

from confide.attest.certificates import AnyCertificate, Role, certificate_checks
from confide.attest.check import Check, check
from confide.attest.requirements.base import ABSENT, Requirement, Subject, day, name_of, period, require_hex
from confide.attest.requirements.configuration import (
    ConfideVersion,
    ContextAtLeast,
    Corpus,
    Engine,
    Environment,
    Graph,
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
from confide.attest.scores import Metric, ScoreCertificate
from confide.attest.training import TrainingCertificate
from confide.errors import AttestationError, InvalidPolicy

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_MOMENT: Final = "%Y-%m-%dT%H:%M:%SZ"
Tells = Callable[[Requirement], bool]


class NotAfter(Requirement, frozen=True, tag="not-after"):
    """Appraisal at this time or before: inside any-of, what is allowed until then. time: as in 2026-12-01T00:00:00Z."""

    time: str

    def __post_init__(self) -> None:
        try:
            written = self.moment.strftime(_MOMENT)
        except ValueError:
            written = None
        if written != self.time:
            raise InvalidPolicy(f"{self.time[:40]!r} is no time; write one in UTC, as in 2026-12-01T00:00:00Z.")

    @classmethod
    def at(cls, moment: datetime) -> "NotAfter":
        """Until this moment, in whole seconds."""
        return cls(moment.astimezone(UTC).strftime(_MOMENT))

    @property
    def moment(self) -> datetime:
        """The time, in UTC."""
        return datetime.strptime(self.time, _MOMENT).replace(tzinfo=UTC)

    def sentences(self) -> Iterator[str]:
        yield f"appraisal until {day(self.moment)}"

    def checks(self, subject: Subject) -> Iterator[Check]:
        yield check("not-after", f"until {day(self.moment)}", day(subject.now), subject.now <= self.moment)


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
        _require_signer(self)

    def sentences(self) -> Iterator[str]:
        whose = f" of the data's owner {self.data_owner[:16]}..." if self.data_owner else ""
        yield f"{self._limit} on {self.task[:64]}{whose}, {_certified(self)}"

    def checks(self, subject: Subject) -> Iterator[Check]:
        seen, ok = self._look(subject)
        yield check("score-at-least", f"{self._limit} on {self.task}, certified", seen, ok)

    @property
    def _limit(self) -> str:
        bound = f"most {self.at_most:g}" if self.at_most is not None else f"least {self.at_least:g}"
        return f"{self.metric} of at {bound}"

    def _look(self, subject: Subject) -> tuple[str, bool]:
        """What was seen, and whether one certificate satisfies all of this."""
        served = _served(subject)
        if isinstance(served, str):
            return served, False
        if subject.scores is None:
            return "no certificate came with the evidence", False
        try:
            certificates = ScoreCertificate.read_lines(subject.scores)
        except AttestationError as error:
            return f"{error.code}: {error}", False
        reasons = [self._lacking(one, served, subject) for one in certificates]
        for one, reason in zip(certificates, reasons, strict=True):
            if not reason:
                score = one.predicate.score
                return f"{score.value:g} ({score.low:g} to {score.high:g}), {day(one.predicate.finished)}", True
        return "; ".join(reasons) or ABSENT, False

    def _lacking(self, certificate: ScoreCertificate, served: "_Served", subject: Subject) -> str:
        """Why a certificate does not satisfy this; empty where it does."""
        predicate = certificate.predicate
        if predicate.run.model != served.model:
            return f"of another model, {predicate.run.model[:16]}..."
        if served.adapters != ((predicate.run.adapter,) if predicate.run.adapter else ()):
            return f"of the model under {_listed((predicate.run.adapter,))}, and served is {_listed(served.adapters)}"
        # A file's name can look like a digest, and is never taken for one.
        named = predicate.run.dataset if _DIGEST.fullmatch(self.task) else predicate.task
        if named != self.task or predicate.run.metric is not self.metric:
            return f"of {predicate.run.metric} on {predicate.task}, {predicate.run.dataset[:16]}..."
        if self.data_owner and certificate.approved_by(Role.DATA) != self.data_owner:
            return "without the approval of the data's owner"
        if not self._suffices(predicate.score.value):
            return f"{predicate.score.value:g}"
        return _unbelieved(certificate, self, subject)

    def _suffices(self, value: float) -> bool:
        return value <= self.at_most if self.at_most is not None else value >= (self.at_least or 0)


class TrainedOn(Requirement, frozen=True, tag="trained-on"):
    """Over the model served lies an adapter that was made from this dataset, as somebody whom `signer` accepts says.

    dataset: SHA-256 of the corpus file. base: of the model that it has to be over; any without. signer, max_age: of
    whoever trained, as in ScoreAtLeast.
    """

    dataset: str
    signer: tuple["AnyRequirement", ...]
    base: str = ""
    max_age: str = ""

    def __post_init__(self) -> None:
        require_hex("dataset", self.dataset, 32)
        if self.base:
            require_hex("base", self.base, 32)
        _require_signer(self)

    def sentences(self) -> Iterator[str]:
        over = f" over the model {self.base[:16]}..." if self.base else ""
        yield f"an adapter{over} that was made from {self.dataset[:16]}..., {_certified(self)}"

    def checks(self, subject: Subject) -> Iterator[Check]:
        seen, ok = self._look(subject)
        yield check("trained-on", f"an adapter made from {self.dataset}, certified", seen, ok)

    def _look(self, subject: Subject) -> tuple[str, bool]:
        served = _trained(subject, self.base)
        if isinstance(served, str):
            return served, False
        if not served.adapters:
            return "no adapter is served", False
        found = [_history(adapter, served, self, subject) for adapter in served.adapters]
        for one in found:
            for certificate in () if isinstance(one, str) else one:
                if certificate.run.dataset == self.dataset:
                    return f"{certificate.predicate.corpus}, {day(certificate.predicate.finished)}", True
        return _told(found), False


class NotTrainedOn(Requirement, frozen=True, tag="not-trained-on"):
    """Nothing lies over this base but adapters that were made from other files than this one, each with a certificate.

    dataset: SHA-256 of the corpus file that none of them may be made from. base: of the model that has to be served.
    No certificate says what a base was made from: whoever names it says that they know. signer, max_age: as in
    TrainedOn.
    """

    dataset: str
    base: str
    signer: tuple["AnyRequirement", ...]
    max_age: str = ""

    def __post_init__(self) -> None:
        require_hex("dataset", self.dataset, 32)
        require_hex("base", self.base, 32)
        _require_signer(self)

    def sentences(self) -> Iterator[str]:
        yield (
            f"the model {self.base[:16]}..., with nothing over it that was made from {self.dataset[:16]}... or from "
            f"what nobody knows, {_certified(self)}"
        )

    def checks(self, subject: Subject) -> Iterator[Check]:
        seen, ok = self._look(subject)
        yield check("not-trained-on", f"nothing over {self.base} that was made from {self.dataset}", seen, ok)

    def _look(self, subject: Subject) -> tuple[str, bool]:
        served = _trained(subject, self.base)
        if isinstance(served, str):
            return served, False
        if not served.adapters:
            return "the base alone", True
        found = [_history(adapter, served, self, subject) for adapter in served.adapters]
        others = all(not isinstance(one, str) and self.dataset not in _datasets(one) for one in found)
        return _told(found), others


ByCertificate = ScoreAtLeast | TrainedOn | NotTrainedOn


class _Served(NamedTuple):
    """What the signed statement says is served: the model's digest, and what lies over it."""

    model: str
    adapters: tuple[str, ...]


def _served(subject: Subject) -> _Served | str:
    """What is served, or why nobody can say."""
    statement = subject.signed_statement
    if statement is None:
        return "no statement of the model that the hardware signed"
    if statement.configuration is None:
        return "no statement of what lies over the model"
    return _Served(statement.model_digest, statement.configuration.adapters)


def _trained(subject: Subject, base: str) -> _Served | str:
    """The same, of this base if it is named, and run by a program that says what lies over it."""
    served, statement = _served(subject), subject.signed_statement
    if isinstance(served, str):
        return served
    if statement and statement.configuration and (upstream := statement.configuration.upstream):
        return f"another program runs the model, {upstream.name}, and does not say what lies over it"
    if base and served.model != base:
        return f"the model {served.model}"
    return served


_History = tuple[TrainingCertificate, ...]


def _history(adapter: str, served: _Served, rule: TrainedOn | NotTrainedOn, subject: Subject) -> _History | str:
    """The certificates of an adapter that is served, or why there is none that counts."""
    if subject.training is None:
        return "no certificate came with the evidence"
    try:
        certificates = TrainingCertificate.read_lines(subject.training)
    except AttestationError as error:
        return f"{error.code}: {error}"
    believed, reasons = [], []
    for one in certificates:
        if one.predicate.adapter != adapter:
            continue
        if one.run.base != served.model:
            reasons.append(f"over another model, {one.run.base[:16]}...")
        elif reason := _unbelieved(one, rule, subject):
            reasons.append(reason)
        else:
            believed.append(one)
    return tuple(believed) or "; ".join(reasons) or f"no certificate of the adapter {adapter}"


def _datasets(history: _History) -> set[str]:
    return {one.run.dataset for one in history}


def _told(histories: Iterable[_History | str]) -> str:
    return "; ".join(one if isinstance(one, str) else f"made from {', '.join(_datasets(one))}" for one in histories)


def _require_signer(rule: ByCertificate) -> None:
    name = name_of(rule)
    if rule.max_age:
        period(rule.max_age)
    if any(isinstance(one, ByCertificate) for one in everywhere(rule.signer)):
        raise InvalidPolicy(f"Whoever signs a certificate needs none itself; leave it out of {name}'s signer.")
    if not all_ways(rule.signer, measures_code):
        raise InvalidPolicy(
            f"{name} believes nobody by their own word: name in signer the measured code that may sign (mrtd, "
            "measurement, mrenclave)."
        )


def _certified(rule: ByCertificate) -> str:
    ago = f", at most {rule.max_age} ago" if rule.max_age else ""
    signer = " and ".join(sentence for one in rule.signer for sentence in one.sentences())
    return f"certified{ago} where there was {signer}"


def _unbelieved(certificate: AnyCertificate, rule: ByCertificate, subject: Subject) -> str:
    """Why whoever signed a certificate is not believed, or why it is too old; empty where neither is so."""
    finished = certificate.predicate.finished
    if rule.max_age and subject.now - finished > period(rule.max_age):
        return f"of {day(finished)}"
    if subject.witness is None:
        return "nobody here appraises who signed"
    evidence = subject.witness(certificate, rule.signer)
    checks = certificate_checks(certificate, evidence, subject.now)
    failed = [*(one for found in evidence for one in found.failures), *(one for one in checks if not one.passed)]
    if not failed and all(found.trusted for found in evidence):
        return ""
    return f"by somebody who is not accepted: {', '.join(one.code for one in failed)}"


def _listed(adapters: tuple[str, ...]) -> str:
    return ", ".join(f"the adapter {one[:16]}..." for one in adapters if one) or "no adapter"


AnyRequirement = (
    ScoreAtLeast
    | TrainedOn
    | NotTrainedOn
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
    | Graph
    | NoAdapters
    | NoEgress
    | NoUpstream
    | Options
    | Quantization
    | SelfTest
    | Template
    | Weights
    | NotAfter
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
        case Tpm():
            return one.pcrs is not None
        case Nitro():
            named = {index for index, value in (one.pcrs or {}).items() if any(bytes.fromhex(value))}
            return bool({"0", "8"} & named) or {"1", "2"} <= named  # zeros are a debug enclave's
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

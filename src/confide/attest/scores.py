"""Score certificates: how a model did on a dataset, measured inside a trusted execution environment and signed there.

See `certificates` for their form. The subject is the sealed model, by its model digest under the name `confideModel`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, ClassVar, Final, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confide.attest.certificates import (
    STATEMENT_TYPE,
    Certificate,
    DatasetName,
    DescribedRun,
    Outcome,
    lines_of,
    sign_payload,
)
from confide.attest.configuration import Count, Hex32, Word
from confide.attest.wire import Record
from confide.errors import MalformedScore

SCORES: Final = "scores"
"""The document of a collateral that holds the certificates of the model served, as JSON Lines."""
PREDICATE_TYPE: Final = "urn:confide:score:v1"


class Metric(StrEnum):
    """What is measured; `confide.certify.measure` says how."""

    PERPLEXITY = "perplexity"
    ACCURACY = "accuracy"
    AGREEMENT = "agreement"

    @property
    def less_is_better(self) -> bool:
        """Whether a lower value is the better one."""
        return self is Metric.PERPLEXITY


class Run(DescribedRun, frozen=True):
    """Which model is measured on which dataset, and how.

    model: the package's model digest. dataset: SHA-256 of the task file. adapter: the digest of the adapter that is
    laid over the model, empty without one.
    """

    LABEL: ClassVar[bytes] = b"confide score run 1\0"
    APPROVAL_LABEL: ClassVar[bytes] = b"confide score approval 1\0"

    model: Hex32
    dataset: Hex32
    metric: Metric
    adapter: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64})?\Z")] = ""

    @property
    def stated_model(self) -> str:
        """The model that is measured."""
        return self.model


class Score(Record, frozen=True):
    """A value and its confidence interval, to six significant digits. interval: how it is computed, in words."""

    value: float
    low: float
    high: float
    confidence: float
    interval: Word


class Sampling(Record, frozen=True):
    """How the model was asked, in words, and the seed of whatever is drawn. context: tokens at most."""

    method: Word
    context: Count
    seed: Count


class Counts(Record, frozen=True):
    """How much was measured: items of the task, and what was scored of them."""

    items: Count
    scored: Count
    unit: Literal["tokens", "items"]


class Predicate(Outcome, frozen=True):
    """What a certificate says. task: its name, by the dataset's author."""

    run: Run
    task: DatasetName
    sampling: Sampling
    counts: Counts
    score: Score


class _Digest(msgspec.Struct, frozen=True):
    model: Hex32 = msgspec.field(name="confideModel")


class _Subject(msgspec.Struct, frozen=True):
    name: Word
    digest: _Digest


class _Statement(msgspec.Struct, frozen=True):
    """in-toto's. Members that are not known are left alone, as its parsing rules have it."""

    type: Literal["https://in-toto.io/Statement/v1"] = msgspec.field(name="_type")
    subject: Annotated[tuple[_Subject, ...], msgspec.Meta(min_length=1, max_length=1)]
    predicate_type: Literal["urn:confide:score:v1"] = msgspec.field(name="predicateType")
    predicate: Predicate


@dataclass(frozen=True)
class ScoreCertificate(Certificate[Predicate]):
    """A certificate of a score. name: of the model, by whoever sealed it."""

    WORD: ClassVar[str] = "score"
    PURPOSE: ClassVar[str] = "score-certificate"
    MALFORMED: ClassVar[type[MalformedScore]] = MalformedScore

    @property
    def run(self) -> Run:
        """The measurement that was made."""
        return self.predicate.run

    @property
    def about(self) -> Mapping[str, str]:
        """The model, the dataset and the nonce of the order."""
        return {"model": self.run.model, "dataset": self.run.dataset, "nonce": self.run.nonce}

    @classmethod
    def read(cls, data: bytes) -> "ScoreCertificate":
        """From a file's bytes. MalformedScore for anything else, and for one that contradicts itself."""
        statement, payload, signature = cls._opened(data, _Statement)
        (subject,), predicate = statement.subject, statement.predicate
        if subject.digest.model != predicate.run.model:
            raise MalformedScore("The certificate's subject is another model than its run's; get the file again.")
        certificate = cls(subject.name, predicate, payload, signature)
        certificate._require_possible()
        return certificate

    @classmethod
    def sign(cls, name: str, predicate: Predicate, key: Ed25519PrivateKey) -> "ScoreCertificate":
        """By the key that the predicate's evidence names. name: the model's."""
        subject = _Subject(name, _Digest(predicate.run.model))
        payload = msgspec.json.encode(_Statement(STATEMENT_TYPE, (subject,), PREDICATE_TYPE, predicate))
        return cls(name, predicate, payload, sign_payload(payload, key))


def read_scores(document: bytes) -> tuple[ScoreCertificate, ...]:
    """The certificates in a document, one to a line. MalformedScore where any of them is none."""
    return tuple(map(ScoreCertificate.read, lines_of(document, MalformedScore)))


def write_scores(certificates: Iterable[ScoreCertificate]) -> bytes:
    """The document of these. MalformedScore where they are too many."""
    document = b"".join(one.write() for one in certificates)
    read_scores(document)
    return document

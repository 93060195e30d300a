"""Score certificates: how a model did on a dataset, measured inside a trusted execution environment and signed there.

See `certificates` for their form. The subject is the sealed model, by its model digest under the name `confideModel`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, ClassVar, Final, Literal, Self

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confide.attest.certificates import Certificate, DatasetName, DescribedRun, InToto, Outcome, Subject
from confide.attest.configuration import Count, Hex32, Word
from confide.attest.wire import Record
from confide.errors import MalformedScore

SCORES: Final = "scores"
"""The document of a collateral that holds the certificates of the model served, as JSON Lines."""
_MODEL: Final = "confideModel"


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


class Prepared(Record, frozen=True):
    """What made a task's items, of what, in the words of the task file, whose digest the run names.

    harness: such as lm-eval, with its version. task: of the harness. measure: the harness's word for what is scored.
    config: SHA-256 of the task's configuration. data: SHA-256 of the documents that the items are made from.
    """

    harness: Word
    version: Word
    task: Word
    measure: Word
    config: Hex32
    data: Hex32


class Predicate(Outcome, frozen=True):
    """What a certificate says. task: its name, by the dataset's author. prepared: None where a person made the task."""

    run: Run
    task: DatasetName
    sampling: Sampling
    counts: Counts
    score: Score
    prepared: Prepared | None = None


@dataclass(frozen=True)
class ScoreCertificate(Certificate[Predicate]):
    """A certificate of a score. name: of the model, by whoever sealed it."""

    WORD: ClassVar[str] = "score"
    PURPOSE: ClassVar[str] = "score-certificate"
    MALFORMED: ClassVar[type[MalformedScore]] = MalformedScore
    PREDICATE_TYPE: ClassVar[str] = "urn:confide:score:v1"
    PREDICATE: ClassVar[type[Predicate]] = Predicate

    @property
    def run(self) -> Run:
        """The measurement that was made."""
        return self.predicate.run

    @property
    def about(self) -> Mapping[str, str]:
        """The model, the dataset and the nonce of the order."""
        return {"model": self.run.model, "dataset": self.run.dataset, "nonce": self.run.nonce}

    @classmethod
    def _of(cls, statement: InToto[Predicate], payload: bytes, signature: bytes) -> Self:
        subject, *others = statement.subject
        if others or subject.digest.get(_MODEL) != statement.predicate.run.model:
            raise MalformedScore("The certificate's subject is another model than its run's; get the file again.")
        return cls(subject.name, statement.predicate, payload, signature)

    @classmethod
    def sign(cls, name: str, predicate: Predicate, key: Ed25519PrivateKey) -> Self:
        """By the key that the predicate's evidence names. name: the model's."""
        return cls._signed((Subject(name, {_MODEL: predicate.run.model}),), predicate, key)

"""Training certificates: which data an adapter was made from, over which model, how, and by which code.

See `certificates` for their form. The subjects are the adapter, by its digest under the name `confideAdapter`, and its
two files by their SHA-256, as in-toto and model-signing name files.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, Self

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confide.attest.certificates import (
    Certificate,
    DatasetName,
    DescribedRun,
    Instant,
    InToto,
    Outcome,
    Subject,
    Testimony,
    key_bytes,
)
from confide.attest.configuration import Count, Hex32, Word
from confide.attest.wire import Attested, Record
from confide.errors import MalformedTraining

TRAINING: Final = "training"
"""The document of a collateral that holds the certificates of the adapters served, as JSON Lines."""
CHECKPOINT_PURPOSE: Final = "training-checkpoint"
"""Under this name a statement holds the key that signs what a process leaves, in hexadecimal."""
MAX_EARLIER: Final = 7
ADAPTER_CONFIG: Final = "adapter_config.json"
ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
ADAPTER_FILES: Final = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
"""What an adapter is made of, as peft names it."""
_KEY_ID: Final = r"\A[0-9a-f]{32}\Z"
_ADAPTER, _FILE = "confideAdapter", "sha256"
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_ADAPTER_LABEL: Final = b"confide adapter 1\0"

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Setting = bool | int | float | str | tuple[str, ...]


class Lora(Record, frozen=True):
    """How a LoRA adapter is trained (Hu et al., arXiv:2106.09685), with AdamW (betas 0.9 and 0.999, epsilon 1e-8).

    rank, alpha, dropout: of the added matrices. targets: names of the modules that get them; all linear layers but the
    head where there are none. epochs: passes over the data. batch: windows in a step. context: tokens in a window.
    warmup: the share of all steps in which the learning rate rises to `learning_rate`; then it falls linearly to 0.
    clip: the largest Euclidean norm of a gradient.
    """

    rank: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 8
    alpha: Annotated[int, msgspec.Meta(ge=1, le=1 << 16)] = 16
    dropout: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    targets: Annotated[tuple[Word, ...], msgspec.Meta(max_length=64)] = ()
    epochs: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1
    batch: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 4
    context: Annotated[int, msgspec.Meta(ge=2, le=1 << 20)] = 256
    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1e-3
    weight_decay: Share = 0.0
    warmup: Share = 0.05
    clip: Annotated[float, msgspec.Meta(gt=0, le=1e6)] = 1.0


class DatasetCheck(Record, frozen=True):
    """A check of the dataset that has to pass before anything is trained; `confide.certify.dataset_checks` has them."""

    check: Word
    settings: Annotated[dict[Word, Setting], msgspec.Meta(max_length=32)] = msgspec.field(default_factory=dict)


class Passed(Record, frozen=True):
    """A check that passed, and what it counted."""

    check: Word
    found: Annotated[dict[Word, Count], msgspec.Meta(max_length=64)] = msgspec.field(default_factory=dict)


class TrainingRun(DescribedRun, frozen=True):
    """Which adapter is trained: over which model, on which dataset, how, and for whom.

    base: the package's model digest. dataset: SHA-256 of the corpus file. seed: of everything that is drawn.
    key: the id of the key that the adapter, and what a killed run leaves, is sealed with.
    """

    LABEL: ClassVar[bytes] = b"confide training run 1\0"
    APPROVAL_LABEL: ClassVar[bytes] = b"confide training approval 1\0"

    base: Hex32
    dataset: Hex32
    key: Annotated[str, msgspec.Meta(pattern=_KEY_ID)]
    lora: Lora
    seed: Count = 0
    checks: Annotated[tuple[DatasetCheck, ...], msgspec.Meta(max_length=32)] = ()

    @property
    def stated_model(self) -> str:
        """The model that the adapter is for."""
        return self.base


class Amount(Record, frozen=True):
    """How much was trained on: texts of the corpus, tokens of them, and steps of the optimizer."""

    texts: Count
    tokens: Count
    steps: Count


class EarlierPart(Record, frozen=True):
    """A process that was killed, from whose checkpoint the run went on. steps: that were done there, of all.

    attested: evidence for the run, as the certificate's own, made when the process started. It names the key that
    signed the checkpoint; the process that went on from it compared that.
    """

    attested: Attested
    started: Instant
    steps: Count

    @property
    def key(self) -> bytes:
        """That its evidence names; empty where it names none."""
        return key_bytes(self.attested.statement.channel_keys.get(CHECKPOINT_PURPOSE, ""))


class TrainingPredicate(Outcome, frozen=True):
    """What a certificate says. corpus: its name, by the dataset's author. adapter: see `adapter_digest`.

    passed: the checks of the dataset, all that the run names and in that order. earlier: processes of the run that were
    killed, in order; none where it was made in one.
    """

    run: TrainingRun
    corpus: DatasetName
    amount: Amount
    adapter: Hex32
    passed: Annotated[tuple[Passed, ...], msgspec.Meta(max_length=32)] = ()
    earlier: Annotated[tuple[EarlierPart, ...], msgspec.Meta(max_length=MAX_EARLIER)] = ()


@dataclass(frozen=True)
class TrainingCertificate(Certificate[TrainingPredicate]):
    """A certificate of a training. name: of the base, by whoever sealed it. files: SHA-256 of each, by its name."""

    WORD: ClassVar[str] = "training"
    PURPOSE: ClassVar[str] = "training-certificate"
    MALFORMED: ClassVar[type[MalformedTraining]] = MalformedTraining
    PREDICATE_TYPE: ClassVar[str] = "urn:confide:training:v1"
    PREDICATE: ClassVar[type[TrainingPredicate]] = TrainingPredicate

    files: Mapping[str, str]

    @property
    def run(self) -> TrainingRun:
        """The training that was made."""
        return self.predicate.run

    @property
    def testimonies(self) -> tuple[Testimony, ...]:
        """Of every process of the run."""
        earlier = (Testimony(part.attested, part.started) for part in self.predicate.earlier)
        return (*earlier, *super().testimonies)

    @property
    def about(self) -> Mapping[str, str]:
        """The adapter, what it is over and made from, and the nonce of the order."""
        run = self.run
        return {"adapter": self.predicate.adapter, "base": run.base, "dataset": run.dataset, "nonce": run.nonce}

    @classmethod
    def _of(cls, statement: InToto[TrainingPredicate], payload: bytes, signature: bytes) -> Self:
        predicate, (adapter, *files) = statement.predicate, statement.subject
        digests = {one.name: one.digest.get(_FILE, "") for one in files}
        if adapter.digest.get(_ADAPTER) != predicate.adapter or not _are_its_files(digests, len(files)):
            raise MalformedTraining("The certificate's subjects are another adapter than its own; get the file again.")
        if [one.check for one in predicate.passed] != [one.check for one in predicate.run.checks]:
            raise MalformedTraining("The certificate lacks a check that its run asks for; get the file again.")
        steps = [0, *(part.steps for part in predicate.earlier), predicate.amount.steps]
        if steps != sorted(steps) or not all(part.key for part in predicate.earlier):
            raise MalformedTraining("The certificate's run was not taken up where it was left; get the file again.")
        return cls(adapter.name, predicate, payload, signature, digests)

    @classmethod
    def sign(cls, name: str, predicate: TrainingPredicate, files: Mapping[str, str], key: Ed25519PrivateKey) -> Self:
        """By the key that the predicate's evidence names. name: the base model's. files: SHA-256 of each, as above."""
        subjects = (
            Subject(name, {_ADAPTER: predicate.adapter}),
            *(Subject(file, {_FILE: files[file]}) for file in ADAPTER_FILES),
        )
        return cls._signed(subjects, predicate, key)


def _are_its_files(digests: Mapping[str, str], count: int) -> bool:
    named = count == len(ADAPTER_FILES) and digests.keys() == set(ADAPTER_FILES)
    return named and all(_SHA256.fullmatch(digest) for digest in digests.values())


def is_key_id(text: str) -> bool:
    """Whether this can be the id of a key that a run names."""
    return re.search(_KEY_ID, text) is not None


def adapter_digest(files: Mapping[str, bytes]) -> str:
    """SHA-256 over names and content of an adapter's two files, in hexadecimal."""
    digest = hashlib.sha256(_ADAPTER_LABEL)
    for name in ADAPTER_FILES:
        digest.update(msgspec.json.encode([name, len(files[name])]) + files[name])
    return digest.hexdigest()

"""Certificates of scores and trainings, the runs and consents before them, and the datasets that they are about."""

import json
from datetime import UTC, datetime

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confide.attest.certificates import DescribedRun, Role, predicate_type
from confide.attest.claims import Claims
from confide.attest.collateral import Collateral
from confide.attest.configuration import Build, Configuration
from confide.attest.evidence import Evidence, Family
from confide.attest.policy import SimulatedPolicy
from confide.attest.requirements import Tdx
from confide.attest.scores import (
    Counts,
    Metric,
    Predicate,
    Run,
    Sampling,
    Score,
    ScoreCertificate,
)
from confide.attest.statement import Statement
from confide.attest.training import (
    ADAPTER_FILES,
    Amount,
    DatasetCheck,
    Lora,
    Passed,
    TrainingCertificate,
    TrainingPredicate,
    TrainingRun,
)
from confide.attest.wire import Attested
from confide.certify.consent import consent_to, read_consent, read_run, read_training_run, write_consent, write_run
from confide.certify.corpus import read_corpus
from confide.certify.dataset_checks import passed
from confide.certify.index import Listed, page
from confide.certify.runs import Described
from confide.certify.tasks import read_task
from confide.certify.train import read_recipe
from confide.certify.verify import verify_certificate
from confide.errors import InvalidCorpus, MalformedEvidence, RunRefused
from confide.packages.sealed.adapter import parse_adapter_manifest, seal_adapter
from confide.packages.sealed.data import parse_data_manifest, seal_data
from confide.packages.sealed.key import ModelKey

from .bench import OWNER, scratch

_AT = datetime(2026, 2, 19, tzinfo=UTC)
_HERE = Described(harness=Build("0.1.0", "ee" * 32), measurement={"tdx mrtd": "11" * 48}, nonce="01" * 32)
_RUN = Run("ab" * 32, "cd" * 32, Metric.PERPLEXITY, **_HERE)
_TRAINING = TrainingRun(
    "ab" * 32, "cd" * 32, "0a" * 16, Lora(), 7, (DatasetCheck("size", {"least-texts": 1}),), **_HERE
)
_SIGNER = Ed25519PrivateKey.from_private_bytes(b"s" * 32)
_KEY = ModelKey(b"k" * 32)
_CHECKS = (
    DatasetCheck("size"),
    DatasetCheck("duplicates", {"at-most": 1}),
    DatasetCheck("personal-data", {"at-most": 1000}),
    DatasetCheck("words", {"words": ("word",), "at-most": 10}),
)
_POLICY = SimulatedPolicy((Tdx(mrtd="11" * 48),))


class _Nobody:
    """Verifies nothing."""

    def verify(self, evidence: Evidence, collateral: Collateral, now: datetime) -> Claims:
        raise MalformedEvidence("This is no evidence.")


def certificate(data: bytes) -> None:
    """A certificate whose evidence nobody's root is over, by itself and in a document of several."""
    ScoreCertificate.read_lines(data)
    read = ScoreCertificate.read(data)
    again = ScoreCertificate.read(read.write())
    if (again, ScoreCertificate.read_lines(ScoreCertificate.write_lines([read]))) != (read, (read,)):
        raise AssertionError("what was written is another certificate")
    result = verify_certificate(read, _Nobody(), _POLICY, _AT, model="ab" * 32)
    if result.verified or "<tbody>\n<tr><td colspan" not in page([Listed("a", read, result)], "today", "ab"):
        raise AssertionError("a certificate without evidence that holds is verified")


def training(data: bytes) -> None:
    """The same of a training."""
    TrainingCertificate.read_lines(data)
    read = TrainingCertificate.read(data)
    again = TrainingCertificate.read(read.write())
    lines = TrainingCertificate.write_lines([read])
    kind = predicate_type(data)
    if (again, TrainingCertificate.read_lines(lines), kind) != (read, (read,), TrainingCertificate.PREDICATE_TYPE):
        raise AssertionError("what was written is another certificate")
    if verify_certificate(read, _Nobody(), _POLICY, _AT, base="ab" * 32).verified:
        raise AssertionError("a certificate without evidence that holds is verified")


def run(data: bytes) -> None:
    """A description of a run, and else an owner's consent to one."""
    for read in (read_run, read_training_run):
        try:
            described = read(data)
        except RunRefused:
            continue
        if read(write_run(described)).digest != described.digest:
            raise AssertionError("what was written is another run")
        return
    consent = read_consent(data)
    if read_consent(write_consent(consent)) != consent:
        raise AssertionError("what was written is another consent")
    for one in (_RUN, _TRAINING):
        if consent.approval.approves(one) and consent.approval.owner != str(OWNER.public):
            raise AssertionError("a run is approved by somebody who did not")


def corpus(data: bytes) -> None:
    """A corpus file, with every check of it, and else a recipe for training."""
    try:
        read = read_corpus(data)
    except InvalidCorpus:
        read_recipe(data.decode("utf-8", "replace"))
        return
    for check in _CHECKS:
        passed((check,), read)


def adapter(data: bytes) -> None:
    """A sealed adapter's manifest, which nobody signed."""
    read = parse_adapter_manifest(data)
    if parse_adapter_manifest(msgspec.json.encode(read)) != read:
        raise AssertionError("what was written is another manifest")


def task(data: bytes) -> None:
    """A task file."""
    read = read_task(data)
    if not read.items:
        raise AssertionError("a task without items")


def dataset(data: bytes) -> None:
    """A sealed dataset's manifest, which its owner signed."""
    read = parse_data_manifest(data)
    if parse_data_manifest(msgspec.json.encode(read)) != read:
        raise AssertionError("what was written is another manifest")


def _attested(run: DescribedRun, purpose: str) -> Attested:
    public = {purpose: _SIGNER.public_key().public_bytes_raw().hex()}
    said = Statement(run.digest, run.stated_model, "", public, Configuration(run.harness))
    return Attested.make(Evidence(Family.TDX, b"a quote"), said, Collateral({"dcap": b"{}"}))


def _trained() -> TrainingCertificate:
    files = dict.fromkeys(ADAPTER_FILES, "fe" * 32)
    predicate = TrainingPredicate(
        _TRAINING,
        "a book",
        Amount(2, 9, 1),
        "ad" * 32,
        (Passed("size"),),
        started=_AT,
        finished=_AT,
        attested=_attested(_TRAINING, TrainingCertificate.PURPOSE),
    )
    return TrainingCertificate.sign("demo", predicate, files, _SIGNER)


def _certificate() -> list[bytes]:
    attested = _attested(_RUN, ScoreCertificate.PURPOSE)
    score, counts = Score(50.5, 49.5, 51.5, 0.95, "bootstrap"), Counts(2, 900, "tokens")
    sampling = Sampling("none", 512, 7)
    predicate = Predicate(_RUN, "a book", sampling, counts, score, started=_AT, finished=_AT, attested=attested)
    blind = msgspec.structs.replace(predicate, approvals=(consent_to(_RUN, Role.DATA, OWNER, _KEY).approval,))
    return [ScoreCertificate.sign("demo", one, _SIGNER).write() for one in (predicate, blind)]


def _task() -> list[bytes]:
    items = {
        "perplexity": {"text": "words"},
        "accuracy": {"prompt": "a", "choices": ["b", "c"], "answer": 1},
        "agreement": {"prompt": "a", "reference": "b"},
    }
    return [
        b"\n".join(json.dumps(line).encode() for line in ({"confide-task": 1, "name": "n", "metric": metric}, item))
        for metric, item in items.items()
    ]


def _dataset() -> list[bytes]:
    return [msgspec.json.encode(seal_data(b"secret", scratch("dataset") / "package", key=_KEY, owner=OWNER))]


def _corpus() -> list[bytes]:
    texts = (
        {"text": "words to a.b@c.example, +44 20 7946 0958", "licence": "CC0-1.0"},
        {"text": "4111 1111 1111 1111"},
    )
    lines = ({"confide-corpus": 1, "name": "n"}, *texts)
    recipe = 'confide-training = 1\n[lora]\nrank = 4\n[[check]]\ncheck = "size"\n'
    return [b"\n".join(json.dumps(line).encode() for line in lines), recipe.encode()]


def _adapter() -> list[bytes]:
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": b""}
    return [msgspec.json.encode(seal_adapter(files, _trained(), scratch("adapter") / "package", key=_KEY))]


TARGETS = {
    "score-certificate": certificate,
    "score-run": run,
    "score-task": task,
    "sealed-data": dataset,
    "training-certificate": training,
    "training-corpus": corpus,
    "sealed-adapter": adapter,
}
SEEDS = {
    "score-certificate": _certificate,
    "score-run": lambda: [
        write_run(_RUN),
        write_run(_TRAINING),
        write_consent(consent_to(_RUN, Role.MODEL, OWNER, _KEY)),
    ],
    "score-task": _task,
    "sealed-data": _dataset,
    "training-certificate": lambda: [_trained().write()],
    "training-corpus": _corpus,
    "sealed-adapter": _adapter,
}

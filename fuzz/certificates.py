"""Score certificates, the runs and consents before them, and the datasets that they are about."""

import json
from datetime import UTC, datetime

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confide.attest.claims import Claims
from confide.attest.collateral import Collateral
from confide.attest.configuration import Build, Configuration
from confide.attest.evidence import Evidence, Family
from confide.attest.policy import SimulatedPolicy
from confide.attest.requirements import Tdx
from confide.attest.scores import (
    PURPOSE,
    Counts,
    Metric,
    Predicate,
    Role,
    Run,
    Sampling,
    Score,
    ScoreCertificate,
    read_scores,
    write_scores,
)
from confide.attest.statement import Statement
from confide.attest.wire import Attested
from confide.certify.consent import consent_to, read_consent, read_run, write_consent, write_run
from confide.certify.index import Listed, page
from confide.certify.tasks import read_task
from confide.certify.verify import verify_certificate
from confide.errors import MalformedEvidence, RunRefused
from confide.packages.sealed.data import parse_data_manifest, seal_data
from confide.packages.sealed.key import ModelKey

from .bench import OWNER, scratch

_AT = datetime(2026, 2, 19, tzinfo=UTC)
_RUN = Run("ab" * 32, "cd" * 32, Metric.PERPLEXITY, Build("0.1.0", "ee" * 32), {"tdx mrtd": "11" * 48}, "01" * 32)
_KEY = ModelKey(b"k" * 32)
_POLICY = SimulatedPolicy((Tdx(mrtd="11" * 48),))


class _Nobody:
    """Verifies nothing."""

    def verify(self, evidence: Evidence, collateral: Collateral, now: datetime) -> Claims:
        raise MalformedEvidence("This is no evidence.")


def certificate(data: bytes) -> None:
    """A certificate whose evidence nobody's root is over, by itself and in a document of several."""
    read_scores(data)
    read = ScoreCertificate.read(data)
    again = ScoreCertificate.read(read.write())
    if (again, read_scores(write_scores([read]))) != (read, (read,)):
        raise AssertionError("what was written is another certificate")
    result = verify_certificate(read, _Nobody(), _POLICY, _AT, model="ab" * 32)
    if result.verified or "<tbody>\n<tr><td colspan" not in page([Listed("a", read, result)], "today", "ab"):
        raise AssertionError("a certificate without evidence that holds is verified")


def run(data: bytes) -> None:
    """A description of a run, and else an owner's consent to one."""
    try:
        described = read_run(data)
    except RunRefused:
        consent = read_consent(data)
        if read_consent(write_consent(consent)) != consent:
            raise AssertionError("what was written is another consent") from None
        if consent.approval.approves(consent.run) and consent.run != _RUN:
            raise AssertionError("a run that nobody approved is approved") from None
        return
    if read_run(write_run(described)).digest != described.digest:
        raise AssertionError("what was written is another run")


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


def _certificate() -> list[bytes]:
    key = Ed25519PrivateKey.from_private_bytes(b"s" * 32)
    public = {PURPOSE: key.public_key().public_bytes_raw().hex()}
    said = Statement(_RUN.digest, _RUN.model, "", public, Configuration(_RUN.harness))
    attested = Attested.make(Evidence(Family.TDX, b"a quote"), said, Collateral({"dcap": b"{}"}))
    score = Score(50.5, 49.5, 51.5, 0.95, "bootstrap")
    predicate = Predicate(_RUN, "a book", _AT, _AT, Sampling("none", 512, 7), Counts(2, 900, "tokens"), score, attested)
    blind = msgspec.structs.replace(predicate, approvals=(consent_to(_RUN, Role.DATA, OWNER, _KEY).approval,))
    return [ScoreCertificate.sign("demo", one, key).write() for one in (predicate, blind)]


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


TARGETS = {"score-certificate": certificate, "score-run": run, "score-task": task, "sealed-data": dataset}
SEEDS = {
    "score-certificate": _certificate,
    "score-run": lambda: [write_run(_RUN), write_consent(consent_to(_RUN, Role.MODEL, OWNER, _KEY))],
    "score-task": _task,
    "sealed-data": _dataset,
}

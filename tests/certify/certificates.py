"""Certificates by a simulated machine, of models that nobody measured: made as the code that measures makes them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confide.attest.certificates import DescribedRun, measured_code
from confide.attest.configuration import Build, Configuration
from confide.attest.policy import SimulatedPolicy
from confide.attest.requirements import AnyRequirement, ConfideVersion, NotTrainedOn, ScoreAtLeast, Tdx, TrainedOn
from confide.attest.scores import Counts, Metric, Predicate, Run, Sampling, Score, ScoreCertificate
from confide.attest.simulated import SimulatedTee
from confide.attest.simulated_vendor import Listing
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
from confide.attest.verifier import Verifier
from confide.attest.wire import Attested
from confide.packages.sealed.key import ModelKey

MEASURED = datetime(2026, 2, 19, 12, tzinfo=UTC)
MODEL, DATASET, NONCE, ADAPTER = "ab" * 32, "cd" * 32, "01" * 32, "ad" * 32
HARNESS = Build("0.1.0", "ee" * 32)
MODEL_KEY = ModelKey(b"k" * 32)
KEY = Ed25519PrivateKey.from_private_bytes(b"s" * 32)


class Laboratory:
    """A machine that measures. made: in 2026, so that today its collateral has long expired."""

    def __init__(self, tee: SimulatedTee) -> None:
        self.tee = tee
        self.collateral = tee.collateral(Listing(MEASURED - timedelta(days=1)))
        self.verifier = Verifier(tee.roots())
        claims = self.verifier.verify(tee.quote(bytes(64)), self.collateral, MEASURED)
        self.code = measured_code(claims)

    @property
    def signer(self) -> tuple[AnyRequirement, ...]:
        """Who may measure: this code, on such a machine."""
        return (Tdx(mrtd=self.code["tdx mrtd"]), ConfideVersion(sha256=(HARNESS.digest,)))

    @property
    def policy(self) -> SimulatedPolicy:
        return SimulatedPolicy(self.signer)

    def rule(self, **changes: Any) -> ScoreAtLeast:
        """What a relying party asks of a model."""
        asked: dict[str, Any] = {"task": DATASET, "metric": Metric.PERPLEXITY, "signer": self.signer, "at_most": 60}
        return ScoreAtLeast(**asked | changes)

    def run(self, **changes: Any) -> Run:
        run = Run(MODEL, DATASET, Metric.PERPLEXITY, harness=HARNESS, measurement=self.code, nonce=NONCE)
        return msgspec.structs.replace(run, **changes)

    def trained_on(self, **changes: Any) -> TrainedOn:
        return TrainedOn(**{"dataset": DATASET, "signer": self.signer} | changes)

    def not_trained_on(self, **changes: Any) -> NotTrainedOn:
        return NotTrainedOn(**{"dataset": "11" * 32, "base": MODEL, "signer": self.signer} | changes)

    def training_run(self, **changes: Any) -> TrainingRun:
        checks = (DatasetCheck("duplicates", {"at-most": 0}),)
        run = TrainingRun(
            MODEL, DATASET, "0a" * 16, Lora(), 7, checks, harness=HARNESS, measurement=self.code, nonce=NONCE
        )
        return msgspec.structs.replace(run, **changes)

    def attested(
        self, run: DescribedRun, *, key: Ed25519PrivateKey = KEY, harness: Build = HARNESS, model: str | None = None
    ) -> Attested:
        """Evidence for a run. model: that the statement names."""
        purpose = (ScoreCertificate if isinstance(run, Run) else TrainingCertificate).PURPOSE
        public = {purpose: key.public_key().public_bytes_raw().hex()}
        said = Statement(run.digest, run.stated_model if model is None else model, "", public, Configuration(harness))
        return Attested.make(self.tee.quote(said.digest()), said, self.collateral)

    def certificate(
        self, run: Run | None = None, *, value: float = 50.0, key: Ed25519PrivateKey = KEY, **changes: Any
    ) -> ScoreCertificate:
        """As the measuring code signs it; changes: of the predicate, before it is signed."""
        run = run or self.run()
        predicate = Predicate(
            run,
            "a book",
            Sampling("none", 512, 7),
            Counts(2, 900, "tokens"),
            Score(float(value), value - 1.0, value + 1.0, 0.95, "bootstrap"),
            started=MEASURED - timedelta(minutes=5),
            finished=MEASURED,
            attested=self.attested(run),
        )
        return ScoreCertificate.sign("demo", msgspec.structs.replace(predicate, **changes), key)

    def training(
        self, run: TrainingRun | None = None, *, key: Ed25519PrivateKey = KEY, **changes: Any
    ) -> TrainingCertificate:
        """The same of an adapter that nobody trained."""
        run = run or self.training_run()
        predicate = TrainingPredicate(
            run,
            "a book",
            Amount(2, 900, 10),
            ADAPTER,
            tuple(Passed(one.check, {"duplicates": 0}) for one in run.checks),
            started=MEASURED - timedelta(minutes=5),
            finished=MEASURED,
            attested=self.attested(run),
        )
        files = dict.fromkeys(ADAPTER_FILES, "fe" * 32)
        return TrainingCertificate.sign("demo", msgspec.structs.replace(predicate, **changes), files, key)

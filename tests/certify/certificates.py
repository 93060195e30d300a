"""Certificates by a simulated machine, of models that nobody measured: made as the code that measures makes them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confide.attest.configuration import Build, Configuration
from confide.attest.policy import SimulatedPolicy
from confide.attest.requirements import AnyRequirement, ConfideVersion, ScoreAtLeast, Tdx
from confide.attest.scores import (
    PURPOSE,
    Counts,
    Metric,
    Predicate,
    Run,
    Sampling,
    Score,
    ScoreCertificate,
    measured_code,
)
from confide.attest.simulated import SimulatedTee
from confide.attest.simulated_vendor import Listing
from confide.attest.statement import Statement
from confide.attest.verifier import Verifier
from confide.attest.wire import Attested

MEASURED = datetime(2026, 2, 19, 12, tzinfo=UTC)
MODEL, DATASET, NONCE = "ab" * 32, "cd" * 32, "01" * 32
HARNESS = Build("0.1.0", "ee" * 32)
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
        return msgspec.structs.replace(Run(MODEL, DATASET, Metric.PERPLEXITY, HARNESS, self.code, NONCE), **changes)

    def attested(
        self, run: Run, *, key: Ed25519PrivateKey = KEY, harness: Build = HARNESS, model: str | None = None
    ) -> Attested:
        """Evidence for a run. model: that the statement names."""
        public = {PURPOSE: key.public_key().public_bytes_raw().hex()}
        said = Statement(run.digest, run.model if model is None else model, "", public, Configuration(harness))
        return Attested.make(self.tee.quote(said.digest()), said, self.collateral)

    def certificate(
        self, run: Run | None = None, *, value: float = 50.0, key: Ed25519PrivateKey = KEY, **changes: Any
    ) -> ScoreCertificate:
        """As the measuring code signs it; changes: of the predicate, before it is signed."""
        run = run or self.run()
        predicate = Predicate(
            run,
            "a book",
            MEASURED - timedelta(minutes=5),
            MEASURED,
            Sampling("none", 512, 7),
            Counts(2, 900, "tokens"),
            Score(float(value), value - 1.0, value + 1.0, 0.95, "bootstrap"),
            self.attested(run),
        )
        return ScoreCertificate.sign("demo", msgspec.structs.replace(predicate, **changes), key)

"""The verdict on a score certificate, offline and years later: who measured, with which code, what, and for whom."""

from collections.abc import Iterator
from datetime import datetime
from typing import Final

from confide.attest.appraise import Verifies, appraise_score
from confide.attest.check import Check, check
from confide.attest.policy import AnyPolicy
from confide.attest.policy_words import names_code
from confide.attest.requirements import ScoreAtLeast, everywhere
from confide.attest.scores import ScoreCertificate, score_checks
from confide.errors import InvalidPolicy
from confide.receipts.verdict import Verdict

_REQUIRED: Final = frozenset(
    {"nonce", "model", "score-signature", "score-harness", "score-measurement", "score-approvals", "score-time"}
)


def verify_certificate(
    certificate: ScoreCertificate,
    verifier: Verifies,
    policy: AnyPolicy,
    now: datetime,
    *,
    at: datetime | None = None,
    model: str | None = None,
    dataset: str | None = None,
    nonce: str | None = None,
) -> Verdict:
    """Every check. policy: what the evidence of whoever measured must show, with measured code that it names.

    at: the time to appraise for, and to take for the present; without it the evidence is appraised for when it was
    made. model, dataset, nonce: what the certificate has to be for, in hexadecimal, where that is known.
    InvalidPolicy for a policy that would believe anybody, or that asks for scores itself.
    """
    if not names_code(policy):
        raise InvalidPolicy(
            "A certificate is as good as the code that measured, and this policy accepts any: name its measurements "
            "(mrtd, measurement, mrenclave)."
        )
    if any(isinstance(one, ScoreAtLeast) for one in everywhere(policy.requirements)):
        raise InvalidPolicy("This policy is for a model that is served; give the one for whoever measures.")
    evidence = appraise_score(verifier, policy, certificate, policy.requirements, at)
    checks = (
        *evidence.checks,
        *score_checks(certificate, evidence, at or now),
        *_ordered(certificate, model, dataset, nonce),
    )
    return Verdict(checks=checks, required=_REQUIRED, simulated=evidence.simulated)


def _ordered(
    certificate: ScoreCertificate, model: str | None, dataset: str | None, nonce: str | None
) -> Iterator[Check]:
    """Whether it is about what the verifier has in hand."""
    run = certificate.predicate.run
    known = {"model": model, "dataset": dataset, "nonce": nonce}
    for name, expected in known.items():
        if expected is not None:
            seen = getattr(run, name)
            yield check(f"score-{name}", expected, seen, expected == seen)

"""The verdict on a certificate, offline and years later: who made the run, with which code, of what, and for whom."""

from collections.abc import Iterator
from datetime import datetime
from typing import Final

from confide.attest.appraise import Verifies, appraise_certificate
from confide.attest.certificates import AnyCertificate, certificate_checks
from confide.attest.check import Check, check
from confide.attest.policy import AnyPolicy
from confide.attest.policy_words import names_code
from confide.attest.requirements import ByCertificate, everywhere
from confide.errors import InvalidPolicy
from confide.receipts.verdict import Verdict

_EVIDENCE: Final = ("nonce", "model")
_OWN: Final = ("signature", "harness", "measurement", "approvals", "time")


def verify_certificate(
    certificate: AnyCertificate,
    verifier: Verifies,
    policy: AnyPolicy,
    now: datetime,
    *,
    at: datetime | None = None,
    **about: str | None,
) -> Verdict:
    """Every check. policy: what the evidence of whoever made the run must show, with measured code that it names.

    at: the time to appraise for, and to take for the present; without it the evidence is appraised for when it was
    made. about: by the names of the certificate's `about`, what it has to be for, where that is known.
    InvalidPolicy for a policy that would believe anybody, or that asks for certificates itself.
    """
    if not names_code(policy):
        raise InvalidPolicy(
            "A certificate is as good as the code that made it, and this policy accepts any: name its measurements "
            "(mrtd, measurement, mrenclave)."
        )
    if any(isinstance(one, ByCertificate) for one in everywhere(policy.requirements)):
        raise InvalidPolicy("This policy is for a model that is served; give the one for whoever made the certificate.")
    evidence = appraise_certificate(verifier, policy, certificate, policy.requirements, at)
    checks = (
        *(one for found in evidence for one in found.checks),
        *certificate_checks(certificate, evidence, at or now),
        *_ordered(certificate, about),
    )
    required = frozenset((*_EVIDENCE, *(f"{certificate.WORD}-{name}" for name in _OWN)))
    return Verdict(checks=checks, required=required, simulated=any(found.simulated for found in evidence))


def _ordered(certificate: AnyCertificate, about: dict[str, str | None]) -> Iterator[Check]:
    """Whether it is about what the verifier has in hand."""
    for name, expected in about.items():
        if expected is not None:
            seen = certificate.about[name]
            yield check(f"{certificate.WORD}-{name}", expected, seen, expected == seen)

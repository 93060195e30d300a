"""What an appraisal found: every check with what was expected and what was seen, and the verdict."""

from dataclasses import dataclass
from datetime import datetime

from confide.attest.check import Check, Outcome
from confide.attest.claims import Claims, RootKind
from confide.attest.evidence import Family


@dataclass(frozen=True)
class AttestationResult:
    """The verdict on one piece of evidence at one time. claims: None where the evidence itself was refused.

    exceptions: what the policy does without, a sentence for each; whoever shows a verdict shows them.
    """

    family: Family
    at: datetime
    checks: tuple[Check, ...]
    claims: Claims | None
    exceptions: tuple[str, ...] = ()

    @property
    def trusted(self) -> bool:
        """Whether no check failed and at least one passed; what was skipped by the policy's leave counts as neither."""
        return self.claims is not None and not self.failures and any(check.passed for check in self.checks)

    @property
    def simulated(self) -> bool:
        """Whether any of it rests on a root that somebody made for tests: it proves nothing about any hardware."""
        return self.claims is not None and any(one.root is RootKind.SIMULATED for one in self.claims.everyone())

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.outcome is Outcome.FAIL)

    @property
    def not_checked(self) -> tuple[Check, ...]:
        """The checks that could not be made, and that the policy does without."""
        return tuple(check for check in self.checks if check.outcome is Outcome.SKIPPED)

"""The verdict on a signed document: every check that was made of it, and the ones that had to be."""

from dataclasses import dataclass

from confide.attest.check import Check, Outcome


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Of all checks of one document. required: codes of those without which nothing is verified."""

    checks: tuple[Check, ...]
    required: frozenset[str]
    simulated: bool = False

    @property
    def verified(self) -> bool:
        """Whether nothing failed, and all that is required passed. A check that was not made is not one that passed."""
        return not self.failures and self.required <= {one.code for one in self.checks if one.passed}

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(one for one in self.checks if one.outcome is Outcome.FAIL)

    def verdict(self) -> str:
        """In one line. What is simulated says so first."""
        kind = "SIMULATED, proves nothing about any hardware: " if self.simulated else ""
        missing = ", ".join(one.code for one in self.checks if one.outcome is Outcome.SKIPPED)
        made = sum(one.outcome is not Outcome.SKIPPED for one in self.checks)
        rest = f"; not checked: {missing}" if missing else ""
        if self.failures:
            return f"{kind}refused: {len(self.failures)} of {made} checks failed{rest}"
        return f"{kind}{'verified' if self.verified else 'not verified'}: all {made} checks passed{rest}"

"""What an appraisal found: every check with what was expected and what was seen, and the verdict."""

from dataclasses import dataclass
from datetime import datetime

from confide.attest.claims import Claims, RootKind
from confide.attest.evidence import Family


@dataclass(frozen=True)
class Check:
    """One check. code: stable, such as tcb-status or debug; passed or not, with both sides in words."""

    code: str
    expected: str
    seen: str
    passed: bool


@dataclass(frozen=True)
class AttestationResult:
    """The verdict on one piece of evidence at one time. claims: None where the evidence itself was refused."""

    family: Family
    at: datetime
    checks: tuple[Check, ...]
    claims: Claims | None

    @property
    def trusted(self) -> bool:
        """Whether every check passed, and there was at least one."""
        return self.claims is not None and bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def simulated(self) -> bool:
        """Whether any of it rests on a root that somebody made for tests: it proves nothing about any hardware."""
        return self.claims is not None and any(one.root is RootKind.SIMULATED for one in self.claims.everyone())

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)

"""One check: what was expected, what was seen, and whether it passed, failed or could not be made.

A check that was skipped is not a pass. Whoever verifies evidence reports it with the reason; only a policy may put up
with it.
"""

from dataclasses import dataclass
from enum import StrEnum

from confide.attest.clauses import clause_of
from confide.printable import printable


class Outcome(StrEnum):
    """What became of a check."""

    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Check:
    """One check. code: stable, such as tcb-status or debug. clause: of the specification that asks for it.

    seen: in words; for one that was skipped, the reason.
    """

    code: str
    expected: str
    seen: str
    outcome: Outcome
    clause: str = ""

    @property
    def passed(self) -> bool:
        """Whether it was made, and passed."""
        return self.outcome is Outcome.PASS


def check(code: str, expected: str, seen: str, ok: bool, clause: str = "") -> Check:
    """A check that was made. clause: that of its code, unless the caller knows a closer one.

    Its words may be a policy's or a workload's: they are one printable line from here on.
    """
    return _check(code, expected, seen, Outcome.PASS if ok else Outcome.FAIL, clause)


def skipped(code: str, expected: str, because: str, clause: str = "") -> Check:
    """A check that could not be made. because: the reason, which follows "not checked, because"."""
    return _check(code, expected, f"not checked, because {because}", Outcome.SKIPPED, clause)


def _check(code: str, expected: str, seen: str, outcome: Outcome, clause: str) -> Check:
    return Check(code, printable(expected), printable(seen), outcome, clause or clause_of(code))

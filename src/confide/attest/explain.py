"""A verdict in words: one row for each check, for whatever prints tables."""

from collections.abc import Iterable
from typing import Final, NamedTuple

from confide.attest.check import Check, Outcome
from confide.attest.result import AttestationResult
from confide.printable import printable

_ORDER: Final = (Outcome.FAIL, Outcome.SKIPPED, Outcome.PASS)
_WORDS: Final = {Outcome.FAIL: "FAIL", Outcome.SKIPPED: "not checked", Outcome.PASS: "pass"}


class Row(NamedTuple):
    """One check, in the words of people."""

    check: str
    expected: str
    seen: str
    verdict: str
    clause: str


def explain(result: AttestationResult) -> list[Row]:
    """Every check, those that failed first, and then those that were not made. A workload chose some of the words."""
    return rows(result.checks)


def rows(checks: Iterable[Check]) -> list[Row]:
    """The same for checks of whatever."""
    checks = sorted(checks, key=lambda check: _ORDER.index(check.outcome))
    return [
        Row(*map(printable, (check.code, check.expected, check.seen, _WORDS[check.outcome], check.clause)))
        for check in checks
    ]


def verdict(result: AttestationResult) -> str:
    """The verdict in one line. What is simulated says so first."""
    kind = "SIMULATED, proves nothing about any hardware: " if result.simulated else ""
    count = len(result.failures)
    if result.trusted:
        made = len(result.checks) - len(result.not_checked)
        return f"{kind}trusted: all {made} checks passed{_not_checked(result)}"
    return f"{kind}refused: {count} of {len(result.checks)} checks failed"


def _not_checked(result: AttestationResult) -> str:
    codes = ", ".join(dict.fromkeys(check.code for check in result.not_checked))
    return f"; not checked, by leave of the policy: {codes}" if codes else ""

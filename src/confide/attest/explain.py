"""A verdict in words: one row for each check, for whatever prints tables."""

from typing import NamedTuple

from confide.attest.result import AttestationResult


class Row(NamedTuple):
    """One check, in the words of people."""

    check: str
    expected: str
    seen: str
    verdict: str


def explain(result: AttestationResult) -> list[Row]:
    """Every check, those that failed first."""
    checks = sorted(result.checks, key=lambda check: check.passed)
    return [Row(check.code, check.expected, check.seen, "pass" if check.passed else "FAIL") for check in checks]


def verdict(result: AttestationResult) -> str:
    """The verdict in one line. What is simulated says so first."""
    kind = "SIMULATED, proves nothing about any hardware: " if result.simulated else ""
    count = len(result.failures)
    if result.trusted:
        return f"{kind}trusted: all {len(result.checks)} checks passed"
    return f"{kind}refused: {count} of {len(result.checks)} checks failed"

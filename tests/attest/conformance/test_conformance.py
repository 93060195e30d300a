"""Every case gives its verdict, and gives it for its reason."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from tests.attest.conformance.evidence import FORGED, real
from tests.attest.families.cases import Case

from confide.attest.check import Outcome
from confide.attest.policy import AnyPolicy
from confide.attest.policy_toml import any_policy_from_toml
from confide.attest.result import AttestationResult
from confide.attest.roots import ProductionRoots
from confide.attest.verifier import Verifier
from confide.errors import InvalidPolicy

HERE = Path(__file__).parent
CASES: list[dict[str, Any]] = tomllib.loads((HERE / "cases.toml").read_text())["case"]
XFAIL: dict[str, str] = tomllib.loads((HERE / "xfail.toml").read_text()).get("xfail", {})


def parameters() -> list[Any]:
    """The cases, those of the list of exceptions marked."""
    return [
        pytest.param(
            case,
            id=case["id"],
            marks=[pytest.mark.xfail(reason=XFAIL[case["id"]], strict=True)] if case["id"] in XFAIL else [],
        )
        for case in CASES
    ]


def made(case: dict[str, Any], folder: Path, test_data: Path | None) -> Case:
    if "evidence" in case:
        return FORGED[case["evidence"]](folder)
    assert test_data is not None
    path = test_data / "evidence"
    if not (path / case["file"]).exists():
        pytest.skip(f"{case['file']} is not there")
    return real(path, case["file"], case["at"])


def policy_of(case: dict[str, Any], kind: str) -> AnyPolicy:
    text = case["policy"].replace("{digits}", "9" * 4301).replace("{dots}", ".".join(["a"] * 60_000))
    return any_policy_from_toml(f'confide-policy = 1\nkind = "{kind}"\n{text}\n')


def appraised(case: dict[str, Any], folder: Path, test_data: Path | None) -> AttestationResult:
    given = made(case, folder, test_data)
    policy = policy_of(case, "production" if isinstance(given.roots, ProductionRoots) else "simulated")
    return Verifier(given.roots).appraise(given.evidence, given.collateral, policy, given.now)


@pytest.mark.parametrize("case", parameters())
def test_conformance(case: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if case.get("invalid"):
        with pytest.raises(InvalidPolicy, match=r"[.;]"):
            policy_of(case, "simulated")
        return
    data = request.getfixturevalue("test_data") if "file" in case else None
    result = appraised(case, tmp_path, data)
    assert sorted({check.code for check in result.failures}) == case.get("failing", [])
    assert result.trusted is not bool(case.get("failing"))
    if result.trusted:
        skipped = {check.code for check in result.checks if check.outcome is Outcome.SKIPPED}
        assert sorted(skipped) == case.get("skipped", [])
    assert [check.code for check in result.checks if not check.clause] == []


def test_the_cases_are_told_apart_and_say_what_they_test() -> None:
    assert len({case["id"] for case in CASES}) == len(CASES)
    assert all(case["clause"] and ("evidence" in case) != ("file" in case) for case in CASES)
    assert {case["evidence"] for case in CASES if "evidence" in case} == set(FORGED)
    assert set(XFAIL) <= {case["id"] for case in CASES}

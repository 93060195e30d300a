"""Every case gives its verdict, and gives it for its reason."""

import tomllib
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.attest.conformance.evidence import FORGED, FORMS, SIGSTORE, real, stating
from tests.attest.families.cases import NOW, Case
from tests.attest.test_configuration import FULL, MODEL
from tests.attest.test_tokens import jwks

from confide.attest.check import Outcome
from confide.attest.collateral import Provenance
from confide.attest.configuration import Configuration
from confide.attest.policy import AnyPolicy
from confide.attest.policy_toml import any_policy_from_toml
from confide.attest.result import AttestationResult
from confide.attest.roots import ProductionRoots
from confide.attest.statement import Statement
from confide.attest.verifier import Verifier
from confide.errors import InvalidPolicy

HERE = Path(__file__).parent
CASES: list[dict[str, Any]] = tomllib.loads((HERE / "cases.toml").read_text())["case"]
XFAIL: dict[str, str] = tomllib.loads((HERE / "xfail.toml").read_text()).get("xfail", {})


FIELDS = {
    *("id", "clause", "policy", "failing", "skipped", "says", "invalid"),
    *("evidence", "file", "at", "collateral", "form", "enrolled"),
    *("states", "unsigned", "sent", "newest-evaluation"),
}
"""What a case may say, so that nothing misspelt is passed over."""
RUN = f"{NOW - timedelta(minutes=30):%Y-%m-%dT%H:%M:%SZ}"
"""When the self-test ran, where a case does not say."""


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


def made(case: dict[str, Any], folder: Path, request: pytest.FixtureRequest, statement: Statement | None) -> Case:
    if statement is not None:
        return stating(folder, msgspec.structs.replace(statement, nonce="bb" * 32) if "unsigned" in case else statement)
    if "evidence" in case:
        return FORGED[case["evidence"]](folder)
    path = request.getfixturevalue("test_data") / "evidence"
    beside: list[str] = case.get("collateral", [])
    for name in (case["file"], *beside):
        if not (path / name).exists():
            pytest.skip(f"{name} is not there")
    return real(path, case["file"], case["at"], beside, case.get("form", "as it is"), case.get("enrolled", False))


def policy_of(case: dict[str, Any], kind: str) -> AnyPolicy:
    text = case["policy"].replace("{digits}", "9" * 4301).replace("{dots}", ".".join(["a"] * 60_000))
    text = text.replace("{trusted-root}", SIGSTORE.trusted_root()).replace("{keys}", jwks())
    return any_policy_from_toml(f'confide-policy = 1\nkind = "{kind}"\n{text}\n')


def stated(case: dict[str, Any]) -> Statement | None:
    """What the workload says, if the case is about that: the usual, with this changed."""
    if "states" not in case:
        return None
    said = msgspec.to_builtins(FULL) | {"self_test": {**msgspec.to_builtins(FULL.self_test), "at": RUN}}
    return Statement("aa" * 32, MODEL, configuration=msgspec.convert(said | case["states"], Configuration))


def provenance(case: dict[str, Any]) -> Provenance:
    return Provenance(sent=case.get("sent", False), newest_evaluation=case.get("newest-evaluation"))


def appraised(case: dict[str, Any], folder: Path, request: pytest.FixtureRequest) -> AttestationResult:
    statement = stated(case)
    given = made(case, folder, request, statement)
    policy = policy_of(case, "production" if isinstance(given.roots, ProductionRoots) else "simulated")
    collateral = replace(given.collateral, provenance=provenance(case))
    return Verifier(given.roots).appraise(given.evidence, collateral, policy, given.now, statement=statement)


@pytest.mark.parametrize("case", parameters())
def test_conformance(case: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if case.get("invalid"):
        with pytest.raises(InvalidPolicy, match=r"[.;]"):
            policy_of(case, "simulated")
        return
    result = appraised(case, tmp_path, request)
    assert sorted({check.code for check in result.failures}) == case.get("failing", [])
    assert result.trusted is not bool(case.get("failing"))
    if result.trusted:
        skipped = {check.code for check in result.checks if check.outcome is Outcome.SKIPPED}
        assert sorted(skipped) == case.get("skipped", [])
    assert case.get("says", "") in " ".join(check.seen for check in result.failures)
    assert [check.code for check in result.checks if not check.clause] == []
    assert all(word.isprintable() for check in result.checks for word in (check.expected, check.seen))


def test_the_cases_are_told_apart_and_say_what_they_test() -> None:
    assert len({case["id"] for case in CASES}) == len(CASES)
    sources = ("evidence", "file", "states")
    assert all(case["clause"] and sum(source in case for source in sources) == 1 for case in CASES)
    assert set().union(*CASES) == FIELDS
    assert {case["evidence"] for case in CASES if "evidence" in case} == set(FORGED)
    assert {case["form"] for case in CASES if "form" in case} == set(FORMS) - {"as it is"}
    assert set(XFAIL) <= {case["id"] for case in CASES}

"""Every check that a verdict can show says which clause of which specification asks for it."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from tests.attest.fake_sigstore import IDENTITY, ISSUER, FakeSigstore
from tests.attest.made_up import NOW, tdx_claims
from tests.attest.test_configuration import FULL
from tests.attest.test_gpu_tokens import bundle
from tests.attest.test_gpu_tokens import verify as verify_gpu_token

import confide
from confide.attest.check import Check
from confide.attest.clauses import clause_of
from confide.attest.evidence import Family
from confide.attest.policy import Policy, appraise
from confide.attest.requirements import (
    AllOf,
    AnyOf,
    AnyRequirement,
    Azure,
    ChipIdIn,
    CollateralValid,
    ConfideVersion,
    ContextAtLeast,
    Corpus,
    Engine,
    Environment,
    FmspcIn,
    Fresh,
    Graph,
    Model,
    Nitro,
    NoAdapters,
    NoAdvisory,
    NoEgress,
    NotAfter,
    NotDebug,
    NotTrainedOn,
    NoUpstream,
    Nvidia,
    Options,
    PolicyVersion,
    PpidIn,
    ProductionRoot,
    Quantization,
    ReportData,
    Requirement,
    ScoreAtLeast,
    SelfTest,
    Sgx,
    SignedRelease,
    Snp,
    SnpTcb,
    Subject,
    TcbAtLeast,
    Tdx,
    Template,
    Tpm,
    TrainedOn,
    VerifierService,
    Weights,
)
from confide.attest.requirements.hardware import SGX_ATTRIBUTES, SNP_PLATFORM, SNP_POLICY, TD_ATTRIBUTES
from confide.attest.scores import Metric
from confide.attest.statement import Statement
from confide.errors import AttestationError
from sources import parsed

PACKAGE = Path(confide.__file__).parent
MAKERS = {"check": 0, "skipped": 0, "equal": 0, "_configured": 0, "_among": 0, "_only": 0, "_stated": 0, "_said": 0}
"""What makes checks, and which of its arguments is the code."""
STATEMENT = Statement("aa" * 32, "cd" * 32, configuration=FULL)


def hexadecimal(size: int) -> str:
    return "ab" * size


FULLY: dict[type[Requirement], Requirement] = {
    type(one): one
    for one in (
        Sgx(
            **{name: hexadecimal(size) for name, size in Sgx.sizes.items()},
            isvprodid=1,
            min_isvsvn=1,
            min_configsvn=1,
            attributes_set=tuple(SGX_ATTRIBUTES.bits)[:1],
            attributes_clear=tuple(SGX_ATTRIBUTES.bits)[1:],
        ),
        Tdx(
            **{name: hexadecimal(size) for name, size in Tdx.sizes.items()},
            rtmrs=(hexadecimal(48),) * 4,
            attributes_set=tuple(TD_ATTRIBUTES.bits)[:1],
            attributes_clear=tuple(TD_ATTRIBUTES.bits)[1:],
            min_tee_tcb_svn=hexadecimal(16),
        ),
        Snp(
            **{name: hexadecimal(size) for name, size in Snp.sizes.items()},
            min_tcb=SnpTcb(1, 1, 1, 1, 1),
            vmpl=0,
            policy_set=tuple(SNP_POLICY.bits)[:1],
            policy_clear=tuple(SNP_POLICY.bits)[1:],
            platform_set=tuple(SNP_PLATFORM.bits)[:1],
            platform_clear=tuple(SNP_PLATFORM.bits)[1:],
            min_guest_svn=1,
            migration_agent="none",
            signer="vcek",
        ),
        Tpm(pcrs={str(index): hexadecimal(32) for index in range(24)}),
        Azure(
            pcrs={str(index): hexadecimal(32) for index in range(24)},
            vm_id="390CBCF5-6C67-4D9B-98EF-C3F1699CC8FC",
            secure_boot=True,
        ),
        Nitro(pcrs={str(index): hexadecimal(48) for index in range(32)}, nonce="ab"),
        Nvidia(drivers=("1",), vbioses=("1",)),
        ProductionRoot(),
        NotDebug(),
        TcbAtLeast("UpToDate"),
        CollateralValid(),
        NoAdvisory(("INTEL-SA-00001",)),
        PpidIn((hexadecimal(16),)),
        FmspcIn((hexadecimal(6),)),
        ChipIdIn((hexadecimal(64),)),
        VerifierService("trustee", "issuer", "keys"),
        ReportData(hexadecimal(64)),
        Fresh(hexadecimal(32)),
        Model(hexadecimal(32), allow_upstream="llama"),
        PolicyVersion("1"),
        SignedRelease(IDENTITY, ISSUER, "30d", FakeSigstore().trusted_root()),
        ConfideVersion(("1",), (hexadecimal(32),)),
        ContextAtLeast(1),
        Corpus(hexadecimal(32), hexadecimal(32)),
        Engine(("a",), ("1",)),
        Environment({"a": "b"}),
        Graph(hexadecimal(32), "model", 2, hexadecimal(32)),
        NoAdapters(),
        NoEgress(),
        NoUpstream(),
        Options({"a": "b"}),
        Quantization(("f32",)),
        SelfTest(),
        Template((hexadecimal(32),)),
        Weights((hexadecimal(32),)),
        ScoreAtLeast(hexadecimal(32), Metric.PERPLEXITY, (Tdx(mrtd=hexadecimal(48)),), at_most=60.0),
        NotAfter("2026-12-01T00:00:00Z"),
        TrainedOn(hexadecimal(32), (Tdx(mrtd=hexadecimal(48)),), hexadecimal(32), "30d"),
        NotTrainedOn(hexadecimal(32), hexadecimal(32), (Tdx(mrtd=hexadecimal(48)),), "30d"),
        AllOf((NoEgress(),)),
        AnyOf((NoEgress(), Tdx())),
    )
}
"""One of each kind, asking for all that it can ask for."""


def subjects() -> Iterator[Subject]:
    """Machines of every family, with a statement and without one."""
    for family in Family:
        if family is Family.TOKEN:
            continue
        claims = tdx_claims(family=family, report_data=STATEMENT.digest())
        for statement in (None, STATEMENT):
            yield Subject(claims, NOW, statement)


def shown(requirement: Requirement) -> list[Check]:
    return [check for subject in subjects() for check in requirement.checks(subject)]


def test_there_is_one_of_each_kind_and_it_asks_for_everything() -> None:
    assert set(FULLY) == set(get_args(AnyRequirement))
    for one in FULLY.values():
        fields = {field.name: field.default for field in msgspec.structs.fields(one)}
        left = [name for name, default in fields.items() if default is None and getattr(one, name) is None]
        left = [] if isinstance(one, ScoreAtLeast) and left == ["at_least"] else left  # a metric has one limit
        assert not left, f"{type(one).__name__} does not ask for {left}"


@pytest.mark.parametrize("kind", FULLY, ids=lambda kind: kind.__name__)
def test_every_check_of_a_requirement_has_a_clause(kind: type[Requirement]) -> None:
    checks = shown(FULLY[kind])
    assert bool(checks) is not issubclass(kind, (NotDebug, ProductionRoot, CollateralValid, TcbAtLeast))
    assert [check.code for check in checks if not check.clause] == []


def test_what_every_policy_asks_for_has_a_clause() -> None:
    for subject in subjects():
        result = appraise(subject.claims, Policy(), subject.now)
        assert [check.code for check in result.checks if not check.clause] == []


def test_what_a_service_says_of_a_gpu_has_a_clause() -> None:
    found = [check for claims in verify_gpu_token(bundle()).everyone() for check in claims.checks]
    assert found
    assert [check.code for check in found if not check.clause] == []


def errors(kind: type[AttestationError] = AttestationError) -> Iterator[type[AttestationError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from errors(below)


@pytest.mark.parametrize("error", sorted(set(errors()), key=lambda error: error.code), ids=lambda error: error.code)
def test_evidence_that_is_refused_whole_is_refused_by_a_clause(error: type[AttestationError]) -> None:
    result = appraise(error("No."), Policy(), NOW)
    assert [(check.code, bool(check.clause)) for check in result.checks] == [(error.code, True)]


def unclaused(tree: ast.AST) -> Iterator[str]:
    """Codes that are written out where a check is made, without a clause there and without one by the code."""
    for node in ast.walk(tree):
        name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
        if name not in MAKERS or not isinstance(node, ast.Call) or not node.args:
            continue
        code = node.args[MAKERS[name]]
        named = any(keyword.arg == "clause" for keyword in node.keywords)
        # A clause by position is behind code, expected and reason (skipped), or those and whether it passed (check).
        named = named or len(node.args) > {"check": 4, "skipped": 3}.get(name, 9) or name == "_said"
        if isinstance(code, ast.Constant) and isinstance(code.value, str) and not named and not clause_of(code.value):
            yield code.value


def test_every_code_that_is_written_in_the_package_has_a_clause() -> None:
    sources = sorted(PACKAGE.rglob("*.py"))
    found = {f"{path.name}: {code}" for path in sources for code in unclaused(parsed(path))}
    assert not found
    assert list(unclaused(ast.parse("check('new', 'a', 'b', ok=True)"))) == ["new"]


def test_nobody_knows_the_clause_of_what_is_not_listed() -> None:
    assert clause_of("something-new") == ""

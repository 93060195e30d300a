"""`confide attest`: exit codes and what is printed, with a verifier that knows the answer."""

import json
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
from tests.attest.made_up import MRTD, tdx_claims

from confide.attest.claims import Claims, RootKind
from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence, Family
from confide.attest.policy import Policy, SimulatedPolicy
from confide.attest.policy_toml import to_toml
from confide.attest.requirements import Fresh, Tdx
from confide.attest.roots import ProductionRoots, Roots
from confide.attest.simulated import SimulatedTee
from confide.attest.statement import Statement
from confide.cli.app import main
from confide.errors import AttestationError, InvalidSignature, MalformedEvidence

QUOTE = bytes.fromhex("0400020081000000") + bytes(100)
STATEMENT = Statement(nonce="aa" * 32)


@dataclass
class Stub:
    """In the place of the real verifier: good claims under whatever roots it is given."""

    roots: Roots
    problem: ClassVar[AttestationError | None] = None
    asked: ClassVar[list[tuple[Evidence, Collateral]]] = []

    def verify(self, evidence: Evidence, collateral: Collateral, now: datetime) -> Claims:
        """The claims."""
        Stub.asked.append((evidence, collateral))
        if Stub.problem:
            raise Stub.problem
        root = RootKind.PRODUCTION if isinstance(self.roots, ProductionRoots) else RootKind.SIMULATED
        return tdx_claims(root=root, report_data=STATEMENT.digest())


@pytest.fixture(autouse=True)
def _stub(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("confide.attest.verifier")
    module.Verifier = Stub  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(Stub, "problem", None)
    monkeypatch.setattr(Stub, "asked", [])
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one file of each sort, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("quote").write_bytes(QUOTE)
    Path("dcap.json").write_text('{"tcb_info": "", "qe_identity": ""}')
    Path("policy.toml").write_text(to_toml(Policy.all_of(Tdx(mrtd=MRTD.hex()), Fresh("aa" * 32))))
    Path("strict.toml").write_text(to_toml(Policy.all_of(Tdx(mrtd="00" * 48))))
    Path("simulated.toml").write_text(to_toml(SimulatedPolicy()))
    Path("statement.json").write_text(json.dumps({"nonce": "aa" * 32}))
    Path("root.der").write_bytes(b"root")
    SimulatedTee.create("tee")
    return tmp_path


def run(line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Exit code and all that was printed."""
    monkeypatch.setattr(sys, "argv", ["confide", "attest", *line.split()])
    with pytest.raises(SystemExit) as stop:
        main()
    printed = capsys.readouterr()
    return int(stop.value.code or 0), printed.out + printed.err


VERIFY = "verify --evidence quote --collateral dcap.json --at 2026-02-19"


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        (VERIFY, 0, "trusted: all"),
        (f"{VERIFY} --policy policy.toml --statement statement.json", 0, "trusted: all"),
        (f"{VERIFY} --policy policy.toml", 10, "nonce"),
        (f"{VERIFY} --policy strict.toml", 10, "mrtd"),
        (f"{VERIFY} --simulated-root tee/root.pem", 0, "SIMULATED, proves nothing"),
        (f"{VERIFY} --simulated-root tee/root.pem --policy policy.toml", 30, "real hardware"),
        (f"{VERIFY} --policy simulated.toml", 30, "simulated hardware"),
        ("verify --evidence quote --at 2026-03-02", 10, "collateral-valid"),
        ("verify --evidence statement.json --at 2026-02-19", 20, "malformed-evidence"),
        ("verify --evidence root.der --at 2026-02-19", 20, "--family"),
        ("verify --evidence root.der --family tdx --at 2026-02-19", 0, "trusted"),
        ("verify --evidence quote --collateral quote --at 2026-02-19", 20, "collateral"),
        (f"{VERIFY} --statement quote", 20, "statement"),
        ("verify quote", 20, "no bundle"),
        ("verify --evidence quote", 30, "--at"),
        ("verify --evidence quote --at yesterday", 30, "--at takes"),
        ("verify --evidence nothing --at 2026-02-19", 30, "cannot be read"),
        (f"{VERIFY} --policy dcap.json", 30, "invalid-policy"),
        (f"{VERIFY} --policy root.der --family mine", 30, "family"),
        ("verify quote --evidence quote", 30, "either"),
        ("verify --allow-simulated", 30, "No such option"),
        ("nonsense", 30, "No such command"),
    ],
)
def test_exit_codes(
    line: str, code: int, says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(line, capsys, monkeypatch) == (code, _Containing(says))


class _Containing(str):
    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and str(self) in other

    __hash__ = str.__hash__


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(("problem", "code"), [(InvalidSignature("No."), 10), (MalformedEvidence("Short."), 20)])
def test_errors_of_verification_are_failed_checks(
    problem: AttestationError, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stub, "problem", problem)
    exit_code, text = run(f"{VERIFY} --json", capsys, monkeypatch)
    answer: dict[str, Any] = json.loads(text)
    assert exit_code == code
    assert not answer["trusted"]
    assert [check["code"] for check in answer["checks"]] == [problem.code]


@pytest.mark.usefixtures("files")
def test_evidence_and_collateral_reach_the_verifier(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(VERIFY, capsys, monkeypatch)
    document = Path("dcap.json").read_bytes()
    assert Stub.asked == [(Evidence(Family.TDX, QUOTE), Collateral({"dcap": document}))]


@pytest.mark.usefixtures("files")
def test_freeze_verify_and_explain(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    freeze = VERIFY.replace("verify", "freeze") + " --policy policy.toml --statement statement.json --out kept"
    assert run(freeze, capsys, monkeypatch)[0] == 0
    assert run(freeze, capsys, monkeypatch)[0] == 30  # it exists
    assert run("verify kept", capsys, monkeypatch)[0] == 0
    assert run("verify kept --policy strict.toml", capsys, monkeypatch)[0] == 10
    assert run("verify kept --at 2026-04-01 ", capsys, monkeypatch)[0] == 10  # every policy asks for validity
    assert run("verify kept --collateral dcap.json", capsys, monkeypatch)[0] == 30
    code, text = run("explain kept", capsys, monkeypatch)
    assert code == 0
    assert MRTD.hex() in text
    assert 'require = "tdx"' in text
    code, text = run("explain kept --json", capsys, monkeypatch)
    assert json.loads(text)["claims"]["tdx mrtd"] == MRTD.hex()
    kept = Path("kept").read_text()
    Path("kept").write_text(kept.replace('"outcome": "pass"', '"outcome": "fail"', 1))
    assert run("verify kept", capsys, monkeypatch) == (10, _Containing("record"))
    Path("kept").write_text(kept[:-50])
    assert run("verify kept", capsys, monkeypatch)[0] == 20


@pytest.mark.usefixtures("files")
def test_a_simulated_bundle_is_not_taken_unasked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    freeze = VERIFY.replace("verify", "freeze") + " --simulated-root tee/root.pem --out kept"
    assert run(freeze, capsys, monkeypatch)[0] == 0
    assert run("verify kept", capsys, monkeypatch) == (30, _Containing("SIMULATED"))
    assert run("verify kept --policy strict.toml", capsys, monkeypatch) == (30, _Containing("SIMULATED"))
    assert run("verify kept --simulated-root tee/root.pem", capsys, monkeypatch) == (0, _Containing("SIMULATED"))

"""Bundles: frozen, thawed, and tampered with."""

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from tests.attest.made_up import NOW, StubVerifier, tdx_claims

from confide.attest.bundle import Bundle, freeze
from confide.attest.claims import Claims, RootKind
from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence, Family
from confide.attest.explain import explain, verdict
from confide.attest.policy import AnyPolicy, Policy, SimulatedPolicy
from confide.attest.requirements import Fresh, NotDebug
from confide.attest.statement import Statement
from confide.errors import InvalidPolicy, InvalidSignature, MalformedEvidence

STATEMENT = Statement(nonce="aa" * 32, channel_keys={"hpke": "bb"})
MEMBER = Evidence(Family.TDX, b"signed", {"event_log": b"\0\xff"})
EVIDENCE = Evidence(Family.COMPOSITE, b"", members=(MEMBER, Evidence(Family.NVIDIA, b"gpu")))
COLLATERAL = Collateral(members=(Collateral({"dcap": b"{}"}), Collateral()))
LAX = 'confide-policy = 1\nkind = "production"\nall = []\n'
POLICY = Policy.all_of(Fresh("aa" * 32))


class Signed:
    """A verifier that knows one piece of evidence and one of collateral by heart, and refuses anything else."""

    def __init__(self, root: RootKind = RootKind.PRODUCTION) -> None:
        self._claims = tdx_claims(root=root, report_data=STATEMENT.digest())

    def verify(self, evidence: Evidence, collateral: Collateral, now: datetime) -> Claims:
        """The claims."""
        if (evidence, collateral) != (EVIDENCE, COLLATERAL):
            raise InvalidSignature("Altered.")
        return self._claims


def frozen(policy: AnyPolicy = POLICY, root: RootKind = RootKind.PRODUCTION) -> bytes:
    """A bundle as a file."""
    return freeze(Signed(root), EVIDENCE, COLLATERAL, policy, NOW, statement=STATEMENT).write()


def test_a_bundle_verifies_again() -> None:
    bundle = Bundle.read(frozen())
    assert bundle.own_policy() == POLICY
    result = bundle.reverify(Signed())
    assert result.trusted, result.failures
    assert result.at == NOW
    assert Bundle.read(bundle.write()) == bundle


def _alter(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        *folders, name = path.split("/")
        for folder in folders:
            document = document[int(folder)] if isinstance(document, list) else document[folder]
        document[name] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _alter("evidence/members/0/raw", "c2lnbmVk" + "AA=="),
        _alter("evidence/members/0/parts/event_log", "AAAA"),
        _alter("collateral/members/0/documents/dcap", "AAAA"),
        _alter("at", (NOW + timedelta(days=30)).isoformat()),
        _alter("policy", LAX),
        _alter("statement/nonce", "ab" * 32),
        _alter("result/checks", []),
        _alter("result/simulated", True),
    ],
)
def test_what_was_altered_no_longer_verifies(change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(frozen())
    change(document)
    assert not Bundle.read(json.dumps(document).encode()).reverify(Signed()).trusted


def test_a_refusal_made_to_look_like_trust_is_found() -> None:
    refused = Policy.all_of(Fresh("ab" * 32))
    document = json.loads(frozen(refused))
    assert not document["result"]["trusted"]
    document["result"]["trusted"] = True
    result = Bundle.read(json.dumps(document).encode()).reverify(Signed())
    assert [check.code for check in result.failures] == ["nonce", "record"]


def test_ones_own_policy_and_time_count_instead() -> None:
    bundle = Bundle.read(frozen())
    assert bundle.reverify(Signed(), policy=Policy.all_of(NotDebug())).trusted
    later = bundle.reverify(Signed(), now=NOW + timedelta(days=30))
    assert [check.code for check in later.failures] == ["collateral-valid"]


def test_a_simulated_bundle_stays_one() -> None:
    data = frozen(SimulatedPolicy(), RootKind.SIMULATED)
    bundle = Bundle.read(data)
    result = bundle.reverify(Signed(RootKind.SIMULATED))
    assert bundle.simulated
    assert result.trusted
    assert verdict(result).startswith("SIMULATED")
    assert not bundle.reverify(Signed(RootKind.SIMULATED), policy=Policy()).trusted
    document = json.loads(data) | {"policy_kind": "production"}
    with pytest.raises(InvalidPolicy):
        Bundle.read(json.dumps(document).encode()).reverify(Signed(RootKind.SIMULATED))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        frozen()[:-100],
        frozen().replace(b'"confide-bundle": 2', b'"confide-bundle": 1'),
        frozen().replace(b'"at":', b'"more": 1, "at":'),
        frozen().replace(b"+00:00", b"").replace(b'12:00:00Z"', b'12:00:00"'),
        b" " * (17 << 20),
        b"[" * 100_000,
    ],
)
def test_what_is_no_bundle(data: bytes) -> None:
    with pytest.raises(MalformedEvidence):
        Bundle.read(data)


def test_explain_puts_failures_first() -> None:
    result = Bundle.read(frozen(Policy.all_of(NotDebug(), Fresh("ab" * 32)))).reverify(Signed())
    rows = explain(result)
    assert [row.verdict for row in rows] == ["FAIL", *["pass"] * (len(rows) - 1)]
    assert rows[0][:3] == ("nonce", "ab" * 32, "aa" * 32)
    assert verdict(result) == f"refused: 1 of {len(rows)} checks failed"
    error = freeze(StubVerifier(InvalidSignature("No.")), EVIDENCE, COLLATERAL, Policy(), NOW)
    assert [check.code for check in error.result.checks] == ["invalid-signature"]

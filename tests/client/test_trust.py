"""What trust statements say of evidence that passed, by what was checked of it."""

from typing import Any

import msgspec
import pytest
from tests.attest.made_up import CONFIGURATION, MRTD, NOW, tdx_claims

from confide.attest.claims import RootKind
from confide.attest.configuration import CorpusServed, Egress, SelfTestRun, UpstreamUsed
from confide.attest.defaults import Exceptions
from confide.attest.evidence import Family
from confide.attest.policy import Policy, SimulatedPolicy, appraise
from confide.attest.requirements import AnyOf, Corpus, Model, Tdx
from confide.attest.result import AttestationResult
from confide.attest.statement import Statement
from confide.trust.enclave import enclave_trust, replicas_trust, root_of

STATEMENT = Statement("ab" * 16, model_digest="cd" * 32, configuration=CONFIGURATION)


SOUND = msgspec.structs.replace(
    CONFIGURATION, egress=Egress.NONE, self_test=SelfTestRun("passed", "2026-02-19T12:00:00Z", "ab" * 32, 40)
)


def result(*requirements: Any, **claims: Any) -> AttestationResult:
    kind = SimulatedPolicy if claims.get("root") is RootKind.SIMULATED else Policy
    found = tdx_claims(report_data=STATEMENT.digest(), **claims)
    verdict = appraise(found, kind.all_of(*requirements), NOW, statement=STATEMENT)
    assert verdict.trusted
    return verdict


def test_what_was_measured_is_what_is_assumed() -> None:
    trust = enclave_trust(result(Tdx(mrtd=MRTD.hex()), Model("cd" * 32)), configuration=SOUND)
    assert trust.protection == "enclave"
    assert trust.prompt.hidden_from == ("whoever runs its machine", "networks and gateways")
    assert trust.prompt.assumption.startswith("tdx hardware and its root, Intel; the measured code; X25519")
    assert trust.leaks == ("the network and the machine see when you ask, and how long prompts and answers are",)


@pytest.mark.parametrize(
    ("requirements", "missing"),
    [
        ((), ("measurement", "model")),
        ((Tdx(),), ("measurement", "model")),
        ((Tdx(mrtd=MRTD.hex()),), ("model",)),
        ((Model("cd" * 32),), ("measurement",)),
        ((AnyOf((Tdx(mrtd="00" * 48), Tdx(rtmrs=("", "01" * 48)))),), ("model",)),
        ((AnyOf((Tdx(), Tdx(mrtd=MRTD.hex()))),), ("measurement", "model")),
    ],
)
def test_what_a_policy_leaves_open_is_said(requirements: tuple[Any, ...], missing: tuple[str, ...]) -> None:
    trust = enclave_trust(result(*requirements))
    said = [leak for leak in trust.leaks if leak.startswith("the policy names no ")]
    assert [leak.split()[4].rstrip(",") for leak in said] == list(missing)
    assert ("code that nobody measured" in trust.prompt.assumption) == ("measurement" in missing)


def test_a_corpus_is_read_by_asking_and_has_no_self_test() -> None:
    served = CorpusServed("44" * 32, 3, "cd" * 32, "66" * 32)
    stated = msgspec.structs.replace(CONFIGURATION, egress=Egress.NONE, corpus=served)
    statement = Statement("ab" * 16, "cd" * 32, configuration=stated)
    policy = Policy.all_of(Tdx(mrtd=MRTD.hex()), Corpus("44" * 32, "66" * 32, 3))
    verdict = appraise(tdx_claims(report_data=statement.digest()), policy, NOW, statement=statement)
    assert verdict.trusted
    trust = enclave_trust(verdict, configuration=stated)
    assert trust.leaks == ("the network and the machine see when you ask, and how long prompts and answers are",)
    assert (trust.weights.seen_by, trust.weights.hidden_from) == (("the owner", "the attested workload", "you"), ())


def test_exceptions_of_the_policy_are_said() -> None:
    policy = Policy(exceptions=Exceptions(allow_debug=True))
    trust = enclave_trust(appraise(tdx_claims(), policy, NOW))
    assert any("an exception, allow-debug: the machine's owner may read everything" in leak for leak in trust.leaks)


def test_simulated_evidence_says_so_in_capitals_everywhere() -> None:
    trust = enclave_trust(result(root=RootKind.SIMULATED))
    for exposure in (trust.prompt, trust.weights, trust.output):
        assert exposure.assumption == "SIMULATED EVIDENCE: NOTHING IS PROTECTED"
        assert exposure.hidden_from == ()
    assert str(trust).count("NOTHING IS PROTECTED") == 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"upstream": UpstreamUsed("llama", "http://127.0.0.1:8000/v1")}, "another program"),
        ({"egress": Egress.OPEN}, "open connections to anywhere"),
        ({"egress": Egress.NEIGHBOURS_AND_LEDGER}, "write to a database of its operator"),
        ({"self_test": SelfTestRun("not-run")}, "self-test: not-run"),
        ({"self_test": SelfTestRun("failed")}, "self-test: failed"),
    ],
)
def test_what_runs_is_said_where_it_matters(change: dict[str, Any], said: str) -> None:
    trust = enclave_trust(result(), configuration=msgspec.structs.replace(SOUND, **change))
    assert [leak for leak in trust.leaks if said in leak]
    assert ("the program that it asks" in trust.prompt.seen_by) == ("upstream" in change)
    assert not [leak for leak in enclave_trust(result(), configuration=SOUND).leaks if said in leak]
    assert [leak for leak in enclave_trust(result()).leaks if "does not say what runs" in leak]


def test_whose_root_it_is() -> None:
    assert root_of(result()) == "Intel"
    assert root_of(result(root=RootKind.SIMULATED)) == "a simulated root"
    assert root_of(result(family=Family.SNP)) == "AMD"
    assert root_of(result(family=Family.TPM)) == "an attestation key that you enrolled"


def test_replicas_are_counted_and_all_that_they_rest_on_is_said() -> None:
    sound = enclave_trust(result(Tdx(mrtd=MRTD.hex()), Model("cd" * 32)), configuration=SOUND)
    asking = msgspec.structs.replace(SOUND, upstream=UpstreamUsed("llama", "http://127.0.0.1:8000/v1"))
    other = enclave_trust(result(Model("cd" * 32)), configuration=asking)
    assert replicas_trust([sound], 1) is sound
    trust = replicas_trust([sound, other], 4)
    assert trust.prompt.seen_by == ("you", "the attested workload", "the program that it asks")
    assert trust.prompt.hidden_from == sound.prompt.hidden_from
    assert trust.prompt.assumption == f"{sound.prompt.assumption}; and {other.prompt.assumption}"
    assert trust.leaks[-1].startswith("which of up to 4 replicas answers, which networks and balancers pick; 2 were")
    assert set(sound.leaks) | set(other.leaks) == set(trust.leaks[:-1])
    assert "not hidden: which of up to 4 replicas answers" in str(trust)

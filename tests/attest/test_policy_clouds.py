"""Policies over Azure's machines and Nitro enclaves: what can be asked for, what is left open, and who speaks."""

from dataclasses import replace
from typing import Any

import pytest
from tests.attest.families.authorities import crl
from tests.attest.families.cases import Case
from tests.attest.families.forged_azure import azure_case
from tests.attest.families.forged_nitro import PCRS, nitro_case
from tests.attest.families.forged_snp import GENOA
from tests.attest.families.forged_tpm import PCRS as TPM_PCRS

from confide.attest.defaults import Exceptions
from confide.attest.policy import SimulatedPolicy
from confide.attest.policy_toml import simulated_policy_from_toml, to_toml
from confide.attest.policy_words import left_open
from confide.attest.requirements import AnyRequirement, Azure, Nitro, Snp, SnpTcb, Tpm
from confide.attest.result import AttestationResult
from confide.attest.strict import strict_policy
from confide.attest.verifier import Verifier
from confide.errors import InvalidPolicy
from confide.trust.enclave import root_of

MEASUREMENT = "00" * 48
UNLISTED = Exceptions(allow_tcb=("Unknown",), revocation="if-available")  # type: ignore[arg-type]


def appraised(case: Case, *requirements: AnyRequirement, exceptions: Exceptions = UNLISTED) -> AttestationResult:
    policy = SimulatedPolicy(requirements, "", exceptions)
    assert simulated_policy_from_toml(to_toml(policy)) == policy
    return Verifier(case.roots).appraise(case.evidence, case.collateral, policy, case.now)


def failed(result: AttestationResult) -> set[str]:
    return {check.code for check in result.failures}


def test_azure() -> None:
    case = azure_case()
    good = {"0": TPM_PCRS[:32].hex(), "7": TPM_PCRS[32:].hex()}
    wanted = (Azure(pcrs=good, secure_boot=True), Snp(measurement=MEASUREMENT, vmpl=0))
    assert appraised(case, *wanted).trusted
    assert failed(appraised(case, Azure(pcrs=good | {"7": "11" * 32}))) == {"pcr7"}
    assert failed(appraised(case, Azure(pcrs=good | {"8": "11" * 32}))) == {"pcr8"}
    assert failed(appraised(case, Azure(secure_boot=False))) == {"secure-boot"}
    assert failed(appraised(case, Azure(vm_id="390CBCF5-6C67-4D9B-98EF-C3F1699CC8FC"))) == {"vm-id"}
    assert failed(appraised(case, Snp(measurement="11" * 48))) == {"measurement"}
    assert failed(appraised(case, Tpm())) == {"family"}
    assert failed(appraised(nitro_case(), Azure())) == {"family"}


def test_azure_without_exceptions_needs_the_list_and_a_minimum() -> None:
    case = azure_case()
    assert failed(appraised(case, exceptions=Exceptions())) == {"tcb-status", "revocation"}
    listed = case.with_documents(crl=crl(GENOA.ark))
    minimum = Snp(measurement=MEASUREMENT, min_tcb=SnpTcb(snp=8, microcode=200))
    assert appraised(listed, minimum, exceptions=Exceptions()).trusted
    newer = Snp(measurement=MEASUREMENT, min_tcb=SnpTcb(snp=9, microcode=200))
    assert failed(appraised(listed, newer, exceptions=Exceptions())) >= {"snp-tcb-snp", "tcb-status"}


def test_a_debuggable_machine_of_azures() -> None:
    assert failed(appraised(azure_case(policy=0x30000 | 1 << 19))) == {"debug"}


def test_nitro() -> None:
    case = nitro_case()
    image = {"0": PCRS[0].hex(), "8": PCRS[8].hex()}
    assert appraised(case, Nitro(pcrs=image, nonce=b"a client's nonce".hex())).trusted
    assert failed(appraised(case, Nitro(pcrs=image | {"1": "11" * 48}))) == {"pcr1"}
    assert failed(appraised(case, Nitro(pcrs={"31": "11" * 48}))) == {"pcr31"}
    assert failed(appraised(case, Nitro(nonce="11" * 16))) == {"nonce"}
    assert failed(appraised(case, exceptions=Exceptions())) == {"tcb-status", "revocation"}


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Nitro, {"pcrs": {}}),
        (Nitro, {"pcrs": {"32": "11" * 48}}),
        (Nitro, {"pcrs": {"00": "11" * 48}}),
        (Nitro, {"pcrs": {"0": "11" * 32}}),
        (Nitro, {"pcrs": {"0": "AA" * 48}}),
        (Nitro, {"nonce": ""}),
        (Azure, {"pcrs": {}}),
        (Azure, {"pcrs": {"24": "11" * 32}}),
        (Azure, {"pcrs": {"0": "11" * 48}}),
        (Azure, {"vm_id": ""}),
        (Azure, {"vm_id": "machine"}),
        (Tpm, {"pcrs": {"24": "11" * 32}}),
    ],
)
def test_values_that_no_evidence_could_have(kind: type[AnyRequirement], fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidPolicy):
        kind(**fields)


def test_what_is_left_open() -> None:
    def opens(*requirements: AnyRequirement) -> str:
        return "\n".join(left_open(SimulatedPolicy(requirements)))

    assert "any paravisor" in opens(Azure(pcrs={"0": "11" * 32}))
    assert "any code" in opens(Azure(pcrs={"0": "11" * 32}))
    assert "paravisor starts is open" in opens(Azure(), Snp(measurement=MEASUREMENT))
    both = opens(Azure(pcrs={"0": "11" * 32}), Snp(measurement=MEASUREMENT))
    assert "paravisor" not in both
    assert "any code" not in both
    assert "any code" in opens(Nitro())
    for named in ("0",), ("8",), ("1", "2"):
        assert "any code" not in opens(Nitro(pcrs=dict.fromkeys(named, "11" * 48)))
    for named in ("1",), ("2",), ("3", "4"):
        assert "any code" in opens(Nitro(pcrs=dict.fromkeys(named, "11" * 48)))
    assert "any code" in opens(Nitro(pcrs=dict.fromkeys("012", "00" * 48)))


@pytest.mark.parametrize("make", [azure_case, nitro_case])
def test_strict_policies(make: Any) -> None:
    case: Case = make()
    policy = replace(strict_policy(case.verify()), exceptions=UNLISTED)
    result = Verifier(case.roots).appraise(case.evidence, case.collateral, policy, case.now)
    assert result.trusted, result.failures
    assert root_of(result) == "a simulated root"

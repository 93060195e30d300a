"""The one door: it finds the family's module, and refuses what no module should see."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from confide.attest.collateral import Collateral
from confide.attest.evidence import MAX_EVIDENCE_BYTES, Evidence, Family
from confide.attest.policy import Policy, SimulatedPolicy
from confide.attest.roots import ProductionRoots
from confide.attest.simulated import SimulatedTee
from confide.attest.verifier import Verifier
from confide.errors import AttestationError, MalformedEvidence, WrongCollateral

from .families.cases import NOW, Case
from .families.forged_nvidia import gpu_case
from .families.forged_snp import snp_case
from .families.forged_tpm import tpm_case


@pytest.mark.parametrize("case", [snp_case(), tpm_case(), gpu_case()])
def test_dispatch(case: Case) -> None:
    assert Verifier(case.roots).verify(case.evidence, case.collateral, case.now).family is case.evidence.family


@pytest.mark.parametrize("family", [Family.SNP, Family.TPM, Family.NVIDIA, Family.COMPOSITE])
def test_nothing_is_no_evidence(family: Family) -> None:
    with pytest.raises(MalformedEvidence):
        Verifier(ProductionRoots()).verify(Evidence(family, b""), Collateral(), NOW)


def test_oversized_evidence() -> None:
    parts = {"signature": bytes(MAX_EVIDENCE_BYTES)}
    with pytest.raises(MalformedEvidence, match="larger"):
        Verifier(ProductionRoots()).verify(Evidence(Family.TPM, b"1", parts), Collateral(), NOW)


def test_time_without_zone() -> None:
    with pytest.raises(ValueError, match="time zone"):
        Verifier(ProductionRoots()).verify(Evidence(Family.SNP, b""), Collateral(), datetime(2026, 1, 1))


def test_a_verdict_in_one_call(tmp_path: Path) -> None:
    tee = SimulatedTee.create(tmp_path / "tee")
    evidence, collateral = tee.quote(bytes(64)), tee.collateral()
    now = datetime.now(UTC)
    result = Verifier(tee.roots()).appraise(evidence, collateral, SimulatedPolicy(), now)
    assert result.trusted
    assert not Verifier(tee.roots()).appraise(evidence, collateral, Policy(), now).trusted
    refused = Verifier(ProductionRoots()).appraise(evidence, collateral, Policy(), now)
    assert [check.code for check in refused.failures] == ["unknown-root"]


def test_every_family_is_verified_or_refused_with_a_reason() -> None:
    """A service's token needs a policy that names the service; all others have a module."""
    verifier = Verifier(ProductionRoots())
    for family in Family:
        with pytest.raises(AttestationError) as caught:
            verifier.verify(Evidence(family, b"nothing"), Collateral(), NOW)
        assert (caught.type is WrongCollateral) == (family is Family.TOKEN)

"""Where collateral comes from, and what becomes of a workload where none does."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence, Family
from confide.attest.policy import SimulatedPolicy
from confide.attest.simulated import SimulatedTee
from confide.attest.verifier import Verifier
from confide.client.relying_party import RelyingParty
from confide.enclave.workload import Workload
from confide.errors import AttestationRefused, CollateralUnavailable, MalformedEvidence

NONCE = "ab" * 32


@pytest.fixture(scope="module")
def tee(tmp_path_factory: pytest.TempPathFactory) -> SimulatedTee:
    return SimulatedTee.create(tmp_path_factory.mktemp("machine") / "tee")


def test_collateral_that_was_not_sent_is_gathered(tee: SimulatedTee) -> None:
    asked: list[Family] = []

    def gather(evidence: Evidence) -> Collateral:
        asked.append(evidence.family)
        return tee.collateral()

    party = RelyingParty(Verifier(tee.roots()), SimulatedPolicy(), gather)
    assert party.appraise(Workload(tee, tee.collateral).attest(NONCE), NONCE, datetime.now(UTC)).result.trusted
    assert asked == []
    verified = party.appraise(Workload(tee).attest(NONCE), NONCE, datetime.now(UTC))
    assert verified.result.trusted
    assert asked == [Family.TDX]
    assert set(verified.collateral.documents) == {"dcap"}


def test_without_collateral_there_is_no_trust(tee: SimulatedTee) -> None:
    def gather(_: Evidence) -> Collateral:
        raise CollateralUnavailable("The vendor is asleep; try again later.")

    party = RelyingParty(Verifier(tee.roots()), SimulatedPolicy(), gather)
    with pytest.raises(AttestationRefused, match="The vendor is asleep") as caught:
        party.appraise(Workload(tee).attest(NONCE), NONCE, datetime.now(UTC))
    assert caught.value.checks == ("collateral-unavailable",)


def test_a_root_is_a_certificate(tmp_path: Path) -> None:
    path = tmp_path / "root.pem"
    path.write_bytes(b"no certificate")
    with pytest.raises(MalformedEvidence):
        RelyingParty.configure(simulated_root=path)

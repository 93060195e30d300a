"""Where collateral comes from, and what becomes of a workload where none does."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from confide.attest.collateral import Collateral
from confide.attest.collateral_lookup import SentCollateral
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


def test_the_user_chooses_the_collateral_whatever_was_sent(tee: SimulatedTee) -> None:
    asked: list[Family] = []

    class Vendor(SentCollateral):
        def find(self, evidence: Evidence, sent: Collateral) -> Collateral:
            asked.append(evidence.family)
            return tee.collateral()

    party = RelyingParty(Verifier(tee.roots()), SimulatedPolicy(), Vendor())
    for workload in (Workload(tee), Workload(tee, lambda: Collateral({"dcap": b"the host's"}))):
        verified = party.appraise(workload.attest(NONCE), NONCE, datetime.now(UTC))
        assert verified.result.trusted
        assert set(verified.collateral.documents) == {"dcap"}
    assert asked == [Family.TDX] * 2


def test_without_collateral_there_is_no_trust(tee: SimulatedTee) -> None:
    class Asleep(SentCollateral):
        def find(self, evidence: Evidence, sent: Collateral) -> Collateral:
            raise CollateralUnavailable("The vendor is asleep; try again later.")

    party = RelyingParty(Verifier(tee.roots()), SimulatedPolicy(), Asleep())
    with pytest.raises(AttestationRefused, match="The vendor is asleep") as caught:
        party.appraise(Workload(tee).attest(NONCE), NONCE, datetime.now(UTC))
    assert caught.value.checks == ("collateral-unavailable",)


def test_a_root_is_a_certificate(tmp_path: Path) -> None:
    path = tmp_path / "root.pem"
    path.write_bytes(b"no certificate")
    with pytest.raises(MalformedEvidence):
        RelyingParty.configure(simulated_root=path)

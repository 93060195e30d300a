from datetime import UTC, datetime
from pathlib import Path

from confide.attest.simulated import SimulatedTee
from confide.attest.verifier import Verifier
from confide.attest.wire import Attested
from confide.enclave.workload import Workload


def test_evidence_speaks_for_the_channel_key_and_the_nonce(tmp_path: Path) -> None:
    tee = SimulatedTee.create(tmp_path / "tee")
    workload = Workload(tee, tee.collateral, model_digest="ab" * 32)
    shown = Attested.decode(workload.attest("cd" * 32).encode())
    evidence, collateral = shown.evidence.thaw(), shown.collateral.thaw()
    claims = Verifier(tee.roots()).verify(evidence, collateral, datetime.now(UTC))
    assert shown.statement.is_bound_by(claims.report_data, claims.family)
    assert shown.statement.channel_keys == {
        "hpke": workload.key.public.raw.hex(),
        "aci-keyset": workload.keyset.canonical.hex(),
    }
    assert shown.statement.nonce == "cd" * 32
    assert shown.statement.model_digest == "ab" * 32
    assert not workload.attest("ce" * 32).statement.is_bound_by(claims.report_data, claims.family)


def test_a_release_goes_along_with_the_collateral(tmp_path: Path) -> None:
    tee = SimulatedTee.create(tmp_path / "tee")
    shown = Attested.decode(Workload(tee, tee.collateral, release=b"{}").attest("cd" * 32).encode())
    assert shown.collateral.thaw().documents.keys() == {"dcap", "release"}
    assert Workload(tee, tee.collateral).attest("cd" * 32).collateral.thaw().documents.keys() == {"dcap"}

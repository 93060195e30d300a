"""GPUs are asked with the digest of their machine's report as the nonce, and what comes out verifies."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests.attest.families.cases import NOW
from tests.attest.families.forged_nvidia import LEAF, leaf
from tests.attest.families.forged_nvidia import ROOT as GPU_ROOT
from tests.attest.families.forged_snp import ARK, Fields, snp_case

from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence, Family
from confide.attest.families.composite import MAX_GPUS, gpu_nonce
from confide.attest.reading.gpus import Gpus, WithGpus, find_gpus
from confide.attest.roots import SimulatedRoots
from confide.attest.verifier import Verifier
from confide.errors import EvidenceUnavailable, WrongBinding

from .fake_nvml import FakeNvml

ROOTS = SimulatedRoots({Family.SNP: ARK.der, Family.NVIDIA: GPU_ROOT.der})


@dataclass
class Snp:
    """A machine whose reports verify under the tests' root."""

    name: str = "configfs-tsm"

    def read(self, report_data: bytes) -> Evidence:
        return snp_case(Fields(report_data=report_data)).evidence


def read(nvml: FakeNvml, report_data: bytes = b"\7" * 64) -> Evidence:
    return WithGpus(Snp(), nvml).read(report_data)


def collateral(gpus: int) -> Collateral:
    return Collateral(members=(snp_case().collateral, *[Collateral()] * gpus))


def test_what_is_read_verifies_and_carries_the_report_data() -> None:
    nvml = FakeNvml((LEAF, leaf("second")))
    evidence = read(nvml)
    claims = Verifier(ROOTS).verify(evidence, collateral(2), NOW)
    assert [one.family for one in claims.members] == [Family.SNP, Family.NVIDIA, Family.NVIDIA]
    assert (claims.report_data, claims.speaks) == (b"\7" * 64, True)
    assert nvml.asked == [gpu_nonce(evidence.members[0])] * 2
    assert WithGpus(Snp(), nvml).name == "configfs-tsm and NVML"


def test_a_gpus_report_does_not_fit_another_report_of_its_machine() -> None:
    one, other = read(FakeNvml()), read(FakeNvml(), b"\x08" * 64)
    mixed = replace(one, members=(one.members[0], other.members[1]))
    with pytest.raises(WrongBinding, match="quote"):
        Verifier(ROOTS).verify(mixed, collateral(1), NOW)


@pytest.mark.parametrize("broken", ["report", "certificate"])
def test_a_gpu_that_does_not_answer(broken: str) -> None:
    with pytest.raises(EvidenceUnavailable, match=f"{broken} failed.*; .*"):
        read(FakeNvml(broken=frozenset({broken})))


def test_more_gpus_than_evidence_holds() -> None:
    with pytest.raises(EvidenceUnavailable, match="give the machine fewer"):
        read(FakeNvml((LEAF,) * (MAX_GPUS + 1)))


def test_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    assert find_gpus(nvml) == Gpus(nvml)
    assert find_gpus(FakeNvml(())) == Gpus(None)
    assert "mode is off" in find_gpus(FakeNvml(confidential=False)).absent
    assert "cannot be asked" in find_gpus(FakeNvml(broken=frozenset({"nvmlInit"}))).absent
    assert find_gpus(driver=tmp_path / "nothing") == Gpus(None)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    (tmp_path / "version").write_text("NVRM")
    assert "confide[gpu]" in find_gpus(driver=tmp_path / "version").absent


def test_the_real_binding_has_what_is_asked_for() -> None:
    pynvml = pytest.importorskip("pynvml")
    for name in dir(FakeNvml):
        if name.startswith(("nvml", "NVML")):
            assert hasattr(pynvml, name)
    with pytest.raises(pynvml.NVMLError):
        pynvml.nvmlDeviceGetCount()

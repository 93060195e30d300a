from pathlib import Path

import pytest
from tests.attest.reading.fake_nvml import FakeNvml

from confide.attest.evidence import Family
from confide.attest.reading.configfs_tsm import ConfigfsTsm
from confide.attest.reading.detect import Detected
from confide.attest.reading.gpus import Gpus, WithGpus
from confide.attest.reading.gramine import Gramine
from confide.attest.reading.nitro import Nsm
from confide.attest.reading.tpm import Tpm
from confide.attest.simulated import SimulatedTee
from confide.enclave.tee import TeeKind, open_tee
from confide.errors import NoTrustedEnvironment

NOTHING = Detected((), {"gramine": "not here.", "configfs-tsm": "no folder."})


class Tdx(ConfigfsTsm):
    def provider(self) -> Family:
        return Family.TDX


def test_auto_refuses_without_hardware_and_says_how_to_simulate() -> None:
    with pytest.raises(NoTrustedEnvironment, match=r"confide tee simulate init.*--tee simulated.*no folder"):
        open_tee(TeeKind.AUTO, found=lambda: NOTHING)


def test_auto_on_this_machine_is_never_simulated() -> None:
    try:
        tee = open_tee(TeeKind.AUTO)
    except NoTrustedEnvironment:
        return
    assert not tee.simulated


def test_auto_takes_what_is_there() -> None:
    assert open_tee(TeeKind.AUTO, found=lambda: Detected((Gramine(),))).name == "sgx"
    assert open_tee(TeeKind.AUTO, found=lambda: Detected((Tdx(),))).name == "tdx"
    assert open_tee(TeeKind.TDX, found=lambda: Detected((Gramine(), Tdx()))).name == "tdx"


def test_a_machine_takes_its_gpus_along_and_an_enclave_has_none() -> None:
    nvml = FakeNvml([])
    with_gpus = open_tee(TeeKind.AUTO, found=lambda: Detected((Tdx(),)), gpus=lambda: Gpus(nvml))
    assert isinstance(with_gpus.reader, WithGpus)
    assert (with_gpus.name, with_gpus.gpus) == ("tdx with nvidia-gpu", "")
    without = open_tee(TeeKind.AUTO, found=lambda: Detected((Tdx(),)), gpus=lambda: Gpus(None, "It is off."))
    assert (without.name, without.gpus) == ("tdx", "It is off.")
    enclave = open_tee(TeeKind.AUTO, found=lambda: Detected((Gramine(),)), gpus=lambda: Gpus(nvml))
    assert enclave.name == "sgx"


def test_another_kind_than_asked_for_is_refused() -> None:
    with pytest.raises(NoTrustedEnvironment, match="no SNP environment"):
        open_tee(TeeKind.SNP, found=lambda: Detected((Gramine(), Tdx())))


def test_a_tpm_is_no_trusted_execution_environment() -> None:
    with pytest.raises(NoTrustedEnvironment):
        open_tee(TeeKind.AUTO, found=lambda: Detected((Tpm("device:/dev/tpmrm0"),)))


def test_simulation_is_asked_for_twice(tmp_path: Path) -> None:
    SimulatedTee.create(tmp_path / "tee")
    tee = open_tee(TeeKind.SIMULATED, tmp_path / "tee")
    assert tee.simulated
    assert tee.collateral().documents
    for kind, folder in ((TeeKind.SIMULATED, None), (TeeKind.AUTO, tmp_path / "tee"), (TeeKind.TDX, tmp_path / "tee")):
        with pytest.raises(NoTrustedEnvironment, match="only used where it is asked for"):
            open_tee(kind, folder)


def test_a_nitro_enclave_is_found_by_its_module_and_has_no_gpus() -> None:
    nvml = FakeNvml([])
    for kind in (TeeKind.AUTO, TeeKind.NITRO):
        tee = open_tee(kind, found=lambda: Detected((Nsm(),)), gpus=lambda: Gpus(nvml))
        assert (tee.name, type(tee.reader)) == ("aws-nitro", Nsm)
    with pytest.raises(NoTrustedEnvironment, match="no TDX environment"):
        open_tee(TeeKind.TDX, found=lambda: Detected((Nsm(),)))

"""What a machine is, is found out: evidence that does not hold is no machine at all, and nobody names one by a flag."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from confide.attest.claims import Claims, RootKind, TcbStatus
from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence, Family
from confide.attest.roots import ProductionRoots
from confide.attest.simulated import SimulatedTee
from confide.attest.statement import Statement
from confide.attest.verifier import Verifier
from confide.attest.wire import Attested
from confide.bench import machine
from confide.bench.machine import Arm, Environment, shown_arm, this_machine
from confide.enclave.tee import Tee, TeeKind
from confide.errors import BenchmarkError, EvidenceUnavailable, NoTrustedEnvironment

NOW = datetime(2026, 11, 29, tzinfo=UTC)
NONCE = "5c" * 32


def system(folder: Path, flags: str | None, virtual: str | None = None) -> tuple[Path, Path]:
    """A root with what the kernel says, and a systemd-detect-virt that says so."""
    (folder / "proc").mkdir()
    lines = "processor\t: 0\nmodel name\t: A Fine CPU\n" + ("" if flags is None else f"flags\t\t: {flags}\n")
    (folder / "proc/cpuinfo").write_text(lines + "\nprocessor\t: 1\nflags\t\t: hypervisor\n")
    detect = folder / "systemd-detect-virt"
    if virtual is not None:
        detect.write_text(f'#!/bin/sh\n[ "$1" = --vm ] && echo {virtual}\n[ {virtual} != none ]\n')
        detect.chmod(0o755)
    return folder, detect


@pytest.mark.parametrize(
    ("flags", "virtual", "said"),
    [
        ("fpu hypervisor avx2", None, "the processor's hypervisor bit"),
        ("fpu avx2", "kvm", "systemd-detect-virt: kvm"),
        (None, "qemu", "systemd-detect-virt: qemu"),
        ("fpu avx2", "none", ""),
        ("fpu avx2", None, ""),
        (None, "none", ""),
    ],
    ids=["bit", "systemd", "systemd-alone", "neither", "no-systemd", "no-flags"],
)
def test_a_virtual_machine_is_known_by_its_processor_or_its_system(
    flags: str | None, virtual: str | None, said: str, tmp_path: Path
) -> None:
    assert this_machine(*system(tmp_path, flags, virtual)).virtual == said


def test_where_nothing_tells_nothing_is_called_bare(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="tells a virtual machine from a bare one"):
        this_machine(*system(tmp_path, None))
    with pytest.raises(BenchmarkError):
        this_machine(tmp_path / "nothing", tmp_path / "none")


def test_the_extensions_for_int8_are_part_of_a_processors_name(tmp_path: Path) -> None:
    root, detect = system(tmp_path, "fpu avx512_vnni amx_int8")
    assert this_machine(root, detect).processor == "A Fine CPU (avx512_vnni, amx_int8)"


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tee")
    SimulatedTee.create(folder)
    return folder


def test_a_simulated_environment_shows_that_it_is_simulated(simulated: Path) -> None:
    environment = Environment.find(simulated)
    attested = environment.attest(NONCE)
    assert attested is not None
    now = datetime.now(UTC)
    assert shown_arm(attested, NONCE, now, environment.roots, gpu=False) is Arm.SIMULATED
    with pytest.raises(BenchmarkError, match="nonce"):
        shown_arm(attested, "5d" * 32, now, environment.roots, gpu=False)
    # To everybody else it is no TDX machine, although its quotes are TDX quotes.
    with pytest.raises(BenchmarkError, match="does not hold"):
        shown_arm(attested, NONCE, now, ProductionRoots(), gpu=False)


def test_a_statement_that_the_hardware_did_not_sign_shows_nothing(simulated: Path) -> None:
    environment = Environment.find(simulated)
    assert environment.tee is not None
    evidence = environment.tee.reader.read(bytes(64))
    attested = Attested.make(evidence, Statement(NONCE), environment.tee.collateral())
    with pytest.raises(BenchmarkError, match="nonce"):
        shown_arm(attested, NONCE, datetime.now(UTC), environment.roots, gpu=False)


class Verified:
    """Stands where vendors' verification stands, and says what it was told."""

    def __init__(self, claims: Claims) -> None:
        self.claims = claims

    def __call__(self, *_: object) -> Claims:
        return self.claims


def claims(family: Family, **more: object) -> Claims:
    digest = Statement(NONCE).digest()
    known: dict[str, object] = {"tcb_evaluation": 17} if family in (Family.SGX, Family.TDX) else {}
    made = Claims(family, RootKind.PRODUCTION, digest, False, TcbStatus.OUT_OF_DATE, speaks=True)
    return replace(made, **known | more)


GPU = replace(claims(Family.NVIDIA), speaks=False, tcb_status=TcbStatus.UNKNOWN)


def together(*members: Claims) -> Claims:
    return replace(claims(Family.COMPOSITE), members=members, tcb_status=TcbStatus.UNKNOWN)


def shown(found: Claims, monkeypatch: pytest.MonkeyPatch, *, gpu: bool) -> Arm:
    monkeypatch.setattr(Verifier, "verify", Verified(found))
    attested = Attested.make(Evidence(found.family, b"evidence"), Statement(NONCE))
    return shown_arm(attested, NONCE, NOW, ProductionRoots(), gpu=gpu)


@pytest.mark.parametrize(
    ("found", "gpu", "arm"),
    [
        (claims(Family.TDX), False, Arm.TDX),
        (claims(Family.SGX), False, Arm.SGX),
        (replace(claims(Family.SNP), tcb_status=TcbStatus.UNKNOWN), False, Arm.SNP),
        (together(claims(Family.TDX), GPU), False, Arm.TDX),
        (together(claims(Family.TDX), GPU), True, Arm.GPU_CC),
    ],
    ids=["tdx", "sgx", "snp", "gpu-idle", "gpu-cc"],
)
def test_an_arm_is_the_family_whose_evidence_holds(
    found: Claims, gpu: bool, arm: Arm, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shown(found, monkeypatch, gpu=gpu) is arm


@pytest.mark.parametrize(
    ("found", "gpu", "why"),
    [
        (claims(Family.TDX, debug=True), False, "debug"),
        (claims(Family.TDX, speaks=False), False, "speaks"),
        (claims(Family.TDX, tcb_status=TcbStatus.REVOKED), False, "tcb-status"),
        (claims(Family.TDX, root=RootKind.SIMULATED), False, "root"),
        (claims(Family.TDX, report_data=bytes(64)), False, "nonce"),
        (claims(Family.TDX), True, "not attested"),
        (replace(claims(Family.NITRO), tcb_status=TcbStatus.UNKNOWN), False, "no arm for"),
    ],
    ids=["debug", "silent", "revoked", "simulated", "unsigned", "gpu-open", "nitro"],
)
def test_anything_less_is_no_arm(found: Claims, gpu: bool, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BenchmarkError, match=why):
        shown(found, monkeypatch, gpu=gpu)


@dataclass
class Failing:
    """A reader that is there and fails."""

    name: str = "configfs-tsm"

    def read(self, report_data: bytes) -> Evidence:
        raise EvidenceUnavailable("The kernel refused a report.")


def test_an_environment_that_fails_is_not_a_machine_without_one() -> None:
    environment = Environment.find(opened=lambda kind, folder: Tee("tdx", Failing(), Collateral))
    with pytest.raises(EvidenceUnavailable):
        environment.attest(NONCE)


def nothing(kind: TeeKind, folder: Path | None) -> Tee:
    assert (kind, folder) == (TeeKind.AUTO, None)
    raise NoTrustedEnvironment("There is none.")


@pytest.mark.parametrize("flags", ["fpu avx2", "fpu hypervisor", "fpu sev sev_snp"], ids=["bare", "vm", "snp-host"])
def test_no_environment_has_no_evidence(flags: str, tmp_path: Path) -> None:
    root, _ = system(tmp_path, flags)
    assert Environment.find(opened=nothing, root=root).attest(NONCE) is None


@pytest.mark.parametrize("flags", ["fpu hypervisor tdx_guest", "fpu hypervisor sev sev_snp"], ids=["tdx", "snp"])
def test_an_environment_that_hides_its_evidence_is_no_plain_machine(flags: str, tmp_path: Path) -> None:
    root, _ = system(tmp_path, flags)
    with pytest.raises(BenchmarkError, match=r"processor flag .*run as root"):
        Environment.find(opened=nothing, root=root)


@pytest.mark.parametrize("device", ["tdx_guest", "sev-guest", "attestation"])
def test_nor_is_one_with_a_device_that_may_not_be_read(device: str, tmp_path: Path) -> None:
    root, _ = system(tmp_path, "fpu hypervisor")
    (root / "dev").mkdir()
    (root / "dev" / device).touch()
    with pytest.raises(BenchmarkError, match=f"/dev/{device}"):
        Environment.find(opened=nothing, root=root)


def test_the_command_cannot_name_an_arm() -> None:
    import inspect

    from confide.cli import bench

    named: Mapping[str, object] = inspect.signature(bench.tee).parameters
    assert not {"arm", "tee", "machine"} & set(named)
    assert machine.Arm.TDX.proven
    assert not machine.Arm.VM.proven

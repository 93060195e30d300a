"""What `confide doctor` makes of a machine: of files that imitate the kernel's, and of this one measured."""

import ctypes
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from confide.attest.evidence import Evidence, Family
from confide.attest.reading.detect import Detected
from confide.cli import doctor_machine, output
from confide.cli.doctor import Finding, State
from confide.cli.doctor_machine import machine, measured, products
from confide.errors import EvidenceUnavailable


def found(root: Path) -> dict[str, Finding]:
    return {finding.name: finding for finding in machine(root)}


def make(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


CPU, NODE = "sys/devices/system/cpu", "sys/devices/system/node"
CLOCK = "sys/devices/system/clocksource/clocksource0/current_clocksource"
ALLOWED = ",".join(map(str, sorted(os.sched_getaffinity(0))))
THP = "sys/kernel/mm/transparent_hugepage/enabled"


@dataclass
class Simulated:
    """A source of evidence, or of a sentence why there is none."""

    name: str
    fails: str = ""
    asked: list[bytes] = field(default_factory=list)

    def read(self, report_data: bytes) -> Evidence:
        self.asked.append(report_data)
        if self.fails:
            raise EvidenceUnavailable(self.fails)
        return Evidence(Family.NITRO, b"a document")


def sockets(*packages: int) -> dict[str, str]:
    return {f"{CPU}/cpu{index}/topology/physical_package_id": f"{one}\n" for index, one in enumerate(packages)}


def test_nothing_is_there(tmp_path: Path) -> None:
    said = found(tmp_path)
    absent = {name for name, finding in said.items() if finding.state is State.ABSENT}
    assert absent == {"devices", "huge pages", "gpus"}
    assert said["numa"].found == "1 node in 1 socket"


def test_a_machine_as_it_should_be(tmp_path: Path) -> None:
    files = {THP: "[always] madvise never\n", f"{CPU}/smt/active": "0\n", f"{NODE}/node0/meminfo": ""}
    devices = {"dev/tdx_guest": "", "sys/kernel/config/tsm/report/x": ""}
    said = found(make(tmp_path, files | devices | sockets(0, 0)))
    assert said["devices"].found == "in this machine: TDX, configfs-tsm"
    for name in ("devices", "huge pages", "numa", "threads"):
        assert (said[name].state, said[name].todo) == (State.OK, "")


@pytest.mark.parametrize(
    ("files", "name", "words", "todo"),
    [
        ({"dev/sev-guest": ""}, "devices", "in this machine: SEV-SNP", "mount configfs"),
        ({"sys/module/kvm_intel/parameters/tdx": "Y\n"}, "devices", "for its guests: TDX", ""),
        ({"sys/module/kvm_amd/parameters/sev_snp": "N\n"}, "devices", "none of SGX", ""),
        ({THP: "always [madvise] never"}, "huge pages", "madvise", "transparent_hugepage=always"),
        ({THP: "always madvise [never]"}, "huge pages", "never", "transparent_hugepage=always"),
        ({f"{CPU}/smt/active": "1"}, "threads", "more than one a core", "nosmt"),
        ({f"{NODE}/node0/a": "", f"{NODE}/node1/a": ""} | sockets(0, 0), "numa", "2 nodes in 1 socket", "sub-NUMA"),
        ({f"{NODE}/node0/a": "", f"{NODE}/node1/a": ""} | sockets(0, 1), "numa", "2 nodes in 2 sockets", "--pin"),
        ({"dev/nvidia0": "", "dev/nvidia1": "", "dev/nvidiactl": ""}, "gpus", "2 of NVIDIA's", "evidence"),
        ({THP: "\0" * 4096}, "huge pages", "this kernel has none", ""),
    ],
    ids=range(10),
)
def test_what_is_found(files: dict[str, str], name: str, words: str, todo: str, tmp_path: Path) -> None:
    said = found(make(tmp_path, files))[name]
    assert words in said.found
    assert todo in said.todo
    assert bool(said.todo) == bool(todo)


@pytest.mark.parametrize(("state", "words"), [(5, "no program says"), (0, "kept right"), (-1, "does not say")])
def test_the_clock(state: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        @staticmethod
        def ntp_adjtime(_: object) -> int:
            return state

    monkeypatch.setattr(ctypes, "CDLL", lambda _: Library)
    said = found(tmp_path)["clock"]
    assert words in said.found
    assert ("chrony" in said.todo) == (state == 5)


def test_a_generator_without_a_seed_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unseeded(count: int, flags: int) -> bytes:
        assert flags == os.GRND_NONBLOCK
        raise BlockingIOError

    monkeypatch.setattr(os, "getrandom", unseeded)
    assert found(tmp_path)["entropy"].state is State.PROBLEM


def test_what_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MEASURED_BYTES", 1 << 22), ("ROWS", 128), ("COLUMNS", 128)):
        monkeypatch.setattr(doctor_machine, name, value)
    cores = {f"{CPU}/cpu{one}/topology/thread_siblings_list": f"{ALLOWED}\n" for one in range(2)}
    nodes = {f"{NODE}/node{one}/cpulist": f"{ALLOWED}\n" for one in range(2)}
    root = make(tmp_path / "root", cores | nodes | {CLOCK: "hpet\n"})
    (tmp_path / "disk").mkdir()
    affinity = os.sched_getaffinity(0)
    module = Simulated("a module")
    found = (*measured(tmp_path / "disk", root, lambda: Detected((module,))), *products(root))
    said = {finding.name: finding for finding in found}
    assert all(finding.state is State.OK for finding in said.values())
    always = {"first touch", "disk", "products", "clock readings", "random bytes", "evidence"}
    assert always | {"memory of nodes"} <= set(said)
    assert ("sibling threads" in said) == (len(affinity) > 1)
    assert "made by a module in" in said["evidence"].found
    assert len(module.asked[0]) == 64
    assert "by hpet" in said["clock readings"].found
    assert "clocksource=tsc" in said["clock readings"].todo
    assert os.sched_getaffinity(0) == affinity
    assert "bfloat16" in said["products"].found
    assert list((tmp_path / "disk").iterdir()) == []


def test_what_is_not_there_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One node, one thread a core, no environment, the processor's own counter; and lists that are none."""
    for name, value in (("MEASURED_BYTES", 1 << 20), ("ROWS", 64), ("COLUMNS", 64)):
        monkeypatch.setattr(doctor_machine, name, value)
    first = min(os.sched_getaffinity(0))
    files = {CLOCK: "tsc", f"{NODE}/node0/cpulist": f"{first}", f"{NODE}/node1/cpulist": "9-3,x,-1,\u0663"}
    files |= {f"{CPU}/cpu0/topology/thread_siblings_list": f"{first}", f"{NODE}/node2/cpulist": "99999999999-"}
    root = make(tmp_path / "root", files)
    said = {finding.name: finding for finding in (*measured(tmp_path, root, lambda: Detected(())), *products(root))}
    assert not {"memory of nodes", "sibling threads", "evidence"} & set(said)
    assert said["clock readings"].todo == ""


def test_evidence_that_fails_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_machine, "MEASURED_BYTES", 1 << 20)
    failing = Simulated("a module", "It is gone\x1b[2J; ask again.")
    said = {finding.name: finding for finding in measured(tmp_path, tmp_path, lambda: Detected((failing,)))}
    assert said["evidence"].state is State.PROBLEM
    assert "It is gone" in said["evidence"].found
    assert "\x1b" not in said["evidence"].found


def test_a_disk_that_cannot_be_measured_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_machine, "MEASURED_BYTES", 1 << 22)
    said = {finding.name: finding for finding in measured(tmp_path / "none")}
    assert said["disk"].state is State.PROBLEM


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0512, "51.2 ms"), (0.9994, "999 ms"), (0.9996, "1 s"), (119.4, "119 s"), (119.9, "2 min"), (7199.9, "2 h")],
    ids=range(6),
)
def test_a_time_for_people(seconds: float, shown: str) -> None:
    """Never 1e+03 of a unit that has a next one."""
    assert output.duration(seconds) == shown

"""What `confide doctor` makes of a machine: of files that imitate the kernel's, and of this one measured."""

import ctypes
import os
from pathlib import Path

import pytest

from confide.cli import doctor_machine
from confide.cli.doctor import Finding, State
from confide.cli.doctor_machine import machine, measured, products


def found(root: Path) -> dict[str, Finding]:
    return {finding.name: finding for finding in machine(root)}


def make(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


CPU, NODE = "sys/devices/system/cpu", "sys/devices/system/node"
THP = "sys/kernel/mm/transparent_hugepage/enabled"


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
    said = {finding.name: finding for finding in (*measured(tmp_path), *products())}
    assert all(finding.state is State.OK for finding in said.values())
    assert {"first touch", "disk", "products"} <= set(said)
    assert "bfloat16" in said["products"].found
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_cannot_be_measured_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_machine, "MEASURED_BYTES", 1 << 22)
    said = {finding.name: finding for finding in measured(tmp_path / "none")}
    assert said["disk"].state is State.PROBLEM

"""`confide tee simulate init`."""

import json
import subprocess
import sys
from pathlib import Path

from confide.attest.simulated import SimulatedTee

CONFIDE = [sys.executable, "-c", "from confide.cli import main; main()"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CONFIDE, *arguments], capture_output=True, text=True, check=False)


def test_it_makes_a_machine_and_warns(tmp_path: Path) -> None:
    done = run("tee", "simulate", "init", str(tmp_path / "tee"), "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["simulated"] is True
    assert "SIMULATED" in done.stderr
    assert SimulatedTee.open(tmp_path / "tee").roots()


def test_it_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    done = run("tee", "simulate", "init", str(tmp_path), "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "attestation"

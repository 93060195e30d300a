"""`confide tee simulate`."""

import json
from datetime import UTC, datetime
from pathlib import Path

from tests.cli.command import run

from confide.attest.simulated import SimulatedTee


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


def test_its_quotes_are_trusted_under_its_root_alone(tmp_path: Path) -> None:
    tee, quote, collateral = (str(tmp_path / name) for name in ("tee", "quote", "collateral"))
    assert run("tee", "simulate", "init", tee).returncode == 0
    made = run("tee", "simulate", "quote", tee, "--out", quote, "--collateral", collateral, "--report-data", "ab12")
    assert made.returncode == 0
    assert Path(quote).read_bytes().count(b"\xab\x12" + bytes(62)) == 1
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    verify = ("attest", "verify", "--evidence", quote, "--collateral", collateral, "--at", now, "--json")
    assert run(*verify).returncode == 10
    trusted = run(*verify, "--simulated-root", f"{tee}/root.pem")
    assert (trusted.returncode, json.loads(trusted.stdout)["simulated"]) == (0, True)


def test_report_data_is_checked(tmp_path: Path) -> None:
    for wrong in ("xy", "00" * 65):
        done = run("tee", "simulate", "quote", str(tmp_path), "--out", "q", "--collateral", "c", "--report-data", wrong)
        assert done.returncode == 2

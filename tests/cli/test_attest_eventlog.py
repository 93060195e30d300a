"""Event logs at the command line, and what a workload wrote, shown at a terminal."""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from tests.attest.families.test_eventlog import Entry, log_of

from confide.attest.families.eventlog import replay
from confide.attest.simulated import SimulatedTee
from confide.attest.statement import Statement
from confide.cli import main

ENTRIES: list[Entry] = [
    (1, 0x80000007, b"Exit Boot Services"),
    (2, 13, "caf\u00e9".encode()),
    (2, 13, b"\x1b[2J\x1b[31mtrusted"),
    (3, 99, "kernel".encode("utf-16-le") + b"\0\0"),
    (0, 3, b"no action"),
]


def run(line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["confide", "attest", *line.split()])
    monkeypatch.setenv("COLUMNS", "160")
    with pytest.raises(SystemExit) as stop:
        main()
    printed = capsys.readouterr()
    return int(stop.value.code or 0), printed.out, printed.err


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    log, other = log_of(ENTRIES), log_of(ENTRIES[:1])
    tee = SimulatedTee.create("tee")
    Path("log").write_bytes(log + b"\xff" * 100)
    Path("other").write_bytes(other)
    Path("quote").write_bytes(tee.quote(bytes(64), measurements=replay(log).registers).raw)
    Path("dcap.json").write_bytes(tee.collateral().documents["dcap"])
    return tmp_path


@pytest.mark.usefixtures("files")
def test_a_log_is_shown_and_nothing_in_it_acts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = run("eventlog log", capsys, monkeypatch)
    assert code == 0
    assert "\x1b" not in out
    assert "Not verified" in err
    for words in ("Exit Boot Services", "EFI action", "boot loader", "kernel", "type 0x63", "mrtd"):
        assert words in out
    for name, value in replay(log_of(ENTRIES)).registers.items():
        assert f"{name}  {value.hex()}" in out


@pytest.mark.usefixtures("files")
def test_a_log_as_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = run("eventlog log --json", capsys, monkeypatch)
    answer = json.loads(out)
    assert code == 0
    assert answer["registers"]["rtmr1"] == replay(log_of(ENTRIES)).registers["rtmr1"].hex()
    assert [event["data"] for event in answer["events"]] == ["Exit Boot Services", "", "", "kernel", "no action"]
    assert [event["register"] for event in answer["events"]] == ["rtmr0", "rtmr1", "rtmr1", "rtmr2", "mrtd"]


@pytest.mark.usefixtures("files")
def test_what_is_no_log(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("eventlog quote", capsys, monkeypatch)[0] == 20
    assert run("eventlog nothing", capsys, monkeypatch)[0] == 30


@pytest.mark.usefixtures("files")
def test_a_log_belongs_to_its_quote(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    at = datetime.now(UTC).isoformat()
    given = f"verify --evidence quote --collateral dcap.json --at {at} --simulated-root tee/root.pem --json"
    code, out, _ = run(f"{given} --event-log log", capsys, monkeypatch)
    assert (code, json.loads(out)["trusted"]) == (0, True)
    code, out, _ = run(f"{given} --event-log other", capsys, monkeypatch)
    assert code == 10
    assert [check["code"] for check in json.loads(out)["checks"]] == ["event-log-mismatch"]
    Path("kept").write_text("{}")
    assert run("verify kept --event-log log", capsys, monkeypatch)[0] == 30
    Path("report").write_bytes(b"\2\0\0\0" + bytes(1180))
    assert run(f"verify --evidence report --at {at} --event-log log", capsys, monkeypatch)[0] == 30
    frozen = given.replace("verify", "freeze", 1)
    assert run(f"{frozen} --event-log log --out bundle", capsys, monkeypatch)[0] == 0
    assert run("verify bundle --simulated-root tee/root.pem", capsys, monkeypatch)[0] == 0


@pytest.mark.usefixtures("files")
def test_words_of_a_workload_are_shown_printable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A statement's model, which the workload chose, beside what the policy asks for; and an error about a file."""
    evil = "\x1b[2J\u202etrusted\r"
    statement = Statement(nonce="aa" * 32, model_digest=evil)
    Path("statement.json").write_text(json.dumps(msgspec.structs.asdict(statement)))
    Path("quote").write_bytes(SimulatedTee.open("tee").quote(statement.digest()).raw)
    Path("policy.toml").write_text(
        'confide-policy = 1\nkind = "simulated"\n\n[[all]]\nrequire = "model"\nsha256 = "' + "ab" * 32 + '"\n'
    )
    at = datetime.now(UTC).isoformat()
    given = f"verify --evidence quote --collateral dcap.json --at {at} --simulated-root tee/root.pem"
    code, out, err = run(f"{given} --statement statement.json --policy policy.toml", capsys, monkeypatch)
    assert code == 10
    assert "\ufffd[2J\ufffdtrusted\ufffd" in out
    assert not {"\x1b", "\u202e", "\r"} & set(out + err)
    Path("bundle").write_text(json.dumps({evil: 1}))
    code, out, err = run("verify bundle", capsys, monkeypatch)
    assert code == 20
    assert not {"\x1b", "\u202e", "\r"} & set(out + err)

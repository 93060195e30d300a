"""`confide receipt verify`: exit codes, what is printed, and what it must not call verified."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.receipts import vectors
from tests.receipts.test_verify import NONCE, NOW, REQUEST, RESPONSE, Scene

from confide.cli.app import main
from confide.receipts.keyset import report_data
from confide.receipts.report import write_report


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every document of a simulated workload, and the receipt of another gateway with its report."""
    folder = tmp_path_factory.mktemp("receipts")
    scene = Scene(folder / "tee")
    data = report_data(scene.keyset.digest, NONCE)
    written = {
        "receipt.json": scene.receipt().write(),
        "changed.json": scene.receipt().write().replace(b'"m"', b'"other"'),
        "bundle": scene.bundle.write(),
        "report": write_report(scene.keyset, data, scene.tee.read(data), scene.tee.collateral()),
        "collateral": scene.tee.collateral().documents["dcap"],
        "request": REQUEST,
        "response": RESPONSE,
        "gateway.json": json.dumps(vectors.RECEIPT).encode(),
        "gateway-report": json.dumps(
            {
                "api_version": "aci/1",
                "workload_keyset_digest": vectors.KEYSET_DIGEST,
                "attestation": {
                    "tee_type": "other",
                    "workload_keyset": vectors.KEYSET,
                    "report_data": vectors.REPORT_DATA,
                    "evidence": {},
                },
                "service_capabilities": {"serving": "aggregator"},
            }
        ).encode(),
        "gateway-request": vectors.REQUEST,
        "session": json.dumps(vectors.SESSION).encode(),
    }
    for name, content in written.items():
        (folder / name).write_bytes(content)
    return folder


def run(line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["confide", "receipt", *line.split()])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        main()
    printed = capsys.readouterr()
    return int(stop.value.code or 0), printed.out + printed.err


BUNDLE = "--bundle bundle --simulated-root tee/root.pem"
REPORT = f"--report report --collateral collateral --nonce {NONCE} --simulated-root tee/root.pem --at {NOW.isoformat()}"
GATEWAY = f"verify gateway.json --report gateway-report --nonce {vectors.NONCE}"
PINNED = f"--keyset-digest {vectors.KEYSET_DIGEST}"


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        (f"verify receipt.json {BUNDLE} --request request --response response", 0, "SIMULATED"),
        (f"verify receipt.json {BUNDLE}", 0, "not checked: receipt-request, receipt-response"),
        (f"verify receipt.json {REPORT} --request request", 0, "verified"),
        ("verify receipt.json", 10, "not verified"),
        ("verify receipt.json --request request --response response", 10, "not verified"),
        (f"verify changed.json {BUNDLE}", 10, "receipt-signature"),
        (f"verify receipt.json {BUNDLE} --request response", 10, "receipt-request"),
        (f"verify gateway.json {BUNDLE}", 10, "receipt-keyset"),
        ("verify receipt.json --bundle bundle", 30, "SIMULATED"),
        (f"{GATEWAY} {PINNED} --request gateway-request --session session", 0, "verified: all"),
        (GATEWAY, 10, "not verified"),
        (f"{GATEWAY} --keyset-digest sha256:{'00' * 32}", 10, "receipt-keyset"),
        ("verify request", 20, "malformed-receipt"),
        ("verify bundle", 20, "malformed-receipt"),
        (f"verify receipt.json {BUNDLE} --report report", 30, "either"),
        (f"verify receipt.json {BUNDLE} --nonce {NONCE}", 30, "--report"),
        ("verify receipt.json --report report --nonce ab", 30, "32 bytes"),
        ("verify receipt.json --report request", 20, "malformed-receipt"),
        ("verify receipt.json --bundle request", 20, "no bundle"),
        (f"verify receipt.json {BUNDLE} --previous receipt.json", 10, "receipt-chain"),
        ("verify nothing", 30, "cannot be read"),
        ("nonsense", 30, "No such command"),
    ],
)
def test_exit_codes(
    folder: Path,
    line: str,
    code: int,
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    found, text = run(line, capsys, monkeypatch)
    assert found == code, text
    assert says in text


def test_json(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    code, text = run(f"verify receipt.json {BUNDLE} --request request --json", capsys, monkeypatch)
    found: dict[str, Any] = json.loads(text)
    assert code == 0
    assert (found["verified"], found["simulated"], found["receipt_id"]) == (True, True, "r")
    outcomes = {check["code"]: check["outcome"] for check in found["checks"]}
    assert outcomes["receipt-request"] == outcomes["receipt-signature"] == "pass"
    assert outcomes["receipt-response"] == "skipped"
    assert all(check["clause"] for check in found["checks"])


def test_a_receipts_words_move_no_cursor(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    odd = vectors.RECEIPT | {"api_version": "\x1b[2Jaci", "key_id": "\x1b]0;x\x07"}
    (folder / "odd.json").write_text(json.dumps(odd))
    code, text = run("verify odd.json", capsys, monkeypatch)
    assert code == 10
    assert "\x1b[2J" not in text
    assert "\x07" not in text

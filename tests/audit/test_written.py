"""What of a client's doings stands in its audit log, and what of them does not go on without it."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.client.workload import FakeWorkload, serving, simulated
from tests.proxy.local import proxied, settled

import confide
from confide.attest.policy import SimulatedPolicy
from confide.attest.requirements import Model
from confide.audit.entries import Entry, segment_name
from confide.audit.log import FOLDER, start_log
from confide.audit.verify import entries, verify_log
from confide.cli.app import main
from confide.client.enclave import EnclaveSession
from confide.disk.home import home
from confide.errors import AttestationRefused, AuditLogUnavailable, ReceiptMissing, ReceiptRefused
from confide.hybrid.client.refusals import Breach, RefusalList
from confide.proxy.workload import WorkloadAddress, WorkloadBackend
from confide.receipts.client_key import ClientKey
from confide.receipts.documents import digest_of

DIGEST = "ab" * 32
SECRET = "a prompt that is nobody's business"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWorkload]:
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path / "home"))
    with serving(simulated(tmp_path / "tee", model_digest=DIGEST)) as fake:
        yield fake


def connected(fake: FakeWorkload, tmp_path: Path, **options: Any) -> EnclaveSession:
    session = confide.connect(fake.url, simulated_root=tmp_path / "tee" / "root.pem", **options)
    assert isinstance(session, EnclaveSession)
    return session


def kept() -> list[Entry]:
    return list(entries(home() / FOLDER))[1:]


def test_verdicts_and_receipts_stand_in_it_and_no_text_does(fake: FakeWorkload, tmp_path: Path) -> None:
    folder = start_log()
    with connected(fake, tmp_path) as session:
        session.chat(SECRET)
        fake.names_receipts = False
        with pytest.raises(ReceiptMissing):
            session.chat(SECRET)
        fake.names_receipts, fake.receipt = True, lambda signed: fake.receipts[f"{0:048x}"]
        with pytest.raises(ReceiptRefused):
            session.chat(SECRET)
    with pytest.raises(AttestationRefused):
        connected(fake, tmp_path, policy=SimulatedPolicy.all_of(Model("cd" * 32)))
    first, held, missing, wrong, refused = kept()
    assert (first.event, first.mode, first.peer, first.model, first.simulated) == (
        "connected", "enclave", fake.url, DIGEST, True,
    )  # fmt: skip
    assert len(first.evidence) == len(first.policy) == 64
    assert len(first.statement) == 128
    assert (held.event, held.receipt, held.failed) == ("receipt", digest_of(fake.receipts[f"{0:048x}"]), ())
    assert (missing.receipt, missing.failed) == ("", ("receipt-missing",))
    assert wrong.failed == ("receipt-refused",)
    assert refused.event == "refused"
    assert "model" in refused.failed
    assert verify_log(folder, ClientKey.open().public).verified
    content = b"".join(path.read_bytes() for path in folder.iterdir())
    assert SECRET.encode() not in content
    assert SECRET[::-1].encode() not in content


def test_the_proxy_writes_it_too(fake: FakeWorkload, tmp_path: Path) -> None:
    import httpx

    start_log()
    address = WorkloadAddress(fake.url, simulated_root=tmp_path / "tee" / "root.pem")
    with proxied(lambda: [WorkloadBackend("named", address, 3600.0)]) as url:
        settled(url, "ready")
        body = {"model": "named", "prompt": SECRET}
        assert httpx.post(f"{url}/v1/completions", json=body, trust_env=False).status_code == 200
    assert [entry.event for entry in kept()] == ["connected", "receipt"]


def test_without_its_line_nothing_goes_on(fake: FakeWorkload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = start_log()
    sync = os.fsync

    def full(file: int) -> None:
        if os.readlink(f"/proc/self/fd/{file}").endswith(segment_name(1)):
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(file)

    with connected(fake, tmp_path) as session:
        assert session.model
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(AuditLogUnavailable, match="No space"):
            session.chat("hello")
        with pytest.raises(AuditLogUnavailable):
            session.receipt()
        asked = len(fake.prompts)
        with pytest.raises(AuditLogUnavailable):
            connected(fake, tmp_path)
        with pytest.raises(AuditLogUnavailable):
            session.verify()
        assert len(fake.prompts) == asked
    monkeypatch.undo()
    assert verify_log(folder).entries == 2


def test_a_server_that_is_distrusted_and_forgiven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path / "home"))
    start_log()
    RefusalList().add("wss://layers.example:8470", DIGEST, Breach("h.0", ("c_attn",), 3))
    RefusalList().clear()
    assert [(entry.event, entry.model) for entry in kept()] == [("distrusted", DIGEST), ("forgiven", "")]
    assert "layers.example" in kept()[0].peer


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["confide", "audit", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    out = capsys.readouterr()
    return int(stop.value.code or 0), out.out + out.err


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")

    def confide_audit(*arguments: str) -> tuple[int, str]:
        return run(capsys, monkeypatch, *arguments)

    assert "audit start" in confide_audit("show")[1]
    code, text = confide_audit("start")
    key = ClientKey.open().public
    assert (code, key in text) == (0, True)
    RefusalList().add("wss://layers.example:8470", DIGEST, Breach("h.0", ("c_attn",), 3))
    assert "layers.example" in confide_audit("show")[1]
    assert "started" not in confide_audit("show", "--event", "distrusted")[1]
    assert confide_audit("verify")[0] == 0
    assert confide_audit("rotate", "--json") == (0, '{"segment": 2}\n')
    out = str(tmp_path / "out")
    assert key in confide_audit("export", out)[1].replace("\n", "")
    assert confide_audit("verify", "--folder", out)[0] == 10  # whose it is, nobody said
    assert confide_audit("verify", "--folder", out, "--client-key", key)[0] == 0
    kept_elsewhere = str(Path(out) / "checkpoint.json")
    assert confide_audit("verify", "--checkpoint", kept_elsewhere, "--json")[0] == 0
    assert confide_audit("retain", "--segments", "1", "--days", "1")[1].startswith("Nothing")
    assert confide_audit("retain", "--segments", "1", "--json") == (0, '{"dropped": [1]}\n')
    assert confide_audit("verify")[0] == 0
    segment = home() / FOLDER / segment_name(2)
    segment.write_bytes(segment.read_bytes()[:-20])
    code, text = confide_audit("verify")
    assert (code, "audit-checkpoint" in text) == (10, True)
    assert "audit-log-corrupted" in confide_audit("rotate")[1]
    assert (
        "cannot be written" in confide_audit("export", out)[1]
        or "audit-log-corrupted" in confide_audit("export", out)[1]
    )

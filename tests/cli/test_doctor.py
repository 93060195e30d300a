"""`confide doctor` finds what works and what does not, and says what to do."""

import json
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from confide import extras
from confide.cli import app, doctor
from confide.net.tls import make_certificates, server_context


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv("CONFIDE_HOME", str(folder))
    return folder


def findings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: object, exit: int = 0
) -> dict[str, dict[str, Any]]:
    monkeypatch.setattr(sys, "argv", ["confide", "doctor", *map(str, options), "--json"])
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert (ended.value.code or 0) == exit
    return {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)["findings"]}


def test_what_is_installed_works(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = findings(monkeypatch, capsys)
    absent = {name for name, finding in found.items() if finding["state"] == "absent"}
    assert absent - {"devices", "gpus", "huge pages"} == {"owners", "tee"}
    assert "confide tee simulate init" in found["tee"]["todo"]
    assert "int8 by" in found["processor"]["found"]


def test_what_is_missing_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "EXTRAS", {**extras.EXTRAS, "no_such_module": "evaluate"})
    found = findings(monkeypatch, capsys)["evaluate"]
    assert (found["state"], found["todo"]) == ("absent", "pip install 'confide[evaluate]'")
    assert found["found"].startswith("no_such_module missing")


def test_every_extra_of_the_project_has_a_role() -> None:
    assert set(extras.EXTRAS.values()) == set(doctor.ROLES)


def test_a_home_that_others_write_to_is_a_problem(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home.mkdir()
    home.chmod(0o777)
    found = findings(monkeypatch, capsys, exit=1)["home"]
    assert found["state"] == "problem"
    assert found["todo"] == f"chmod go-w {home}"


def test_a_damaged_list_of_owners_is_a_problem(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home.mkdir(mode=0o700)
    (home / "trusted-owners").write_text("nonsense\n")
    assert findings(monkeypatch, capsys, exit=1)["owners"]["state"] == "problem"


def test_little_memory_is_a_problem(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("confide.enclave.engines.memory.available_bytes", lambda: 1 << 20)
    assert findings(monkeypatch, capsys, exit=1)["memory"]["state"] == "problem"


@contextmanager
def accepting(folder: Path | None = None) -> Iterator[int]:
    """A server that takes connections, by TLS with the certificate in a folder, and closes them."""
    listener = socket.create_server(("127.0.0.1", 0))
    context = server_context(folder / "server.pem", folder / "server.key") if folder else None

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            try:
                (context.wrap_socket(connection, server_side=True) if context else connection).close()
            except OSError:
                connection.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def test_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    make_certificates([]).write(tmp_path / "tls")
    with accepting(tmp_path / "tls") as port:
        url = f"wss://localhost:{port}"
        found = findings(monkeypatch, capsys, "--server", url, "--ca", tmp_path / "tls" / "ca.pem")["address"]
        assert found["state"] == "ok"
        assert "its certificate counts" in found["found"]
        untrusted = findings(monkeypatch, capsys, "--server", url, exit=1)["address"]
        assert "--ca" in untrusted["todo"]
    with accepting() as port:
        assert "without TLS" in findings(monkeypatch, capsys, "--server", f"localhost:{port}")["address"]["found"]
        plain = findings(monkeypatch, capsys, "--server", f"https://localhost:{port}", exit=1)["address"]
        assert plain["state"] == "problem"
    gone = findings(monkeypatch, capsys, "--server", f"wss://localhost:{port}", exit=1)["address"]
    assert "Connection refused" in gone["found"]


@pytest.mark.parametrize("address", ["wss://[", "wss://localhost:99999999", "wss://", "wss://\x1b[2J.example"])
def test_what_is_no_address(address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert findings(monkeypatch, capsys, "--server", address, exit=1)["address"]["state"] == "problem"

"""`confide setup` asks three questions, and `confide proxy` starts from what they answer."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.owners import OWNER

from confide.cli import app
from confide.models.source import open_model
from confide.models.split import SplitSummary, split
from confide.packages.trusted_owners import trust
from confide.proxy.settings import ModelSettings, read_settings


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> SplitSummary:
    return split(open_model("demo"), tmp_path_factory.mktemp("setup") / "out", owner=OWNER, protect="mlp", hint=False)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv("CONFIDE_HOME", str(folder))
    return folder


class Terminal:
    """Somebody who answers questions in their order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.asked: list[str] = []
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def run(self, *options: object, answers: tuple[str, ...] = (), exit: int = 0) -> dict[str, Any]:
        left = list(answers)

        def prompt(question: str, default: str | None = None, **_: object) -> str:
            self.asked.append(question)
            return left.pop(0) or default or ""

        self._monkeypatch.setattr("typer.prompt", prompt)
        self._monkeypatch.setattr(sys, "argv", ["confide", "setup", *map(str, options), "--json"])
        with pytest.raises(SystemExit) as ended:
            app.main()
        assert (ended.value.code or 0) == exit
        assert not left
        found: dict[str, Any] = json.loads(self._capsys.readouterr().out)
        return found


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(monkeypatch, capsys)


def test_a_model_in_a_trusted_environment_takes_three_answers(terminal: Terminal, home: Path) -> None:
    found = terminal.run(answers=("https://models.example", "", ""))
    assert len(terminal.asked) == 3
    assert found == {"file": str(home / "proxy.toml"), "model": "models.example"}
    assert read_settings(home / "proxy.toml") == [ModelSettings(name="models.example", url="https://models.example")]


def test_a_shell_is_verified_and_its_key_kept_for_its_owner_alone(
    terminal: Terminal, home: Path, parts: SplitSummary
) -> None:
    trust(OWNER.public)
    terminal.run("--name", "small", "--server", "wss://layers.example", answers=(str(parts.client),))
    terminal.run(answers=(str(parts.client), "wss://layers.example", "confide-key", "other"))
    small, other = read_settings(home / "proxy.toml")
    assert (small.name, small.shell, small.server) == ("small", str(parts.client), "wss://layers.example")
    assert small.licence_file is None
    assert other.licence_file == str(home / "licence-1")
    assert (home / "licence-1").read_text() == "confide-key\n"
    assert (home / "licence-1").stat().st_mode & 0o777 == 0o600
    assert "confide-key" not in (home / "proxy.toml").read_text()


def test_the_shell_of_a_stranger_is_not_taken(terminal: Terminal, home: Path, parts: SplitSummary) -> None:
    found = terminal.run(answers=(str(parts.client),), exit=1)
    assert found["error"]["code"] == "untrusted-owner"
    assert not (home / "proxy.toml").exists()


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--model", "nowhere", "--name", "x"), "settings"),
        (("--model", "https://a.example", "--name", "x", "--server", "wss://b.example"), "usage"),
    ],
)
def test_what_does_not_go_together(terminal: Terminal, options: tuple[str, ...], code: str) -> None:
    assert terminal.run(*options, exit=2 if code == "usage" else 1)["error"]["code"] == code


def test_a_policy_that_is_none_is_refused(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text("nonsense")
    options = ("--model", "https://a.example", "--name", "x", "--policy", tmp_path / "policy.toml")
    assert terminal.run(*options, exit=1)["error"]["code"] == "invalid-policy"


def test_a_name_stands_once(terminal: Terminal) -> None:
    options = ("--model", "https://a.example", "--name", "x")
    terminal.run(*options)
    assert "choose another name" in terminal.run(*options, exit=1)["error"]["message"]


def test_the_proxy_starts_from_it(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal.run("--model", "https://a.example", "--name", "x")
    served: list[ModelSettings] = []
    monkeypatch.setattr("confide.proxy.settings.backends", lambda models, licence="": served.extend(models) or [])
    monkeypatch.setattr("confide.enclave.api.server.serve_app", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["confide", "proxy", "--port", "0"])
    with pytest.raises(SystemExit):
        app.main()
    assert [model.name for model in served] == ["x"]

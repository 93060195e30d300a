"""Settings: a flag before the environment, before a file, before the default; and who may set what."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from tools.settings_table import PAGE, page
from typer.core import TyperCommand

from confide.cli import main
from confide.cli.app import command_line
from confide.cli.settings import SERVICES, SettingsFile, command_of, is_setting, options, require_chosen, settings
from confide.errors import InvalidSettings

HEAD = "confide-config = 1\n"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("CONFIDE_HOME", str(folder))
    before = os.umask(0o022)  # where a group's members may write by default, each file here would be refused
    yield folder
    os.umask(before)


Run = Callable[..., str]


@pytest.fixture
def confide(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in this process; gives standard output, and what people are told behind it."""

    def run(*arguments: object, code: int = 0) -> str:
        monkeypatch.setattr("sys.argv", ["confide", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        assert (caught.value.code or 0) == code, captured.err
        return captured.out + captured.err

    return run


def command(service: str) -> TyperCommand:
    return command_of(typer.main.get_command(command_line([service.split()[0]])), service)


def of(service: str, *words: str, file: Path | None = None) -> dict[str, tuple[object, str, str]]:
    found = settings(service, command(service), list(words), SettingsFile.read(file))
    return {one.key: (one.value, one.source, one.where) for one in found}


def test_a_flag_before_the_environment_before_a_file_before_the_default(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert of("serve")["port"] == (8470, "default", "")
    file = home / "config.toml"
    file.write_text(HEAD + "[serve]\nport = 1\n[keys.serve]\nport = 5\nlog = 'json'\n")
    assert of("serve")["port"] == (1, "file", str(file))
    assert of("keys serve")["port"] == (5, "file", str(file))
    assert str(of("keys serve")["log"][0]) == "json"
    monkeypatch.setenv("CONFIDE_SERVE_PORT", "2")
    assert of("serve")["port"] == (2, "environment", "CONFIDE_SERVE_PORT")
    assert of("serve", "--port", "3", "package")["port"] == (3, "flag", "")
    assert of("keys serve")["port"][0] == 5


def test_one_that_is_named_takes_the_place_of_the_users_own(home: Path, tmp_path: Path) -> None:
    (home / "config.toml").write_text(HEAD + "[serve]\nport = 1\nparallel = 2\n")
    other = tmp_path / "other.toml"
    other.write_text(HEAD + "[serve]\nport = 4\n")
    found = of("serve", file=other)
    assert found["port"] == (4, "file", str(other))
    assert found["parallel"] == (None, "default", "")
    assert of("serve", file=Path(os.devnull))["port"] == (8470, "default", "")


def test_a_working_directory_has_no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("config.toml", "confide.toml", ".env"):
        (tmp_path / name).write_text(HEAD + "[serve]\nport = 1\n")
    (tmp_path / "confide").mkdir()
    (tmp_path / "confide" / "config.toml").write_text(HEAD + "[serve]\nport = 1\n")
    monkeypatch.chdir(tmp_path)
    assert of("serve")["port"] == (8470, "default", "")
    # Nor by way of a folder that is another one wherever it is said.
    monkeypatch.delenv("CONFIDE_HOME")
    monkeypatch.setenv("XDG_CONFIG_HOME", ".")
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    assert of("serve")["port"] == (8470, "default", "")


def test_paths_of_a_file_are_beside_it_and_lists_are_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "site.toml"
    file.write_text(HEAD + '[serve]\ntls-cert = "a.pem"\ntls-key = "/b.pem"\ntls-name = ["a", "b"]\nra-tls = true\n')
    monkeypatch.chdir("/")
    found = of("serve", file=file)
    assert str(found["tls-cert"][0]) == str(tmp_path / "a.pem")
    assert str(found["tls-key"][0]) == "/b.pem"
    assert found["tls-name"][0] == ["a", "b"]
    assert found["ra-tls"][0] is True


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[serve]\n", "confide-config = 1"),
        ("confide-config = true\n", "confide-config = 1"),
        ("confide-config = 2\n", "confide-config = 1"),
        (HEAD + "[serve]\nprot = 1\n", "did you mean port"),
        (HEAD + "[serve]\ntls_cert = 'a'\n", "did you mean tls-cert"),
        (HEAD + "[serve]\nzzzzzz = 1\n", "confide config show serve"),
        (HEAD + "[server]\nport = 1\n", r"there are \[serve\]"),
        (HEAD + "[keys]\nserve = 1\n", "no table"),
        (HEAD + "serve = 1\n", "no table"),
        (HEAD + "[serve]\ninsecure-no-tls = false\n", "only ever a flag"),
        (HEAD + "[serve]\nsimulated-tee = 'x'\n", "only ever a flag"),
        (HEAD + "[serve]\njson = true\n", "only ever a flag"),
        (HEAD + "[serve]\nport = true\n", "text or a number"),
        (HEAD + "[serve]\nport = [1]\n", "text or a number"),
        (HEAD + f"[serve]\nport = 0x{'f' * 5000}\n", "text or a number"),
        (HEAD + "[serve]\nport = 1979-05-27\n", "text or a number"),
        (HEAD + '[serve]\nkeys = "a\\u0000b"\n', "text or a number"),
        (HEAD + "[serve]\nra-tls = 'yes'\n", "true or false"),
        (HEAD + "[serve]\ntls-name = 'a'\n", "as a list"),
        (HEAD + "[serve\n", "cannot be understood"),
        (HEAD + f"a{'.a' * 9} = 1\n", "more than 8 parts"),
        (HEAD + f"[serve]\nname = {'[' * 900}\n", "cannot be understood"),
        (HEAD + "#" * 70_000, "cannot be taken"),
    ],
    ids=range(23),
)
def test_what_is_no_setting_is_refused(home: Path, text: str, words: str) -> None:
    (home / "config.toml").write_text(text)
    with pytest.raises(InvalidSettings, match=words):
        of("serve")


def test_a_number_is_not_cut_to_fit(home: Path) -> None:
    (home / "config.toml").write_text(HEAD + "[serve]\nport = 1.5\n")
    with pytest.raises(typer.BadParameter, match="integer"):
        of("serve")


@pytest.mark.parametrize("mode", [0o620, 0o602], ids=oct)
def test_a_file_that_others_can_change_is_refused(home: Path, mode: int) -> None:
    file = home / "config.toml"
    file.write_text(HEAD)
    file.chmod(mode)
    with pytest.raises(InvalidSettings, match="others on this machine"):
        of("serve")
    file.chmod(0o644)
    assert of("serve")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_of_another_user_is_refused(home: Path) -> None:
    file = home / "config.toml"
    file.write_text(HEAD)
    os.chown(file, 65534, 65534)
    with pytest.raises(InvalidSettings, match="others on this machine"):
        of("serve")


def test_a_file_that_is_there_and_cannot_be_had_is_not_passed_over(home: Path) -> None:
    (home / "config.toml").symlink_to(home / "elsewhere")
    with pytest.raises(InvalidSettings, match="No such file"):
        of("serve")
    (home / "config.toml").unlink()
    (home / "config.toml").symlink_to(home / "config.toml")
    with pytest.raises(InvalidSettings, match="symbolic links"):
        of("serve")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_what_is_no_file_is_refused_and_nobody_waits_for_it(home: Path, make: Callable[[Path, int], None]) -> None:
    make(home / "config.toml", 0o600)
    with pytest.raises(InvalidSettings, match="settings"):
        of("serve")


@pytest.mark.parametrize("service", SERVICES)
def test_what_weakens_a_protection_is_a_flag_alone(service: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weakening = [option for option in options(command(service)) if "insecure" in option.name or "simul" in option.name]
    assert weakening
    for option in weakening:
        assert not is_setting(option)
        flag = option.opts[0].removeprefix("--")
        (home / "config.toml").write_text(f"{HEAD}[{service.replace(' ', '.')}]\n{flag} = true\n")
        with pytest.raises(InvalidSettings, match="only ever a flag"):
            of(service)
        (home / "config.toml").unlink()
        name = f"CONFIDE_{service}_{flag}".upper().replace(" ", "_").replace("-", "_")
        with monkeypatch.context() as patch:
            patch.setenv(name, "1")
            with pytest.raises(InvalidSettings, match=f"{name} is only ever a flag"):
                of(service)
        assert of(service)[flag][1] == "default"


@pytest.mark.parametrize("service", SERVICES)
def test_no_setting_is_a_secret(service: str) -> None:
    """Those come from files, variables of their own, and credentials: on a command line everybody reads them."""
    words = ("licence", "passphrase", "password", "secret", "token", "api-key")
    named = [option.opts[0] for option in options(command(service))]
    assert not [name for name in named if name.endswith(tuple(f"-{word}" for word in words))]


def test_a_variable_that_is_no_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONFIDE_SERVE_PROT", "1")
    with pytest.raises(InvalidSettings, match="did you mean CONFIDE_SERVE_PORT"):
        of("serve")
    assert of("chat")


# -- a workload, whose environment is its host's ------------------------------------------------------------------


def started(file: SettingsFile) -> typer.Context:
    """A workload's options, read and not acted on."""
    serve = command("serve")
    for _ in settings("serve", serve, [], file):  # have them come from the environment
        pass
    ctx = typer.Context(serve, info_name="serve", default_map=file.defaults("serve", serve))
    ctx.meta["confide.cli.settings"] = file
    with ctx.scope(cleanup=False):
        serve.parse_args(ctx, ["package", "--host", "::1"])
    return ctx


def test_a_workload_takes_flags_and_a_file_that_they_name(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = HEAD + "[serve]\nport = 1\n"
    (tmp_path / "measured.toml").write_text(text)
    require_chosen(started(SettingsFile.read(tmp_path / "measured.toml")))
    require_chosen(started(SettingsFile()))
    (home / "config.toml").write_text(text)
    with pytest.raises(InvalidSettings, match=r"port is given by .*config\.toml"):
        require_chosen(started(SettingsFile.read(None)))
    (home / "config.toml").unlink()
    monkeypatch.setenv("CONFIDE_SERVE_HOST", "0.0.0.0")  # noqa: S104 - the flag says otherwise
    require_chosen(started(SettingsFile()))
    monkeypatch.setenv("CONFIDE_SERVE_KEYS", "https://keys.example")
    with pytest.raises(InvalidSettings, match="keys is given by CONFIDE_SERVE_KEYS"):
        require_chosen(started(SettingsFile()))


def test_serve_asks_that_of_a_sealed_model(confide: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it opens anything."""
    (tmp_path / "manifest.json").write_text('{"kind": "sealed-model"}')
    monkeypatch.setenv("CONFIDE_SERVE_HOST", "127.0.0.1")
    assert answer(confide, "serve", tmp_path, code=1)["error"]["code"] == "settings"


def test_the_page_has_every_setting() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python tools/settings_table.py"


# -- the commands ------------------------------------------------------------------------------------------------


def answer(confide: Run, *arguments: object, code: int = 0) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(confide(*arguments, "--json", code=code))
    return said


def test_show(confide: Run, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "config.toml").write_text(HEAD + "[proxy]\nport = 7\n")
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "keys-passphrase").write_text("a hushed word\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    monkeypatch.setenv("CONFIDE_LICENCE", "confide-hushed")
    monkeypatch.setenv("CONFIDE_CHAT_OFFLINE", "1")
    shown = answer(confide, "config", "show")
    assert list(shown["services"]) == list(SERVICES)
    assert shown["services"]["proxy"]["port"] == {"value": 7, "source": "file", "where": str(home / "config.toml")}
    offline = {"value": True, "source": "environment", "where": "CONFIDE_CHAT_OFFLINE"}
    assert shown["services"]["chat"]["offline"] == offline
    assert shown["services"]["serve"]["port"] == {"value": 8470, "source": "default", "where": ""}
    assert shown["secrets"]["chat"] == {"licence": "environment CONFIDE_LICENCE", "http-proxy-password": ""}
    assert shown["secrets"]["keys serve"]["keys-passphrase"].startswith("file /")
    assert "hushed" not in json.dumps(shown)
    table = confide("config", "show", "keys", "serve", "--port", 9, "--insecure-no-tls")
    assert "hushed" not in table
    assert [line.split() for line in table.splitlines() if line.startswith(("port", "insecure"))] == [
        ["port", "9", "flag"],
        ["insecure-no-tls", "true", "flag"],
    ]


def test_commands_take_them(confide: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service is started with what the file says; another command takes no file; who said a wrong value is named."""
    file = tmp_path / "site.toml"
    file.write_text(HEAD + "[proxy]\nport = 70000\n")
    wrong = answer(confide, "--config", file, "proxy", "https://models.example", code=2)["error"]
    assert "--port" in wrong["message"]
    assert wrong["message"].endswith(f"The value is given by {file}.")
    assert "--config is for serve" in answer(confide, "--config", file, "owner", "list", code=2)["error"]["message"]
    missing = answer(confide, "--config", tmp_path / "none", "proxy", "https://models.example", code=1)["error"]
    assert missing["code"] == "settings"
    monkeypatch.setenv("CONFIDE_PROXY_PORT", "word")
    wrong = answer(confide, "proxy", "https://models.example", code=2)["error"]
    assert wrong["message"].endswith("The value is given by CONFIDE_PROXY_PORT.")


def test_a_password_of_a_proxy_is_no_flag(confide: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = confide("chat", "ws://127.0.0.1:1", "--proxy", "http://me:hush@gate:1", code=2)
    assert "CONFIDE_HTTP_PROXY_PASSWORD" in refused
    assert "hush" not in refused
    for proxy in ("me:hush@gate", "http://me:h//ush@gate", "socks5://me:hush@gate"):
        assert "CONFIDE_HTTP" in confide("chat", "ws://127.0.0.1:1", "--proxy", proxy, code=2)
    monkeypatch.setenv("CONFIDE_CHAT_PROXY", "http://me:hush@gate:1")
    for arguments in (("chat", "ws://127.0.0.1:1", "--once", "x"), ("config", "show", "chat")):
        assert "hush" not in confide(*arguments, code=2)


def test_shells_are_told_what_can_follow(monkeypatch: pytest.MonkeyPatch, confide: Run) -> None:
    """By the command itself, of which a script is made for each shell."""
    for shell in ("bash", "zsh", "fish"):
        monkeypatch.setenv("_CONFIDE_COMPLETE", f"source_{shell}")
        assert f"_CONFIDE_COMPLETE=complete_{shell}" in confide()
    monkeypatch.setenv("_CONFIDE_COMPLETE", "complete_bash")
    for words, cursor, offered in (
        ("confide keys serve --tls-", "3", ["--tls-cert", "--tls-key"]),
        ("confide ser", "1", ["serve"]),
        ("confide serve --log ", "3", ["text", "json"]),
    ):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", cursor)
        assert confide().split() == offered

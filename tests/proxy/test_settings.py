"""Several models by a file, and the proxy that runs in the background."""

import json
import os
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import fields
from tests.cli.command import run
from tests.client.workload import MODEL, serving, simulated

from confide.client.options import EnclaveOptions, HybridOptions
from confide.errors import InvalidSettings, ProtocolError, ProxyNotRunning
from confide.net.tls import client_context, make_certificates
from confide.proxy.running import FILE_NAME, Running, forget, recall, remember
from confide.proxy.settings import ModelSettings, backends, read_settings
from confide.proxy.shell import ShellBackend

BOTH = """
confide-proxy = 1

[[model]]
name = "big"
url = "https://models.example"

[[model]]
name = "small"
shell = "split/client"
server = "wss://layers.example"
licence-file = "licence"
checks = "checks.msgpack"
proxy = "http://me:hush@gate.example:3128"
patience = 5
"""

NEVER = {
    "licence": "from its file, so that a settings file holds no key",
    "padding": "an object",
    "device": "the shell's engine computes on the processor",
    "progress": "there is nobody to see a bar",
}
"""Options of the hybrid mode that no settings file has, and why."""


def written(folder: Path, text: str) -> Path:
    path = folder / "proxy.toml"
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    return path


def test_a_placement_is_a_file_beside_the_settings(tmp_path: Path) -> None:
    text = BOTH.replace('server = "wss://layers.example"', 'placement = "placement.toml"').replace("licence-file", "#")
    (backend,) = backends(read_settings(written(tmp_path, text))[1:])
    assert isinstance(backend, ShellBackend)
    assert backend.address.server == tmp_path / "placement.toml"


def test_both_modes_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "licence").write_text("confide-key\n")
    big, small = read_settings(written(tmp_path, BOTH))
    assert (big.name, big.url) == ("big", "https://models.example")
    assert small.shell == str(tmp_path / "split/client")  # wherever the proxy is started
    first, second = backends([big, small])
    assert (list(first.models), list(second.models)) == (["big"], ["small"])
    assert isinstance(second, ShellBackend)
    options = second.address.options
    assert (options["proxy"], options["patience"]) == (small.proxy, 5)
    assert options["checks"] == str(tmp_path / "checks.msgpack")
    for secret in ("confide-key", "hush"):
        assert secret not in repr(second) + repr(small) + repr(second.address)


def test_a_file_can_say_what_sessions_can_be_told() -> None:
    # The proxy has neither of two, the licence from its file, and relies on no graph.
    of_workloads = {"attestation_keys", "ra_tls", "licence", "graph", "coordinator", "promise"}
    said = {field.name for field in fields(ModelSettings)}
    assert HybridOptions.__annotations__.keys() - said == NEVER.keys()
    assert EnclaveOptions.__annotations__.keys() - said == of_workloads


@pytest.mark.parametrize(
    "text",
    [
        "",
        "confide-proxy = 2\n[[model]]\nurl = 'https://x'",
        "confide-proxy = 1",
        "confide-proxy = 1\n[[model]]\nurl = 'https://x'\npolice = 'policy.toml'",
        "confide-proxy = 1\n[[model]]\nurl = 'http://x'\ninsecure-no-tls = true",
        "confide-proxy = 1\n[[model]]\nurl = ''",
        "confide-proxy = 1\n" + "[[model]]\nurl = 'https://x'\n" * 65,
        "[" * 10_000,
        "confide-proxy = 1 #" + "x" * 70_000,
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidSettings, match=r"proxy\.toml"):
        read_settings(written(tmp_path, text))


def test_a_file_of_models_that_others_can_change_is_refused(tmp_path: Path) -> None:
    """It says whom to trust, as config.toml does."""
    path = written(tmp_path, BOTH)
    path.chmod(0o666)
    with pytest.raises(InvalidSettings, match="others on this machine"):
        read_settings(path)
    path.chmod(0o644)
    assert read_settings(path)


def test_a_key_of_many_parts_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="more than 8 parts"):
        read_settings(written(tmp_path, "a" + ".a" * 20_000 + " = 1"))


@given(st.binary(max_size=300))
def test_any_bytes_are_settings_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "proxy.toml"
    path.write_bytes(b"confide-proxy = 1\n[[model]]\n" + content)
    path.chmod(0o600)
    with suppress(InvalidSettings):
        assert read_settings(path)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (ModelSettings(), "url"),
        (ModelSettings(shell="x"), "server"),
        (ModelSettings(url="https://x", server="wss://y"), "server: a url"),
        (ModelSettings(url="https://x", proxy="http://y"), "proxy: a url"),
        (ModelSettings(url="https://x", patience=0), "patience: a url"),
        (ModelSettings(shell="x", server="wss://y", policy="p"), "policy: a shell"),
        (ModelSettings(shell="x", server="wss://y", offline=True), "offline: a shell"),
        (ModelSettings(shell="x", server="wss://y", placement="z"), "either"),
        (ModelSettings(url="https://x", placement="z"), "placement: a url"),
        (ModelSettings(shell="x", server="wss://y", licence_file="/no/such"), "cannot be read"),
    ],
)
def test_what_does_not_go_together(model: ModelSettings, words: str) -> None:
    with pytest.raises(InvalidSettings, match=words):
        backends([model])


def test_what_is_no_proxy_is_said_before_anything_starts() -> None:
    with pytest.raises(ProtocolError) as caught:
        backends([ModelSettings(shell="x", server="wss://y", proxy="socks5://me:hush@gate")])
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ("https://models.example", "--patience", "0"),
        ("./client", "--server", "wss://layers.example", "--policy", "policy.toml"),
        ("--models", "proxy.toml", "--policy", "policy.toml"),
        ("--policy", "policy.toml"),
    ],
    ids=" ".join,
)
def test_no_option_is_dropped_in_silence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path))
    written(tmp_path, BOTH)  # which it would start from
    refused = run("proxy", *arguments, "--port", 0, "--json")
    assert refused.returncode
    assert "leave that out" in refused.stdout + refused.stderr or "either" in refused.stdout + refused.stderr


def test_a_file_that_others_can_read_or_wrote_is_not_believed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path))
    with pytest.raises(ProxyNotRunning, match="start one"):
        recall()
    running = Running("http://127.0.0.1:1", "token")
    path = remember(running)
    assert recall() == running
    assert "token" not in repr(running).replace("hidden", "")
    path.chmod(0o644)
    with pytest.raises(ProxyNotRunning, match="not yours alone"):
        recall()
    path.chmod(0o600)
    forget(Running("http://127.0.0.1:2", "other"))
    assert recall() == running
    forget(running)
    assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"{}", b'{"url":"ftp://x","token":"y"}', b"[" * 100_000, b"\xff"])
def test_a_damaged_file_means_no_proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes) -> None:
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path))
    (tmp_path / FILE_NAME).write_bytes(content)
    (tmp_path / FILE_NAME).chmod(0o600)
    with pytest.raises(ProxyNotRunning):
        recall()


def test_in_the_background_from_start_to_stop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path / "home"))
    with serving(simulated(tmp_path / "tee")) as fake:
        arguments = ("proxy", fake.url, "--simulated-root", tmp_path / "tee" / "root.pem", "--port", 0)
        started = json.loads(run(*arguments, "--background", "--json").stdout)
        try:
            assert os.stat(tmp_path / "home" / FILE_NAME).st_mode & 0o077 == 0
            for _ in range(200):
                status = json.loads(run("proxy", "status", "--json").stdout)
                if status["status"] == "ready":
                    break
            assert status["url"] == started["url"]
            assert (status["backends"][0]["models"], status["backends"][0]["simulated"]) == ([MODEL], True)
            shown = run("proxy", "status").stdout
            assert "SIMULATED" in shown
            assert "ready" in shown
        finally:
            assert json.loads(run("proxy", "stop", "--json").stdout) == {"stopped": started["url"]}
    again = run("proxy", "status", "--json")
    for _ in range(100):
        if again.returncode:
            break
        again = run("proxy", "status", "--json")
    assert json.loads(again.stdout)["error"]["code"] == "proxy-not-running"


def test_beyond_this_machine_it_needs_tls_and_a_key(tmp_path: Path) -> None:
    refused = run("proxy", "https://models.example", "--host", "0.0.0.0", "--json")  # noqa: S104
    assert json.loads(refused.stdout)["error"]["code"] == "insecure-connection"
    with_key = tmp_path / "key"
    with_key.write_text("secret")
    refused = run("proxy", "https://models.example", "--host", "0.0.0.0", "--key-file", with_key, "--json")  # noqa: S104
    assert json.loads(refused.stdout)["error"]["code"] == "insecure-connection"


def test_beyond_this_machine_it_is_reached_by_the_names_of_its_certificate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path / "home"))
    ca, chain, private = make_certificates(["box.example"]).write(tmp_path)
    (tmp_path / "key").write_text("the-key")
    with serving(simulated(tmp_path / "tee")) as fake:
        started = run(
            "proxy", fake.url, "--simulated-root", tmp_path / "tee" / "root.pem", "--host", "0.0.0.0", "--port", 0,  # noqa: S104
            "--tls-cert", chain, "--tls-key", private, "--key-file", tmp_path / "key", "--background", "--json",
        )  # fmt: skip
        url = json.loads(started.stdout)["url"]
        port = url.rpartition(":")[2]
        try:
            assert url == f"https://box.example:{port}"
            assert json.loads(run("proxy", "status", "--json").stdout)["url"] == url

            def ask(host: str, key: str = "the-key") -> int:
                return http.get(
                    f"https://127.0.0.1:{port}/v1/models",
                    headers={"host": host, "authorization": f"Bearer {key}"},
                    extensions={"sni_hostname": "box.example"},
                ).status_code

            with httpx.Client(verify=client_context(ca), trust_env=False) as http:
                for name in ("box.example", "localhost", "127.0.0.1"):
                    assert ask(f"{name}:{port}") == 200
                assert ask(f"box.example:{port}", "another") == 401
                assert ask(f"evil.example:{port}") == 403
        finally:
            assert json.loads(run("proxy", "stop", "--json").stdout) == {"stopped": url}


def test_a_port_that_is_taken_is_one_line() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = run("proxy", "https://models.example", "--port", port, "--json")
    assert refused.returncode == 1
    assert str(port) in json.loads(refused.stdout)["error"]["message"]
    assert "Traceback" not in refused.stderr

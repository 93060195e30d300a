"""A process of `confide serve` under somebody's eyes: how it starts, what it says, how it ends, and with whom."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from confide.cluster.server_process import ServerProcess
from confide.errors import MachineError
from confide.packages.guard import sign_rules
from owners import OWNER


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONFIDE_HOME", str(tmp_path_factory.mktemp("home") / "confide"))
        yield


@pytest.fixture(scope="module")
def split_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from confide.models.source import open_model
    from confide.models.split import split

    folder = tmp_path_factory.mktemp("demo")
    return Path(split(open_model("demo"), folder, owner=OWNER, protect="attention", hint=False).server)


@pytest.fixture
def demo(split_demo: Path, tmp_path: Path) -> Path:
    """A layer server's package, which remembers where its ledger is."""
    return Path(shutil.copytree(split_demo, tmp_path / "server"))


@pytest.fixture
def server(demo: Path, tmp_path: Path) -> Iterator[ServerProcess]:
    process = ServerProcess([str(demo), "--state", str(tmp_path / "state")])
    yield process
    process.stop()


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_it_says_where_it_is_and_how_much_it_has_to_do(server: ServerProcess) -> None:
    assert server.url.startswith("ws://127.0.0.1:")
    server.require_healthy()
    assert server.load() == 0
    server.stop()
    assert gone(server.pid)


def test_one_that_ended_is_not_well(server: ServerProcess) -> None:
    os.kill(server.pid, signal.SIGKILL)
    until = time.monotonic() + 200
    said = ""
    while "ended with -9" not in said:  # whose threads take a moment
        assert time.monotonic() < until
        with pytest.raises(MachineError) as raised:
            server.require_healthy()
        said = str(raised.value)


def test_one_that_does_not_answer_is_not_well(server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    os.kill(server.pid, signal.SIGSTOP)
    monkeypatch.setattr(httpx.Client, "stream", _never)
    try:
        with pytest.raises(MachineError, match="not well: connection-lost"):
            server.require_healthy()
    finally:
        os.kill(server.pid, signal.SIGCONT)


def _never(*_: object, **__: object) -> None:
    raise httpx.ReadTimeout("silence")


def test_what_does_not_start_says_why(tmp_path: Path) -> None:
    sign_rules('confide-guard = 1\nname = "g"\nrefusal = "No."\nphrases = ["x"]\n', tmp_path / "guard", OWNER)
    with pytest.raises(MachineError, match=r"does not start: .*manifest.json"):
        ServerProcess([str(tmp_path / "nothing")])
    with pytest.raises(MachineError, match="within 0 s"):
        ServerProcess([str(tmp_path / "guard")], seconds=0)


def test_an_address_of_all_the_machine_is_told_as_one_that_others_can_use(demo: Path, tmp_path: Path) -> None:
    arguments = [str(demo), "--state", str(tmp_path / "state"), "--host", "0.0.0.0"]  # noqa: S104
    arguments.append("--insecure-no-tls")
    process = ServerProcess(arguments, address="192.0.2.7")
    try:
        assert process.url.startswith("ws://192.0.2.7:")
    finally:
        process.stop()


def test_it_ends_with_whoever_started_it(demo: Path, tmp_path: Path) -> None:
    """However that ends: a ledger that an orphan holds would let no other server begin."""
    code = (
        "import sys, json, time\nfrom confide.cluster.server_process import ServerProcess\n"
        "one = ServerProcess(sys.argv[1:])\nprint(json.dumps(one.pid), flush=True)\ntime.sleep(9999)\n"
    )
    command = [sys.executable, "-c", code, str(demo), "--state", str(tmp_path / "state")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        pid = json.loads(starter.stdout.readline())
        starter.kill()
    until = time.monotonic() + 200
    while not gone(pid):
        assert time.monotonic() < until
        time.sleep(0.05)

"""`confide cluster` on a Ray of this machine: what it starts, on which addresses, and what becomes of it.

Slow, since Ray takes seconds to start.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from confide.attest.simulated import SimulatedTee
from confide.errors import ClusterUnavailable
from confide.models.source import open_model
from confide.models.split import split
from owners import OWNER

pytestmark = pytest.mark.slow
CONFIDE = Path(sys.executable).with_name("confide")
SECONDS = 600


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    SimulatedTee.create(folder / "tee")
    split(open_model("demo"), folder / "split", owner=OWNER, protect="attention", hint=False)
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Ray's own folder is short: sockets lie in it."""
    ray = Path("/tmp") / f"ray-test-{os.getpid()}"  # noqa: S108
    shutil.rmtree(ray, ignore_errors=True)
    ray.mkdir()
    return os.environ | {"CONFIDE_HOME": str(tmp_path / "home"), "RAY_TMPDIR": str(ray), "COLUMNS": "100"}


def asked(environment: dict[str, str], *arguments: object, check: int | None = 0) -> Any:
    command = [str(CONFIDE), "cluster", *map(str, arguments), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert check is None or done.returncode == check, done.stdout + done.stderr
    return json.loads(done.stdout)


@contextmanager
def up(environment: dict[str, str], file: Path) -> Iterator[dict[str, Any]]:
    """What it says once all is well."""
    command = [str(CONFIDE), "cluster", "up", str(file), "--json"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
        process.terminate()
        assert process.wait(SECONDS) == 0
    finally:
        process.kill()
        process.wait()


def written(folder: Path, demo: Path, **entry: Any) -> Path:
    """A file with one layer server."""
    package = folder / "server"
    if not package.exists():
        shutil.copytree(demo / "split" / "server", package)
    lines = ["confide-cluster = 1", "[[server]]", 'name = "layers"', f'serve = ["{package}"]', "cpus = 0.1"]
    lines += [f"{name} = {value}" for name, value in entry.items()]
    path = folder / "cluster.toml"
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o600)
    return path


def eventually(environment: dict[str, str], wanted: Any) -> dict[str, Any]:
    until = time.monotonic() + SECONDS
    while True:
        found: dict[str, Any] = asked(environment, "status")
        if wanted(found):
            return found
        assert time.monotonic() < until, found
        time.sleep(1)


def listening() -> set[tuple[str, int]]:
    """Addresses that anything on this machine listens on, other than its loopback."""
    said = subprocess.run(["ss", "-ltnH"], capture_output=True, text=True, check=True).stdout
    addresses = {line.split()[3] for line in said.splitlines()}
    pairs = {(one.rpartition(":")[0].strip("[]"), int(one.rpartition(":")[2])) for one in addresses}
    return {pair for pair in pairs if not pair[0].startswith(("127.", "::1", "::ffff:127."))}


def address_of(environment: dict[str, str]) -> str:
    return Path(environment["CONFIDE_HOME"], "cluster-address").read_text()


def running(found: dict[str, Any]) -> list[str]:
    return [one["url"] for one in found["running"]]


@pytest.mark.skipif(shutil.which("ss") is None, reason="ss is not installed")
def test_a_server_is_started_replaced_when_it_dies_and_ended_with_the_command(
    demo: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    before = listening()
    with up(environment, written(tmp_path, demo)) as first:
        [url] = running(first)
        assert first["states"] == {"layers": "running"}
        assert url.startswith("ws://127.0.0.1:")
        # Ray takes programs from whoever reaches its ports.
        assert listening() <= before
        stranger = environment | {"CONFIDE_HOME": str(tmp_path / "stranger")}
        said = asked(stranger, "status", "--ray", address_of(environment), check=1)
        assert said["error"]["code"] == ClusterUnavailable.code
        port = int(url.rpartition(":")[2])
        socket.create_connection(("127.0.0.1", port), 10).close()
        pids = subprocess.run(["pgrep", "-f", f"serve {tmp_path}"], capture_output=True, text=True).stdout.split()
        for pid in pids:
            os.kill(int(pid), signal.SIGKILL)
        again = eventually(environment, lambda found: running(found) not in ([], [url]))
        assert again["states"] == {"layers": "running"}
    left = subprocess.run(["pgrep", "-f", f"serve {tmp_path}"], capture_output=True, text=True).stdout.split()
    assert left == []


def test_a_change_is_brought_out_and_what_cannot_start_is_said(
    demo: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    with up(environment, written(tmp_path, demo)) as first:
        file = written(tmp_path, demo, load=3)
        # The old one holds its ledger's folder, so that the new one cannot begin: it is said, and the old one stays.
        said = asked(environment, "up", file, "--ray", address_of(environment), check=1)
        assert said["states"]["layers"].startswith("failed: ")
        assert running(said) == running(first)
        down = asked(environment, "down")
        assert down == {"stopped": ["layers"]}
        with pytest.raises(AssertionError, match=ClusterUnavailable.code):
            asked(environment, "status")


def test_without_a_cluster_it_is_said_soon(environment: dict[str, str]) -> None:
    said = asked(environment, "status", check=1)
    assert said["error"]["code"] == ClusterUnavailable.code
    said = asked(environment, "status", "--ray", "127.0.0.1:9", check=1)
    assert said["error"]["code"] == ClusterUnavailable.code

"""The commands of docs/serving.md, run in their order as they stand there, but for the ports."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from confide.attest.policy import SimulatedPolicy
from confide.attest.policy_toml import any_policy_from_toml, policy_from_toml

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
BLOCK = re.compile(
    r"<!-- run(?P<server> as a server on (?P<port>\d+))?(?P<nginx> with nginx)? -->\n```sh\n(?P<code>.*?)```", re.DOTALL
)
SECONDS = 1200  # it takes a minute; on a busy machine many
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"])
WAIT = "until (exec 3<>/dev/tcp/127.0.0.1/{port}) 2>/dev/null; do kill -0 $!; sleep 0.1; done"


@dataclass(frozen=True)
class Block:
    """Commands of the page. port: where they listen, of those that serve until they are stopped."""

    code: str
    port: int | None

    def script(self) -> str:
        if self.port is None:
            return self.code
        return f"({self.code}) > server-{self.port}.log 2>&1 &\n{WAIT.format(port=self.port)}\n"


def blocks(text: str, *, nginx: bool) -> Iterator[Block]:
    for found in BLOCK.finditer(text):
        if nginx or not found["nginx"]:
            yield Block(found["code"], int(found["port"]) if found["port"] else None)


def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What bash says to these lines. It stops at the first that fails, and takes what it started along."""
    environment = os.environ | {"PATH": PATH, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    with (folder / "output").open("w+") as output:
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(SECONDS)
        finally:
            stop_all(process)
        output.seek(0)
        logs = "".join(f"\n{path.name}:\n{path.read_text()}" for path in sorted(folder.glob("server-*.log")))
        return subprocess.CompletedProcess([], code, output.read(), logs)


def stop_all(process: subprocess.Popen[bytes]) -> None:
    """Its session holds nothing but what the page started in this test."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def with_free_ports(text: str) -> str:
    with ExitStack() as stack:
        for port in sorted(set(re.findall(r"\b84\d\d\b", text))):
            free = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            text = re.sub(rf"\b{port}\b", str(free.getsockname()[1]), text)
    return text


@pytest.mark.slow  # each command has tests of its own
def test_the_commands_of_the_page_work_in_their_order(tmp_path: Path) -> None:
    text = with_free_ports(PAGE.read_text())
    has_nginx = shutil.which("nginx", path=PATH) is not None
    script = "".join(block.script() for block in blocks(text, nginx=has_nginx))
    done = run(script, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout
    assert "every chunk decrypts with this key" in said
    assert said.count("released  key") == 1
    assert said.count("SIMULATED, nothing is protected") == (3 if has_nginx else 2)
    assert "attestation-refused" in said
    assert "\nrefused\n" in said
    assert "protection: none (SIMULATED" in said
    assert '{"status":"ok"}' in said
    assert '"code":"insecure-connection"' in said
    assert re.search(r"tdx mrtd +[0-9a-f]{96}", said)
    assert said.count("trusted: all 14 checks passed") == 2
    assert "intact: 2 entries" in said
    assert len(re.findall(r"^The old king,? \w+", said, re.MULTILINE)) == 2
    assert "llama.cpp, q8_0" in done.stderr


def test_a_page_that_has_rotted_is_noticed(tmp_path: Path) -> None:
    lost = "<!-- run -->\n```sh\nconfide no-such-command\necho unreached\n```\n"
    dead = "<!-- run as a server on 1 -->\n```sh\nfalse\n```\n"
    for page in (lost, dead):
        done = run("".join(block.script() for block in blocks(page, nginx=True)), tmp_path)
        assert done.returncode != 0
        assert "unreached" not in done.stdout


def test_every_policy_of_the_page_can_be_read() -> None:
    text = PAGE.read_text()
    shown = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert len(shown) == 5
    for policy in shown:
        assert policy_from_toml(policy).requirements
    written = re.findall(r"^(confide-policy = 1\nkind = \"simulated\".*?)^END$", text, re.DOTALL | re.MULTILINE)
    assert len(written) == 2
    for policy in written:
        assert isinstance(any_policy_from_toml(policy.replace("$digest", "ab" * 32)), SimulatedPolicy)

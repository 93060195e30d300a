"""No mask ever carries two values, whatever dies when: SIGKILL at random moments, and a log at the server."""

import hashlib
import os
import random
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from confide.hybrid import wire

from .small import running, small_service, twin_client

Key = tuple[bytes, int, int]


class Log:
    """Every (pack, group, index) the server saw, with the hashes of d that came under it."""

    def __init__(self) -> None:
        self.seen: dict[Key, set[bytes]] = defaultdict(set)

    def __call__(self, message: wire.Online) -> None:
        rows = np.frombuffer(message.masked, np.int32).reshape(message.count, -1)
        for offset, row in enumerate(rows):
            key = (message.pack, message.group, message.first + offset)
            self.seen[key].add(hashlib.sha256(row.tobytes()).digest())

    def keys_with_two_values(self) -> list[Key]:
        return [key for key, hashes in self.seen.items() if len(hashes) > 1]


def start_client(shell: Path, url: str, seconds: float) -> subprocess.Popen[str]:
    tests = Path(__file__).resolve().parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "hybrid.restless_client", str(shell), url, str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def kill_repeatedly(shell: Path, state: Path, times: int) -> None:
    log = Log()
    with running(small_service(state, observer=log)) as url:
        with twin_client(shell, url) as client:
            client.prepare(2 * 4096)
        marks = []
        for _ in range(times):
            client_process = start_client(shell, url, 60)
            assert client_process.stdout is not None
            assert client_process.stdout.readline() == "ready\n"
            time.sleep(random.uniform(0, 0.08))
            client_process.kill()
            client_process.wait()
            marks.append(len(log.seen))
        last = start_client(shell, url, 0.2)
        assert last.wait(60) == 0
    assert log.keys_with_two_values() == []
    assert len(log.seen) > marks[-1] > 0, "the killed clients did no work"


def test_a_killed_client_never_reuses_a_mask(shell: Path, tmp_path: Path) -> None:
    kill_repeatedly(shell, tmp_path / "state", 10)


@pytest.mark.slow
def test_a_client_killed_two_hundred_times_never_reuses_a_mask(shell: Path, tmp_path: Path) -> None:
    kill_repeatedly(shell, tmp_path / "state", 200)


def test_the_log_would_show_a_reused_mask(shell: Path, tmp_path: Path) -> None:
    log = Log()
    for value in (1, 2):
        payload = np.full(8, value, np.int32).tobytes()
        log(wire.Online(b"p" * 16, 0, 7, 1, memoryview(payload)))
    assert len(log.keys_with_two_values()) == 1

"""A Ray cluster of one machine."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

RAY = Path(sys.executable).with_name("ray")


@pytest.fixture
def ray(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A cluster of one machine, as an operator starts it, and an environment that reaches it."""
    folder = Path("/tmp") / f"ray-tasks-{os.getpid()}"  # noqa: S108 - sockets lie in it
    environment = os.environ | {
        "RAY_TMPDIR": str(folder),
        "CONFIDE_HOME": str(tmp_path / "home"),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0" * 64,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    folder.mkdir()
    words = [str(RAY), "start", "--head", "--port", "0", "--include-dashboard", "false", "--num-cpus", "2", "--block"]
    # `ray stop` would end every cluster of this machine, also another test's.
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True) as started:
        assert started.stdout is not None
        try:
            assert any("Ray runtime started" in line for line in started.stdout)
            reader = threading.Thread(target=started.stdout.read)
            reader.start()
            yield "auto", environment
        finally:
            os.killpg(started.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                started.wait(60)
            with suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
            shutil.rmtree(folder, ignore_errors=True)

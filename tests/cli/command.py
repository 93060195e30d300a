"""Runs `confide` commands, each in a process of its own that was forked from one with the heavy libraries loaded."""

import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

_forks = multiprocessing.get_context("forkserver")
# Not the command line itself: it looks at the terminal when it is imported.
_forks.set_forkserver_preload(
    [
        "confide.hybrid.model",
        "confide.models.split",
        "confide.models.clear",
        "confide.hybrid.server.service",
        "confide.enclave.api.app",
        "confide.enclave.engines.transformers_engine",
        "pydantic.type_adapter",
        "rich.columns",
        "rich.markdown",
        "rich.progress",
        "rich.table",
        "typer",
    ]
)
_SECONDS = 900
"""Until a program hangs, on whatever else the machine does."""


def run(*arguments: object, timeout: float = _SECONDS) -> subprocess.CompletedProcess[str]:
    """What `confide ARGUMENTS` does, with its output and exit code."""
    return _ended("", list(map(str, arguments)), {"COLUMNS": "80"}, timeout)


def run_script(path: Path) -> subprocess.CompletedProcess[str]:
    """What a program in Python does that stands in a file."""
    return _ended(str(path), [], {}, _SECONDS)


@contextmanager
def serving(
    *arguments: object, environment: Mapping[str, str] | None = None, log: Path | None = None
) -> Iterator[dict[str, Any]]:
    """What `confide ARGUMENTS --json` announces, while it runs. It must end when it is told to. log: what it says."""
    words = [*map(str, arguments), "--json"]
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", log or Path(folder) / "err"
        process = _started("", words, environment or {}, out, err)
        try:
            until = time.monotonic() + _SECONDS
            while not (said := out.read_text() if out.exists() else "").endswith("\n"):
                assert process.is_alive(), f"confide {' '.join(words)}\n{said}{err.read_text()}"
                assert time.monotonic() < until, said
                time.sleep(0.02)
            yield json.loads(said.splitlines()[0])
            process.terminate()
            process.join(_SECONDS)
            assert process.exitcode in (0, -signal.SIGTERM), err.read_text()
        finally:
            process.kill()
            process.join()


def _ended(
    script: str, words: Sequence[str], environment: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        process = _started(script, words, environment, out, err)
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"{script or 'confide'} {' '.join(words)} took more than {timeout} seconds")
        return subprocess.CompletedProcess(words, process.exitcode, out.read_text(), err.read_text())


def _started(
    script: str, words: Sequence[str], environment: Mapping[str, str], out: Path, err: Path
) -> ForkServerProcess:
    for path in (out, err):
        path.touch()
    process = _forks.Process(target=_program, args=(script, words, dict(os.environ) | dict(environment), out, err))
    process.start()
    return process


def _program(script: str, words: Sequence[str], environment: Mapping[str, str], out: Path, err: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for path, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY), descriptor)
    sys.argv = [script or "confide", *words]
    if script:
        runpy.run_path(script, run_name="__main__")
        return
    from confide.cli import main
    from confide.enclave.engines import dtypes
    from confide.enclave.engines.engine import Dtype

    # By a measurement it would be another type on another processor, and its answers others in the last digits.
    dtypes.fastest_dtype = lambda model: Dtype.F32
    main()

"""Runs `confide` commands, each in a process of its own that was forked from one with the heavy libraries loaded."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_forks = multiprocessing.get_context("forkserver")
# Not the command line itself: it looks at the terminal when it is imported.
_forks.set_forkserver_preload(["confide.hybrid.model", "confide.models.split", "confide.models.clear"])


def run(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """What `confide ARGUMENTS` does, with its output and exit code."""
    words = list(map(str, arguments))
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        process = _forks.Process(target=_command, args=(words, dict(os.environ) | {"COLUMNS": "80"}, out, err))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"confide {' '.join(words)} took more than {timeout} seconds")
        return subprocess.CompletedProcess(words, process.exitcode, out.read_text(), err.read_text())


def _command(arguments: list[str], environment: dict[str, str], out: Path, err: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for path, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.argv = ["confide", *arguments]
    from confide.cli import main

    main()

"""Python environments of the peers, made on first use under the user's cache folder. Confide depends on none of it.

The versions are fixed. Concrete's libraries are free for research and evaluation only; their licence grants no patents.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers.measurement import Measurement

REPOSITORY = Path(__file__).parents[2]
REQUIREMENTS = ("concrete-ml-extensions==0.2.0", "tenseal==0.3.18", "numpy==2.4.6")
NEWEST_PYTHON = (3, 12)
"""The last one that the peers have wheels for."""


def measure(program: str, layer: Path) -> Measurement:
    """Run `benchmarks.peers.PROGRAM` on a saved layer, with the peers' own Python.

    What it writes to its standard error is shown; CalledProcessError where it fails.
    """
    return Measurement.from_json(run(REQUIREMENTS, f"benchmarks.peers.{program}", str(layer)))


def run(requirements: Sequence[str], module: str, *arguments: str) -> str:
    """The standard output of a module of this repository, run with Python and these requirements alone."""
    command = [str(_python(requirements)), "-m", module, *arguments]
    return subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True).stdout


def _python(requirements: Sequence[str]) -> Path:
    """The environment's interpreter; the environment is made where it is missing or half made."""
    if sys.version_info[:2] > NEWEST_PYTHON:
        newest = ".".join(map(str, NEWEST_PYTHON))
        raise RuntimeError(f"The peers need Python 3.11 to {newest}; make .venv with `make PYTHON=python{newest}`.")
    folder = _folder(requirements)
    python, complete = folder / "bin" / "python", folder / "complete"
    if not complete.exists():
        print(f"Installing the peers into {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--only-binary", ":all:", *requirements], stdout=sys.stderr, check=True)
        complete.touch()
    return python


def _folder(requirements: Sequence[str]) -> Path:
    """One folder for each set of versions."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    versions = "_".join(requirement.replace("==", "-") for requirement in requirements)
    return cache / "confide-benchmarks" / f"python-{sys.version_info.major}.{sys.version_info.minor}_{versions}"

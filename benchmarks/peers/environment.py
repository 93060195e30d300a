"""The Python environment of the peers, made on first use under the user's cache folder. Confide depends on none of it.

The versions are fixed. Concrete ML's library is free for research and evaluation only; its licence grants no patents.
"""

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.peers.measurement import Measurement

REPOSITORY = Path(__file__).parents[2]
REQUIREMENTS = ("concrete-ml-extensions==0.2.0", "tenseal==0.3.18", "numpy==2.4.6")
NEWEST_PYTHON = (3, 12)
"""The last one that concrete-ml-extensions has wheels for."""


def measure(program: str, layer: Path) -> Measurement:
    """Run `benchmarks.peers.PROGRAM` on a saved layer, with the peers' own Python.

    What it writes to its standard error is shown; CalledProcessError where it fails.
    """
    command = [str(_python()), "-m", f"benchmarks.peers.{program}", str(layer)]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True)
    return Measurement.from_json(done.stdout)


def _python() -> Path:
    """The environment's interpreter; the environment is made where it is missing or half made."""
    if sys.version_info[:2] > NEWEST_PYTHON:
        newest = ".".join(map(str, NEWEST_PYTHON))
        raise RuntimeError(f"The peers need Python 3.11 to {newest}; make .venv with `make PYTHON=python{newest}`.")
    folder = _folder()
    python, complete = folder / "bin" / "python", folder / "complete"
    if not complete.exists():
        print(f"Installing the peers into {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--only-binary", ":all:", *REQUIREMENTS], stdout=sys.stderr, check=True)
        complete.touch()
    return python


def _folder() -> Path:
    """One folder for each set of versions."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    versions = "_".join(requirement.replace("==", "-") for requirement in REQUIREMENTS)
    return cache / "confide-benchmarks" / f"python-{sys.version_info.major}.{sys.version_info.minor}_{versions}"

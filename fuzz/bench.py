"""What targets work on: the small model of the tests, and a folder that is gone when the process ends."""

import atexit
import functools
import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from hybrid.server.world import model, service, serving
from owners import OWNER

MEMORY = "/dev/shm"  # noqa: S108 - only folders that mkdtemp makes there

__all__ = [
    "OWNER",
    "memory",
    "model",
    "scratch",
    "service",
    "serving",
]


def memory() -> str | None:
    """Where temporary files wear out no disk, if there is such a place."""
    return MEMORY if "TMPDIR" not in os.environ and Path(MEMORY).is_dir() else None


@functools.cache
def _root() -> Path:
    root = Path(tempfile.mkdtemp(prefix="confide-fuzz-", dir=memory()))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


def scratch(name: str) -> Path:
    """An empty folder of this name."""
    folder = _root() / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder

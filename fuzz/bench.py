"""What targets work on: the small model of the tests, and a folder that is gone when the process ends."""

import atexit
import functools
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from hybrid.small import manifest_for, small_service, small_weights, write_packages
from hybrid.twin import TWIN, TwinClient
from owners import OWNER

__all__ = ["OWNER", "TWIN", "TwinClient", "manifest_for", "scratch", "small_service", "small_weights", "write_packages"]


@functools.cache
def _root() -> Path:
    memory = Path("/dev/shm")  # noqa: S108 - made by mkdtemp, and no disk is worn out
    root = Path(tempfile.mkdtemp(prefix="confide-fuzz-", dir=memory if memory.is_dir() else None))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


def scratch(name: str) -> Path:
    """An empty folder of this name."""
    folder = _root() / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder

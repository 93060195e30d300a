"""What targets work on: the small model of the tests, and a folder that is gone when the process ends."""

import atexit
import functools
import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from safetensors.torch import save_file

from confide.packages.manifest import MASK_TENSOR
from confide.packages.server_package import group_file
from confide.packages.signing import sign_package
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
    "write_packages",
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


def write_packages(folder: Path) -> tuple[Path, Path]:
    """The small model's client and server folders; the client's has no model in it, only the layer table."""
    made = model()
    client, server = folder / "client", folder / "server"
    client.mkdir(parents=True)
    server.mkdir()
    for index, (group, stored) in enumerate(zip(made.signed.manifest.groups, made.stored, strict=True)):
        tensors = {group.layers[0].name: stored.weights, MASK_TENSOR: stored.u}
        save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, group_file(server, index))
    sign_package(client, made.signed.manifest.for_shell(), OWNER)
    sign_package(server, made.signed.manifest, OWNER)
    return client, server

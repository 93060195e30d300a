"""What Ray reads from the environment when it is imported, and where the one is that was started here.

Ray's ports take programs from whoever reaches them. One that `confide cluster up` starts listens on the loopback alone,
and asks for a token, since others may have accounts on this machine.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from confide.disk.files import create_file, read_bounded, replace_file
from confide.disk.home import home, make_home

AUTO: Final = "auto"
"""For Ray: whichever runs on this machine."""
_ALONE: Final = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Of Ray's, named for systems where it is off by itself. Off, Ray listens on the loopback, and connects to no other."""
_LOOPBACK: Final = "127.0.0.1:"
_MAX_BYTES: Final = 64


def set_before_ray(address: str | None) -> None:
    """To be called before anything imports Ray. address: as `ray_cluster.connected` takes it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray would report itself to its makers
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")  # it would wait for a quarter of an hour
    if address is None or address == _started():
        os.environ.pop("RAY_AUTH_TOKEN", None)
        os.environ |= {_ALONE: "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(_token())}


def started_here() -> str:
    """The address of the one that `confide cluster up` started and that runs; AUTO where there is none."""
    return _started() or AUTO


def _started() -> str:
    try:
        said = read_bounded(_file(home()), _MAX_BYTES).decode()
    except (OSError, ValueError):
        return ""
    return said if said.startswith(_LOOPBACK) else ""


@contextmanager
def remembered(address: str) -> Iterator[None]:
    """For `started_here`, as long as this lasts."""
    path = _file(make_home())
    replace_file(path, address.encode(), mode=0o600)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _token() -> Path:
    """The file of the token, made where there is none."""
    path = make_home() / "cluster-token"
    with suppress(FileExistsError):
        create_file(path, secrets.token_hex(32).encode())
    return path


def _file(folder: Path) -> Path:
    return folder / "cluster-address"

"""Prepares the next pack while the present one is being spent, in a process of its own.

A process, and of the lowest priority, so that it takes what decoding leaves: in one process the two would wait for
each other. It works in the folder `ahead` of the pack folder, and what it has finished is moved over.
"""

import os
import subprocess
import sys
from threading import Thread

import msgspec

from confide.errors import PackInUse
from confide.hybrid.closing import Closing

_LOWEST_PRIORITY = 19


class RefillOrder(msgspec.Struct, frozen=True):
    """What the other process needs to prepare a pack; the fields are those of HybridClient."""

    folder: str
    server: str
    packs: str
    checks: str
    owner: str
    licence: str
    ca: str | None
    patience: float
    insecure_no_tls: bool

    def __repr__(self) -> str:
        return f"RefillOrder({self.folder!r}, {self.server!r}, <hidden>)"


class BackgroundRefill(Closing):
    """At most one process that prepares a pack. Interrupted, it goes on where it stopped the next time."""

    def __init__(self, order: RefillOrder) -> None:
        self._order = order
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether a pack is being prepared."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Begin with a pack unless one is being prepared."""
        if self.running:
            return
        process = subprocess.Popen(
            [sys.executable, "-m", "confide.hybrid.client.refill"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        # The licence key must not show in the list of processes. The pipe stays open: its end is how the other
        # process learns of this one's.
        assert process.stdin is not None  # noqa: S101 - it was asked for
        process.stdin.write(msgspec.json.encode(self._order) + b"\n")
        process.stdin.flush()
        self._process = process

    def wait(self) -> bool:
        """Wait for the pack; whether there is one now."""
        return self._process is not None and self._process.wait() == 0

    def finished(self) -> bool:
        """Whether a pack is newly ready; said once."""
        if self._process is None or self._process.poll() is None:
            return False
        done = self._process.returncode == 0
        self._process = None
        return done

    def close(self) -> None:
        """Stop; what was prepared is kept."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None


def main() -> None:
    """Prepare one pack for the order on standard input; exit when that ends before."""
    os.nice(_LOWEST_PRIORITY)
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=RefillOrder)
    Thread(target=_exit_with_parent, daemon=True).start()
    import torch

    from confide.hybrid.client.client import HybridClient

    torch.set_num_threads(1)
    try:
        client = HybridClient(
            order.folder,
            order.server,
            owner=order.owner,
            packs=order.packs,
            checks=order.checks,
            licence=order.licence,
            ca=order.ca,
            patience=order.patience,
            insecure_no_tls=order.insecure_no_tls,
        )
    except PackInUse:
        sys.exit(1)
    with client:
        client.prepare(1)


def _exit_with_parent() -> None:
    # Not through sys.stdin, whose lock would be held when this process ends by itself.
    while os.read(sys.stdin.fileno(), 1 << 10):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()

"""Ten minutes of clients that prepare, decode, break off, misbehave and come back: memory stays bounded."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from confide.errors import ConfideError
from confide.hybrid.client.client import HybridClient
from owners import OWNER

from .small import activations, exact, small_weights, write_packages

SECONDS = float(os.environ.get("CONFIDE_SOAK_SECONDS", "600"))
GROWTH = 64 << 20
"""Memory that a server may take on top of what it has after its first fifth of the time."""


@contextmanager
def server(package: Path) -> Iterator[tuple[str, int]]:
    """A server process: its address and process id."""
    command = [
        sys.executable,
        "-m",
        "confide",
        "serve",
        str(package),
        "--insecure-no-licences",
        "--port",
        "0",
        "--json",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield json.loads(process.stdout.readline())["url"], process.pid
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


def memory(process: int) -> int:
    """Resident bytes."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Work:
    """What the clients' threads do until they are told to stop."""

    def __init__(self, shell: Path, url: str) -> None:
        self.shell, self.url = shell, url
        self.stop = threading.Event()
        self.products = self.packs = 0
        self.wrong: list[str] = []

    def honest(self, folder: Path) -> None:
        """Open, multiply, close, and open again; masks run out and are prepared anew."""
        weights = small_weights()
        while not self.stop.is_set():
            with HybridClient(self.shell, self.url, owner=OWNER.public.raw, packs=folder) as client:
                product = client.product()
                for _ in range(random.randrange(200)):
                    for group, matrix in enumerate(weights):
                        x = activations(client.parameters[group], random.choice((1, 1, 1, 40)), random.getrandbits(40))
                        if not torch.equal(product(group, x), exact(matrix, x)):
                            self.wrong.append("a product was wrong")
                        self.products += 1
                product.close()

    def wasteful(self, folder: Path) -> None:
        """Prepare packs, and throw them away."""
        while not self.stop.is_set():
            with HybridClient(self.shell, self.url, owner=OWNER.public.raw, packs=folder) as client:
                client.prepare(1)
                self.packs += 1
            shutil.rmtree(folder)

    def rude(self) -> None:
        """Connect and send rubbish, half a greeting, or nothing."""
        host, _, port = self.url.removeprefix("ws://").partition(":")
        greeting = b"GET /v1/layers HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        complete = greeting + b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        while not self.stop.wait(0.02):
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(random.choice((b"", greeting, complete, complete + random.randbytes(5000))))

    def run(self, folder: Path) -> list[threading.Thread]:
        """Start everybody."""
        honest = [threading.Thread(target=self._guarded, args=(self.honest, folder / f"h{n}")) for n in range(4)]
        wasteful = [threading.Thread(target=self._guarded, args=(self.wasteful, folder / "w"))]
        threads = [*honest, *wasteful, threading.Thread(target=self._guarded, args=(self.rude,))]
        for thread in threads:
            thread.start()
        return threads

    def _guarded(self, work, *arguments) -> None:  # type: ignore[no-untyped-def]
        try:
            work(*arguments)
        except (ConfideError, OSError) as error:
            self.wrong.append(repr(error))


@pytest.mark.slow
def test_memory_is_bounded_and_nobody_is_let_down(tmp_path: Path) -> None:
    shell, package = write_packages(tmp_path / "packages")
    with server(package) as (url, process):
        work = Work(shell, url)
        threads = work.run(tmp_path)
        time.sleep(SECONDS / 5)
        settled = highest = memory(process)
        end = time.monotonic() + SECONDS * 4 / 5
        while time.monotonic() < end and not work.wrong:
            time.sleep(min(1.0, SECONDS / 50))
            highest = max(highest, memory(process))
        work.stop.set()
        for thread in threads:
            thread.join(60)
    assert work.wrong == []
    assert work.products > SECONDS
    assert work.packs > SECONDS / 60
    assert highest - settled < GROWTH, f"from {settled >> 20} to {highest >> 20} MiB"

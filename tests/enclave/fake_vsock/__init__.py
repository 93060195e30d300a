"""Virtual sockets for programs that are started with `environment`: Unix sockets in a folder, by the names of ports.

For machines whose kernel does not connect a virtual socket to itself. Everybody is CID 3. A filter of system calls that
refuses the kernel's own refuses these.
"""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def environment(folder: Path) -> dict[str, str]:
    """With which Python has such sockets. folder: with a short path."""
    own = str(Path(__file__).parent)
    return {"PYTHONPATH": f"{own}:{os.environ.get('PYTHONPATH', '')}", "FAKE_VSOCK": str(folder)}


@contextmanager
def relay(listener: socket.socket, to: tuple[int, str | tuple[str, int]]) -> Iterator[None]:
    """What a parent's relay does: each connection to the listener is carried on to another address. to: its family."""

    def carry(source: socket.socket, target: socket.socket) -> None:
        try:
            while part := source.recv(65536):
                target.sendall(part)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def serve() -> None:
        while True:
            try:
                here, _ = listener.accept()
            except OSError:
                return
            there = socket.socket(to[0])
            try:
                there.connect(to[1])
            except OSError:
                here.close()
                continue
            for pair in ((here, there), (there, here)):
                threading.Thread(target=carry, args=pair, daemon=True).start()

    with listener:
        threading.Thread(target=serve, daemon=True).start()
        yield
        listener.shutdown(socket.SHUT_RDWR)

"""A process of its own that opens connections to one address and nowhere else, and hands them over.

A process that has closed its own ways out (see `confide.enclave.egress`) keeps such a connector where it must still
reach something. It can tell it nothing: a request is one byte, and the address was given at its start.
"""

import ctypes
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

SECONDS: Final = 10.0
"""To connect within."""
_OPENED: Final = b"+"
_FAILED: Final = b"-"
_PR_SET_DUMPABLE: Final = 4
_PORTS: Final = {"http": 80, "https": 443}


class Connector:
    """Opens connections to one address. A context manager; safe for several threads."""

    def __init__(self, host: str | int, port: int) -> None:
        """host: a name or an address, reached by TCP; or a number of a machine's (CID), reached by virtual sockets."""
        self._here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._here.settimeout(2 * SECONDS)
        self._turn = threading.Lock()
        with there:
            # This very file, and nothing of the folder that we happen to be in.
            command = [sys.executable, "-P", str(Path(__file__).resolve()), str(there.fileno())]
            command += ["tcp" if isinstance(host, str) else "vsock", str(host), str(port)]
            self._process = subprocess.Popen(  # noqa: S603 - our own file
                command, pass_fds=[there.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
            )

    @classmethod
    def to(cls, url: str, through: tuple[int, int] | None = None) -> Self:
        """To where a URL leads. through: instead, to this CID and port of virtual sockets, which lead there."""
        if through is not None:
            return cls(*through)
        parts = urlsplit(url)
        return cls(parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 0))

    def connect(self) -> socket.socket:
        """A new connection. ConnectionError where there is none to be had."""
        with self._turn:
            try:
                self._here.send(_OPENED)
                answer, descriptors, _, _ = socket.recv_fds(self._here, 1, 1)
            except OSError as error:
                raise ConnectionError("the connector is gone") from error
        if answer != _OPENED or not descriptors:
            raise ConnectionError("nobody takes a connection there")
        return socket.socket(fileno=descriptors[0])

    def close(self) -> None:
        """End the process: from now on there are no new connections."""
        self._here.close()
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _opened(way: str, host: str, port: int) -> socket.socket:
    if way == "tcp":
        return socket.create_connection((host, port), SECONDS)
    opened = socket.socket(socket.AF_VSOCK)
    try:
        opened.settimeout(SECONDS)
        opened.connect((int(host), port))
    except OSError:
        opened.close()
        raise
    return opened


def _serve(asked: socket.socket, way: str, host: str, port: int) -> None:
    """Until the other end is closed. What comes is counted and not read."""
    # No other process of this user may look into this one, or write to it.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    while asked.recv(1):
        try:
            with _opened(way, host, port) as opened:
                opened.setblocking(True)
                socket.send_fds(asked, [_OPENED], [opened.fileno()])
        except OSError:
            asked.send(_FAILED)


if __name__ == "__main__":
    os.chdir("/")
    _serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2], sys.argv[3], int(sys.argv[4]))

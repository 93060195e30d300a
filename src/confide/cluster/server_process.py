"""One process of `confide serve`, as whoever starts and watches it sees it."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import httpx

from confide.errors import ConfideError, MachineError
from confide.net.metrics import read_server
from confide.printable import printable

_SECONDS: Final = 10.0
_STOP_SECONDS: Final = 45.0
"""For answers in progress to end; the server takes half a minute."""
_LOADS: Final = ("confide_requests_waiting", "confide_connections")
_MAX_LINE: Final = 1 << 20
_PR_SET_PDEATHSIG: Final = 1
_LAUNCH: Final = (
    f"import ctypes, os, sys; ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, {int(signal.SIGTERM)}); "
    "os.execv(sys.executable, [sys.executable, '-P', '-m', 'confide', 'serve', *sys.argv[1:]])"
)
"""It ends with whoever started it, however that ends."""


class ServerProcess:
    """A server that runs, or ran. To be stopped.

    url: where it is, by `address` where it listens on all of the machine's. Once it has ended it is not started again:
    whoever watches makes another.
    """

    def __init__(self, arguments: Sequence[str], *, address: str = "127.0.0.1", seconds: float = 600.0) -> None:
        """arguments: of `confide serve`. seconds: to start in. MachineError where it does not."""
        self._metrics = f"http://127.0.0.1:{(port := _free_port())}"
        command = [
            sys.executable,
            "-P",
            "-c",
            _LAUNCH,
            *arguments,
            "--port",
            "0",
            "--metrics-port",
            str(port),
            "--json",
        ]
        self._process = subprocess.Popen(  # noqa: S603 - our own command, as the operator wrote it down
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
        )
        self._http = httpx.Client(timeout=_SECONDS, trust_env=False)
        try:
            self.url = _at(self._announced(seconds), address)
        except BaseException:
            self.stop()
            raise

    def _announced(self, seconds: float) -> str:
        """The address in the first line that it prints."""
        lines: list[bytes] = []
        assert self._process.stdout is not None  # noqa: S101 - for the type
        reading = threading.Thread(
            target=lambda stream: lines.append(stream.readline(_MAX_LINE)), args=(self._process.stdout,), daemon=True
        )
        reading.start()
        reading.join(seconds)
        try:
            said = json.loads(lines[0]) if lines else None
        except (ValueError, RecursionError):
            said = None
        url = said.get("url") if isinstance(said, dict) else None
        if isinstance(url, str):
            return url
        error = said.get("error") if isinstance(said, dict) else None
        reason = str(error.get("message")) if isinstance(error, dict) else f"it said nothing within {seconds:g} s"
        raise MachineError(f"`confide serve` does not start: {printable(reason)[:500]}")

    @property
    def pid(self) -> int:
        """Its number on this machine."""
        return self._process.pid

    def load(self) -> float:
        """How much is in line, or of a layer server how many are connected. ConfideError where it does not say."""
        reading = read_server(self._http, self._metrics)
        if isinstance(reading, ConfideError):
            raise reading
        return max(reading.total(name) for name in _LOADS)

    def require_healthy(self) -> None:
        """MachineError unless it runs and says that it answers."""
        code = self._process.poll()
        if code is not None:
            raise MachineError(f"The server at {self.url} ended with {code}; its log says why.")
        reading = read_server(self._http, self._metrics)
        if isinstance(reading, ConfideError) or reading.health != "ok":
            said = reading.code if isinstance(reading, ConfideError) else reading.health
            raise MachineError(f"The server at {self.url} is not well: {said}.")

    def stop(self) -> None:
        """Have it end its answers and itself."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._http.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _at(url: str, address: str) -> str:
    """The same URL by an address that others can use, where it names all of the machine's."""
    parts = urlsplit(url)
    if parts.hostname not in ("0.0.0.0", "::"):  # noqa: S104 - as it was chosen
        return url
    host = f"[{address}]" if ":" in address else address
    return urlunsplit(parts._replace(netloc=f"{host}:{parts.port}"))

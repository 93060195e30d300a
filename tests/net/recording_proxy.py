"""A proxy that somebody put into the environment: it answers nothing, and notes who asked."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


@contextmanager
def proxy_in_environment(patch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """The first bytes of each connection that went to the proxy named in every variable that names one."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(5)
                    asked.append(connection.recv(200))
                    connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        for name in VARIABLES:
            patch.setenv(name, address)
        for name in ("NO_PROXY", "no_proxy"):
            patch.delenv(name, raising=False)
        try:
            yield asked
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)

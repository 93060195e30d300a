"""A proxy on this machine, in a thread of the test's process."""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import httpx
import uvicorn

from confide.proxy.app import ProxyApp
from confide.proxy.backend import Backend
from confide.proxy.guard import Guard, hosts_of
from confide.proxy.page.page import is_file

STOP = "stop-token"
PAGE = "page-token"


@contextmanager
def proxied(make: Callable[[], Sequence[Backend]], keys: Sequence[str] = (), port: int = 0) -> Iterator[str]:
    """The proxy's address, at once: its backends may still be verified. make: called in the test's own thread.

    port: a free one without.
    """
    listener = socket.create_server(("127.0.0.1", port))
    port = listener.getsockname()[1]
    server: uvicorn.Server
    app = ProxyApp(make(), STOP, lambda: setattr(server, "should_exit", True))
    hosts = hosts_of("127.0.0.1", port)
    guarded = Guard(app.asgi(), hosts, keys, secure=False, page=PAGE, open_to=is_file)
    server = uvicorn.Server(uvicorn.Config(guarded, log_config=None, access_log=False, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


def settled(url: str, state: str) -> None:
    """Wait until the first backend is in a state."""
    _until(url, lambda states: states[0] == state)


def all_ready(url: str) -> None:
    """Wait until every backend is."""
    _until(url, lambda states: set(states) == {"ready"})


def _until(url: str, holds: Callable[[list[str]], bool]) -> None:
    until = time.monotonic() + 60
    while not holds(found := [one["state"] for one in httpx.get(f"{url}/health", trust_env=False).json()["backends"]]):
        assert time.monotonic() < until, found
        time.sleep(0.02)

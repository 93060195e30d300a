"""The server behind virtual sockets. This machine may have no way to connect to its own, so a socket stands for one.

It is a Unix socket that calls itself and who connects to it by numbers, as the kernel's virtual sockets do.
"""

import asyncio
import itertools
import socket
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from confide.enclave.api import server as server_module
from confide.enclave.api.server import serve_app
from confide.net.body import origin_of
from confide.net.tls import client_context, make_certificates, server_context

from ..serving import InThread, eventually

PARENT = 3


class VirtualSocket(socket.socket):
    """ports: of those who connect, in turn."""

    def __init__(self, path: Path) -> None:
        super().__init__(socket.AF_UNIX)
        self.bind(str(path))
        self.ports = itertools.count(40001)

    def getsockname(self) -> tuple[int, int]:
        return socket.VMADDR_CID_ANY, 8470

    def accept(self) -> tuple[socket.socket, tuple[int, int]]:
        client, _ = super().accept()
        return client, (PARENT, next(self.ports))


async def who(request: Request) -> JSONResponse:
    """Whom the question counts for, and in which loop it is answered."""
    return JSONResponse([origin_of(request), type(asyncio.get_running_loop()).__module__])


@pytest.fixture
def listening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The path of a server with TLS, at its end of which is this machine."""
    servers: list[InThread] = []

    def started(*arguments: object) -> InThread:
        servers.append(InThread(*arguments))  # type: ignore[arg-type]
        return servers[0]

    monkeypatch.setattr(server_module, "Server", started)
    _, certificate, key = make_certificates(["confide.example"]).write(tmp_path / "tls")
    tls = server_context(certificate, key)
    urls: list[str] = []
    app, bound = Starlette(routes=[Route("/", who)]), VirtualSocket(tmp_path / "socket")
    thread = Thread(target=lambda: serve_app(app, bound, tls, urls.append), daemon=True)
    thread.start()
    eventually(lambda: urls)
    assert urls == ["https://vsock:8470"]
    yield tmp_path
    servers[0].should_exit = True
    thread.join(60)
    assert not thread.is_alive()


def test_it_is_answered_through_them_and_each_connection_counts_for_itself(listening: Path) -> None:
    tls = client_context(listening / "tls/ca.pem")
    counted = []
    for _ in range(2):
        transport = httpx.HTTPTransport(uds=str(listening / "socket"), verify=tls)
        with httpx.Client(transport=transport) as client:
            answers = [client.get("https://confide.example/").json() for _ in range(2)]
        assert answers[0] == answers[1]
        counted.append(answers[0])
    assert [one for one, _ in counted] == ["vsock:3 40001", "vsock:3 40002"]
    assert {loop for _, loop in counted} == {"asyncio.unix_events"}

"""Whoever is silent, slow or too many keeps nobody else out."""

import contextlib
import json
import os
import resource
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from confide.enclave.api import server as server_module
from confide.enclave.api.answer import Serving
from confide.enclave.api.app import api_app
from confide.enclave.api.limits import Limits
from confide.enclave.api.server import Patient
from confide.net.connections import RESERVE, Connection, Connections, room_for
from confide.net.tls import client_context, make_certificates, server_context

from ..fake_engine import FakeEngine
from ..serving import eventually, serving

HEAD = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"


@contextlib.contextmanager
def connected(url: str, number: int) -> Iterator[list[socket.socket]]:
    """So many open connections of ours."""
    port = int(url.rsplit(":", 1)[1])
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(number)]


def closed(connection: socket.socket) -> bool:
    """Whether the other side has closed it."""
    connection.settimeout(0.01)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def answers(url: str, **more: object) -> bool:
    """Whether a question is answered, soon."""
    with httpx.Client(timeout=5, **more) as client:  # type: ignore[arg-type]
        return client.get(f"{url}/health").is_success and client.post(f"{url}/generate", json={"query": "a"}).is_success


def test_silent_connections_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(api_app(Serving(FakeEngine())), connections=50) as url, connected(url, 120) as silent:
        started = time.monotonic()
        assert all(answers(url) for _ in range(3))
        assert time.monotonic() - started < 5
        eventually(lambda: sum(map(closed, silent)) >= 70)


def test_a_thousand_silent_connections_keep_nobody_out() -> None:
    with serving(api_app(Serving(FakeEngine())), connections=700) as url, connected(url, 1100):
        assert answers(url)


def test_the_one_that_is_being_answered_is_not_closed() -> None:
    engine = FakeEngine(pause=0.1)
    with serving(api_app(Serving(engine)), connections=10) as url:
        with httpx.stream("POST", f"{url}/chat", json={"prompt": "b25lIHR3byB0aHJlZSBmb3VyIGZpdmUgc2l4"}) as answer:
            lines = answer.iter_lines()
            next(lines)
            with connected(url, 40):
                text = "".join(json.loads(line[6:]) for line in lines if line.startswith('data: "'))
    assert text.endswith("four five six")


def test_silence_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Patient, "head_seconds", 0.4)
    monkeypatch.setattr(server_module, "KEEP_ALIVE_SECONDS", 0)
    with serving(api_app(Serving(FakeEngine()))) as url, connected(url, 3) as (silent, half, answered):
        started = time.monotonic()
        half.sendall(b"GET /health HTTP/1.1\r\n")
        answered.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" in answered.recv(4096)
        while not (closed(silent) and closed(half)):
            assert time.monotonic() - started < 5
            with contextlib.suppress(OSError):
                half.send(b"x")  # a byte now and then is no patience
        assert time.monotonic() - started > 0.3
        eventually(lambda: closed(answered), 5)


def test_a_body_that_stays_away_takes_no_place() -> None:
    engine = FakeEngine(parallel=2)
    limits = Limits(body_seconds=1.0, waiting=1)
    with serving(api_app(Serving(engine, limits=limits))) as url, connected(url, 30) as slow:
        for connection in slow:
            connection.sendall(HEAD)
        time.sleep(0.2)
        assert all(answers(url) for _ in range(5))
        eventually(lambda: all(b"408" in connection.recv(4096) for connection in slow), 10)


def test_a_client_that_takes_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Patient, "write_seconds", 0.3)

    async def large(scope: object, receive: Callable[[], object], send: Callable[[object], object]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})  # type: ignore[misc]
        await send({"type": "http.response.body", "body": bytes(32 << 20)})  # type: ignore[misc]

    app = api_app(Serving(FakeEngine()))
    app.mount("/large", large)  # type: ignore[arg-type]
    with serving(app) as url, connected(url, 1) as (idle,):
        idle.sendall(b"GET /large/x HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(1.5)
        received = 0
        with contextlib.suppress(ConnectionError):
            while part := idle.recv(1 << 20):
                received += len(part)
        assert 1 << 16 < received < 32 << 20


def test_tls_that_never_begins_gives_way_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ca, certificate, key = make_certificates([]).write(tmp_path)
    with serving(api_app(Serving(FakeEngine())), server_context(certificate, key), connections=20) as url:
        with connected(url, 60) as silent:
            assert answers(url, verify=client_context(ca))
            eventually(lambda: sum(map(closed, silent)) >= 40)


def test_tls_has_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "HEADER_SECONDS", 0.5)
    ca, certificate, key = make_certificates([]).write(tmp_path)
    with serving(api_app(Serving(FakeEngine())), server_context(certificate, key)) as url:
        with connected(url, 1) as (silent,):
            eventually(lambda: closed(silent), 5)
        port = int(url.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port)) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
            eventually(lambda: closed(plain), 5)
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            answers(url)
        assert answers(url, verify=client_context(ca))


def enter(connections: Connections, address: str, gone: list[str], name: str = "") -> Connection | None:
    return connections.enter(address, 1, lambda: gone.append(name or address))


def test_one_address_cannot_take_all() -> None:
    connections, gone = Connections(20), list[str]()
    busy = [enter(connections, "192.0.2.1", gone) for _ in range(30)]
    for connection in filter(None, busy):
        connection.speak()
    assert len(connections.open) == 10
    assert len(gone) == 20  # its own silent ones made way
    assert enter(connections, "192.0.2.1", gone) is None
    for number in range(3):
        assert enter(connections, f"198.51.100.{number}", gone)
    assert len(gone) == 20


def test_whoever_has_most_loses_first_and_the_oldest_of_theirs() -> None:
    connections, gone = Connections(6), list[str]()
    for name in ("one", "two", "three"):
        assert enter(connections, "192.0.2.1", gone, name)
    for number in range(3):
        assert enter(connections, f"198.51.100.{number}", gone)
    assert enter(connections, "203.0.113.1", gone)
    assert gone == ["one"]


def test_an_ipv6_network_is_one_address() -> None:
    connections, gone = Connections(20), list[str]()
    for number in range(40):
        connection = enter(connections, f"2001:db8::{number + 1:x}", gone)
        if connection:
            connection.speak()
    assert len(connections.open) == 10


def test_descriptors_are_kept_in_reserve() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + RESERVE + 30, hard))
    try:
        assert room_for(5) == 5
        assert room_for(200) >= 200  # the process raises its own limit
        assert room_for(hard + 1000) <= hard - RESERVE
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_connections_without_room_are_closed_and_others_come(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = []
    accept = Connections.enter

    def enter_or_fail(self: Connections, *more: object) -> Connection | None:
        if len(refused) < 3:
            refused.append(more)
            return None
        return accept(self, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(Connections, "enter", enter_or_fail)
    with serving(api_app(Serving(FakeEngine()))) as url:
        for _ in range(3):
            with pytest.raises(httpx.TransportError):
                httpx.get(f"{url}/health")
        assert answers(url)


def test_bodies_on_their_way_are_bounded_together() -> None:
    limits = Limits(body_bytes=1 << 20, bodies_bytes=2 << 20, body_seconds=20)
    part = HEAD.replace(b": 100", b": 1000000") + bytes(600_000)
    with serving(api_app(Serving(FakeEngine(), limits=limits))) as url, connected(url, 3) as slow:
        for connection in slow:
            connection.sendall(part)
            time.sleep(0.2)
        (answered,), _, _ = select.select(slow, [], [], 60)
        assert answered.recv(4096).split()[1] == b"429"
        assert select.select([one for one in slow if one is not answered], [], [], 0.5)[0] == []
        assert answers(url)

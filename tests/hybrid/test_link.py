"""Connections that break: what was begun is finished, exactly, with the same bytes, or ends in one clear error."""

import math
import os
import random
import signal
import socket
import threading
import time
from collections import Counter, defaultdict
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import torch

from confide import errors
from confide.hybrid import wire
from confide.hybrid.client import connection as connection_module
from confide.hybrid.client import link as link_module
from confide.hybrid.client.client import HybridClient
from confide.hybrid.client.connection import LayerConnection
from confide.hybrid.client.link import Link
from confide.hybrid.client.product import RemoteProduct
from confide.hybrid.server.service import LayerService

from .flaky import flaky_road, no_limit
from .small import activations, connect, exact, running, small_service, small_weights, twin_client
from .test_kill import Log
from .test_prepare import check_products

Server = tuple[str, LayerService]


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "LONGEST_WAIT", 0.05)


class Sent:
    """Every frame that was sent for a mask index or an offline row, and how often."""

    def __init__(self) -> None:
        self.frames: dict[tuple[object, ...], Counter[bytes]] = defaultdict(Counter)
        self._begun: wire.OfflineBegin | None = None

    def add(self, message: wire.FromClient) -> None:
        match message:
            case wire.OfflineBegin():
                self._begun = message
                key: tuple[object, ...] = (message.pack, message.group, "begin")
            case wire.OfflineRows() if self._begun:
                key = (self._begun.pack, self._begun.group, "row", message.first_row)
            case wire.Online():
                key = (message.pack, message.group, "token", message.first)
            case _:
                return
        self.frames[key][wire.encode(message)] += 1

    @property
    def repeats(self) -> int:
        return sum(count.total() - 1 for count in self.frames.values())

    def require_identical(self) -> None:
        assert all(len(count) == 1 for count in self.frames.values()), "one place was sent two different frames"


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    log = Sent()
    real = LayerConnection.send

    def send(self: LayerConnection, message: wire.FromClient) -> None:
        log.add(message)
        real(self, message)

    monkeypatch.setattr(LayerConnection, "send", send)
    return log


# -- breaks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_preparing_on_a_bad_road_goes_on_with_identical_bytes(
    shell: Path, server: Server, sent: Sent, seed: int
) -> None:
    generator = random.Random(seed)
    # One group's request and its answer are about half a megabyte each.
    limits = iter([(math.inf, math.inf), (generator.uniform(0, 4e5), math.inf), (math.inf, generator.uniform(0, 4e5))])

    def allowance() -> tuple[float, float]:
        return next(limits, (generator.uniform(0, 3e6), generator.uniform(0, 3e6)))

    with flaky_road(server[0], allowance) as road, twin_client(shell, road.url) as client:
        (pack,) = client.prepare(1)
        assert client.tokens_left == 4096
    assert sent.repeats
    sent.require_identical()
    assert {key[0] for key in sent.frames} == {pack.id}, "a second pack was begun"
    with twin_client(shell, server[0]) as client:
        check_products(client)


@pytest.mark.parametrize("seed", range(4))
def test_products_on_a_bad_road_are_exact_and_use_each_mask_once(
    shell: Path, tmp_path: Path, sent: Sent, seed: int
) -> None:
    generator = random.Random(seed)
    log = Log()
    with running(small_service(tmp_path / "state", observer=log)) as url:
        with twin_client(shell, url) as client:
            client.prepare(1)
        road = flaky_road(url, lambda: (generator.uniform(300, 3000), generator.uniform(300, 3000)))
        with road as bad, ExitStack() as stack:
            client, product = _opened(shell, bad.url)
            stack.enter_context(client)
            for step in range(40):
                group = step % 2
                x = activations(client.parameters[group], 1 + step % 5, seed=step)
                assert torch.equal(product(group, x), exact(small_weights()[group], x))
            assert product.traffic.round_trips == 40
            product.close()
    assert sent.repeats
    sent.require_identical()
    assert log.keys_with_two_values() == []


def _opened(shell: Path, url: str) -> tuple[HybridClient, RemoteProduct]:
    """First contacts are not repeated by themselves, so a bad road needs a few."""
    for _ in range(50):
        with ExitStack() as stack, suppress(errors.ConnectionLost):
            client = stack.enter_context(twin_client(shell, url))
            product = client.product()
            stack.pop_all()
            return client, product
    raise AssertionError("the road is too bad for this test")


MOMENTS = {"before the request": (0, 0), "inside the request": (20, 0), "before the answer": (0, 1), "in it": (0, 20)}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_break_at_any_moment_of_a_product(shell: Path, server: Server, sent: Sent, moment: str) -> None:
    url, service = server
    with twin_client(shell, url) as client:
        client.prepare(1)
    with flaky_road(url) as road, connect(road.url, service):
        greeting_up, greeting_down = road.carried
    up, down = MOMENTS[moment]
    cut = (math.inf, greeting_down + down - 1) if down else (greeting_up + up, math.inf)
    limits = iter([no_limit(), no_limit(), cut])  # the first two are spent on opening the client
    with flaky_road(url, lambda: next(limits, no_limit())) as road, twin_client(shell, road.url) as client:
        product = client.product()
        x = activations(client.parameters[0], 3)
        assert torch.equal(product(0, x), exact(small_weights()[0], x))
        product.close()
    assert sent.repeats == 1
    sent.require_identical()


def test_a_server_that_restarts_during_a_generation(
    shell: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, sent: Sent
) -> None:
    def start(port: int = 0) -> str:
        return servers.enter_context(running(small_service(tmp_path / "state"), port=port))

    with ExitStack() as servers:
        url = start()
        port = int(url.rpartition(":")[2])
        with twin_client(shell, url) as client:
            client.prepare(1)
            product = client.product()
            for step in range(3):
                x = activations(client.parameters[0], 2, seed=step)
                assert torch.equal(product(0, x), exact(small_weights()[0], x))
                servers.close()
                restart = threading.Timer(0.2, start, [port])
                restart.start()
                assert torch.equal(product(0, x), exact(small_weights()[0], x))
                restart.join()
            product.close()
    sent.require_identical()
    assert [record.message.split(" (")[0] for record in caplog.records if record.name == link_module.__name__] == [
        "The layer server is away",
        "The layer server answers again.",
    ] * 3


# -- ends ------------------------------------------------------------------------------------------------------


def test_another_server_at_the_address_ends_it(shell: Path, tmp_path: Path, sent: Sent) -> None:
    with ExitStack() as servers:
        url = servers.enter_context(running(small_service(tmp_path / "state")))
        with twin_client(shell, url) as client:
            client.prepare(1)
            product = client.product()
            servers.close()
            servers.enter_context(running(small_service(tmp_path / "other"), port=int(url.rpartition(":")[2])))
            with pytest.raises(errors.ServerChanged, match="open the client again"):
                product(0, activations(client.parameters[0], 1))
    assert not any("token" in key for key in sent.frames), "something was sent to the other server"


def test_patience_ends(shell: Path, tmp_path: Path) -> None:
    with ExitStack() as servers:
        url = servers.enter_context(running(small_service(tmp_path / "state")))
        with twin_client(shell, url, patience=0.3) as client:
            client.prepare(1)
            product = client.product()
            servers.close()
            for exchange in (lambda: product(0, activations(client.parameters[0], 1)), client.prepare):
                started = time.monotonic()
                with pytest.raises(errors.ConnectionLost, match=url):
                    exchange()
                assert 0.25 < time.monotonic() - started < 2


def test_no_patience_is_no_second_attempt() -> None:
    attempts = []

    def connect_in_vain() -> LayerConnection:
        attempts.append(1)
        raise errors.ConnectionLost("Gone.")

    with Link(connect_in_vain, patience=0) as link, pytest.raises(errors.ConnectionLost):
        link.run(lambda _: None)
    assert len(attempts) == 1


def test_the_first_contact_fails_at_once(shell: Path) -> None:
    started = time.monotonic()
    with pytest.raises(errors.ConnectionLost, match="confide serve"):
        twin_client(shell, "ws://127.0.0.1:9")
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("phase", ["handshake", "answer"])
def test_a_server_that_never_answers(service: LayerService, monkeypatch: pytest.MonkeyPatch, phase: str) -> None:
    monkeypatch.setattr(connection_module, "CONNECT_SECONDS", 0.2)
    started = time.monotonic()
    with ExitStack() as stack:
        if phase == "handshake":
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            url = f"ws://127.0.0.1:{listener.getsockname()[1]}"
        else:
            monkeypatch.setattr(service, "pack_state", lambda account, message: time.sleep(1))
            url = stack.enter_context(running(service))
        with Link(lambda: connect(url, service, silence=0.2), patience=0.5) as link:
            with pytest.raises(errors.ServerSilent, match=url):
                link.run(lambda connection: connection.request(wire.OpenPack(b"p" * 16), wire.PackState))
        assert time.monotonic() - started < 3


def test_protocol_errors_are_not_repeated(server: Server) -> None:
    attempts = []

    def ask(connection: LayerConnection) -> None:
        attempts.append(connection)
        connection.request(wire.Online(b"x" * 16, 0, 0, 1, memoryview(bytes(32))), wire.Answer)

    with Link(lambda: connect(*server)) as link:
        with pytest.raises(errors.UnknownPack):
            link.run(ask)
        assert len(attempts) == 1


def test_a_busy_server_is_asked_again() -> None:
    class Busy(LayerConnection):
        def __init__(self) -> None:
            pass

        def close(self) -> None:
            closed.append(self)

    closed: list[LayerConnection] = []
    answers = iter([errors.ServerBusy("Full."), errors.ServerBusy("Full."), None])

    def exchange(_: LayerConnection) -> str:
        if error := next(answers):
            raise error
        return "done"

    link = Link(Busy)
    assert link.run(exchange) == "done"
    assert len(closed) == 2


def test_an_abandoned_answer_is_not_taken_for_the_next(server: Server) -> None:
    """An interrupt between request and answer leaves the answer on its way."""
    states = []

    def interrupted(connection: LayerConnection) -> None:
        connection.send(wire.OpenPack(b"a" * 16))
        raise KeyboardInterrupt

    with Link(lambda: connect(*server)) as link:
        with pytest.raises(KeyboardInterrupt):
            link.run(interrupted)
        states.append(link.run(lambda connection: connection.request(wire.OpenPack(b"b" * 16), wire.PackState)))
    assert states[0].pack == b"b" * 16


def test_an_interrupt_ends_the_waiting_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "LONGEST_WAIT", 30)

    def connect_in_vain() -> LayerConnection:
        raise errors.ConnectionLost("Gone.")

    interrupt = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    interrupt.start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        Link(connect_in_vain).run(lambda _: None)
    assert time.monotonic() - started < 2
    interrupt.join()


def test_waits_grow_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "LONGEST_WAIT", 2.0)
    waits = link_module._longest_waits()
    assert [next(waits) for _ in range(8)] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]

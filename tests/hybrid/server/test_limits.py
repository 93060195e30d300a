"""What one client may take from the others: a place, bytes and time within limits, and never their answers."""

import asyncio
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as plain_connect

from confide import errors
from confide.hybrid import wire
from confide.hybrid.client.address import websocket_url
from confide.hybrid.server import batch as batch_module
from confide.hybrid.server import server as server_module
from confide.hybrid.server.batch import Batcher
from confide.hybrid.server.ledger import Ledger
from confide.hybrid.server.limits import ByteMeter, Limits
from confide.hybrid.server.service import Admitted, LayerService, Session

from .small import Served, activations, connect, exact, online, serving, small_service, small_weights, twin_client
from .test_prepare import offline_request

PACK = b"p" * 16
COLUMNS = 8


@pytest.fixture(autouse=True)
def _quick_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "SWEEP_SECONDS", 0.05)


def hello(service: LayerService, licence: str = "") -> wire.Hello:
    return wire.Hello(wire.PROTOCOL_VERSION, service.scheme.name, service.model_digest, service.table_digest, licence)


def prepare(service: LayerService, licence: str = "") -> None:
    """One pack's first layer group, for a licence or for anyone."""
    begin, rows = offline_request(service)
    session = Session(service)
    session.handle(hello(service, licence))
    request = session.begin_offline(begin)
    request.add_rows(rows)
    list(request.answer())


def question(first: int, count: int = 1) -> wire.Online:
    return online(PACK, 0, first, count, bytes(4 * COLUMNS * count))


def eventually(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def value(served: Served, name: str) -> float:
    return served.server.metrics.registry.get_sample_value(name) or 0.0


def get(url: str, path: str) -> tuple[int, str]:
    host, _, port = url.rpartition("/")[2].partition(":")
    client = http.client.HTTPConnection(host, int(port), timeout=10)
    client.request("GET", path)
    reply = client.getresponse()
    return reply.status, reply.read().decode()


# -- places ----------------------------------------------------------------------------------------------------


def test_one_connection_too_many_is_told_that_the_server_is_busy(service: LayerService) -> None:
    with serving(service, Limits(connections=2)) as served, connect(served.url, service) as first:
        second = connect(served.url, service)
        for _ in range(3):
            with pytest.raises(errors.ServerBusy, match="try again"):
                connect(served.url, service)
        second.close()
        eventually(lambda: sum(not one._parted for one in served.server.conversations) == 1)
        # Those that were refused may still be reading why; they take nobody's place.
        connect(served.url, service).close()
        assert first.request(wire.OpenPack(PACK), wire.PackState).groups == 0
    assert value(served, "confide_connections") == 0


def test_a_licence_has_its_own_number_of_connections(tmp_path: Path) -> None:
    service = small_service(tmp_path / "state", insecure_no_licences=False)
    keys = [service.ledger.licences.create(name)[1] for name in "ab"]
    with serving(service, Limits(connections_per_licence=2)) as served, ExitStack() as stack:
        for key in keys:
            for _ in range(2):
                stack.enter_context(connect(served.url, service, licence=key))
            with pytest.raises(errors.ServerBusy, match="licence"):
                connect(served.url, service, licence=key)
        with pytest.raises(errors.LicenceRefused):
            connect(served.url, service)
        stack.pop_all().close()
        eventually(lambda: not served.server.conversations)
        connect(served.url, service, licence=keys[0]).close()


# -- silence ---------------------------------------------------------------------------------------------------


def closed(client: ClientConnection) -> wire.FromServer:
    """What the server said before it hung up."""
    said = wire.decode_from_server(client.recv(timeout=10))
    with pytest.raises(ConnectionClosed):
        client.recv(timeout=10)
    return said


@pytest.mark.parametrize("habit", ["nothing", "pings", "requests"])
def test_a_client_that_never_greets_is_let_go(service: LayerService, habit: str) -> None:
    with serving(service, Limits(greeting_seconds=0.4)) as served, plain_connect(websocket_url(served.url)) as client:
        started = time.monotonic()
        with pytest.raises(ConnectionClosed):  # noqa: PT012 - a conversation
            while time.monotonic() < started + 10:
                if habit == "pings":
                    client.ping()
                elif habit == "requests":
                    client.send(wire.encode(wire.OpenPack(PACK)))
                with suppress(TimeoutError):
                    client.recv(timeout=0.05)
        assert time.monotonic() - started < 5
        eventually(lambda: not served.server.conversations)


def test_a_client_that_never_asks_for_a_websocket_is_let_go(service: LayerService) -> None:
    with serving(service, Limits(greeting_seconds=0.3)) as served:
        host, port = served.url.removeprefix("ws://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as client:
            client.sendall(b"GET /v1/layers HTTP/1.1\r\n")
            assert client.recv(1) == b""


def test_an_idle_client_is_told_and_let_go_and_a_lively_one_is_not(service: LayerService) -> None:
    with serving(service, Limits(idle_seconds=0.5)) as served, connect(served.url, service) as lively:
        with connect(served.url, service) as idle:
            for _ in range(12):
                lively.request(wire.OpenPack(PACK), wire.PackState)
                time.sleep(0.1)
            with pytest.raises(errors.ProtocolError, match="silent"):
                idle.receive(wire.Answer)
        lively.request(wire.OpenPack(PACK), wire.PackState)


def test_a_client_that_stops_within_an_offline_request_frees_its_place(service: LayerService) -> None:
    begin, _ = offline_request(service)
    limits = Limits(rows_seconds=0.3, offline_requests=1)
    with serving(service, limits) as served, connect(served.url, service) as stuck:
        stuck.send(begin)
        with pytest.raises(errors.ProtocolError, match="silent"):
            stuck.receive(wire.OfflineBlock)
        assert not served.server.offline_slots.locked()


def test_a_client_that_does_not_read_its_answers_costs_little_and_is_dropped(service: LayerService) -> None:
    prepare(service)
    frame = wire.encode(question(0, 4000))
    with serving(service, Limits(write_seconds=0.5)) as served, connect(served.url, service) as client:
        client._socket.settimeout(0.1)
        sent = 0
        sizes: list[int] = []
        (conversation,) = served.server.conversations
        transport = cast("Any", conversation._transport).underlying_transport
        started = time.monotonic()
        while served.server.conversations and time.monotonic() < started + 20:
            served.server.batcher._loop.call_soon_threadsafe(lambda: sizes.append(transport.get_write_buffer_size()))
            try:
                client._protocol.send_binary(frame)
                client._flush()
                sent += len(frame)
            except errors.ServerSilent:  # a full socket, which is what should happen
                continue
            except errors.ConnectionLost:
                break
        eventually(lambda: not served.server.conversations)
        assert 0 < max(sizes) < 5 * wire.MAX_OWED  # with answers to what was read before reading stopped
        with connect(served.url, service) as other:
            other.request(question(0, 4000), wire.Answer)
    assert sent < 64 << 20


# -- bytes -----------------------------------------------------------------------------------------------------


def test_a_byte_meter_lets_one_second_pass_and_then_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    meter = ByteMeter(1000)
    assert meter.pause(1000) == 0
    assert meter.pause(500) == pytest.approx(0.5)
    now += 0.5
    assert meter.pause(0) == pytest.approx(0)
    assert meter.pause(250) == pytest.approx(0.25)
    now += 1000
    assert meter.pause(1000) == 0  # what was not used does not add up
    assert meter.pause(1) > 0


@pytest.mark.parametrize("rows", [8, 100])
def test_bytes_per_second_hold_for_small_and_large_messages(service: LayerService, rows: int) -> None:
    prepare(service)
    rate = 300_000  # more than one read takes
    frame = wire.encode(question(0, rows))
    count = 4 * rate // len(frame)
    with serving(service, Limits(bytes_per_second=rate)) as served, plain_connect(websocket_url(served.url)) as client:
        client.send(wire.encode(hello(service)))
        client.recv()
        started = time.monotonic()
        sender = threading.Thread(target=lambda: [client.send(frame) for _ in range(count)])
        sender.start()
        for _ in range(count):
            assert isinstance(wire.decode_from_server(client.recv(timeout=10)), wire.Answer)
        seconds = time.monotonic() - started
        sender.join()
    assert 1.5 < seconds < 8
    assert value(served, "confide_received_bytes_total") >= count * len(frame)


# -- batches ---------------------------------------------------------------------------------------------------


def test_clients_at_the_same_time_share_products_and_get_exact_answers(service: LayerService, shell: Path) -> None:
    import shutil

    start = threading.Barrier(6)

    def work(number: int, url: str) -> bool:
        folder = shell.parent / f"client-{number}"
        shutil.copytree(shell, folder)
        with twin_client(folder, url) as client:
            client.prepare(1)
            product = client.product()
            start.wait()
            results = []
            for step in range(60):
                for group, weights in enumerate(small_weights()):
                    x = activations(client.parameters[group], 1 + step % 3, seed=number)
                    results.append(torch.equal(product(group, x), exact(weights, x)))
            product.close()
        return all(results)

    with serving(service) as served, ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(6), [served.url] * 6))
    products = value(served, "confide_online_batch_count")
    assert value(served, "confide_online_batch_sum") == 6 * 60 * 2 == value(served, "confide_online_answers_total")
    assert products < 6 * 60 * 2


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LayerService]:
    service = small_service(tmp_path_factory.mktemp("shared"))
    prepare(service)
    yield service
    service.ledger.close()


@settings(max_examples=40, deadline=None)
@given(requests=st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 40)), min_size=1, max_size=12), data=st.data())
def test_answers_of_a_batch_are_the_integers_of_each_alone(
    shared: LayerService, requests: list[tuple[int, int]], data: st.DataObject
) -> None:
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    admitted = [
        Admitted(PACK, first, generator.integers(0, 2**30, (count, COLUMNS), np.int32)) for first, count in requests
    ]
    together = shared.answers(0, admitted)
    assert [bytes(one.values) for one in together] == [
        bytes(shared.answers(0, [request])[0].values) for request in admitted
    ]


def test_a_product_that_fails_is_told_to_all_who_wait_and_costs_nothing_again(
    service: LayerService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prepare(service)
    ledger = service.ledger
    start = threading.Barrier(3)
    with serving(service) as served:

        def ask(number: int) -> str:
            with connect(served.url, service) as client:
                start.wait()
                with pytest.raises(errors.ServerFault, match="operator") as fault:
                    client.request(question(number), wire.Answer)
                return str(fault.value)

        with monkeypatch.context() as patch, ThreadPoolExecutor(3) as pool:
            patch.setattr(LayerService, "answers", lambda *_: 1 / 0)
            assert len(set(pool.map(ask, range(3)))) == 1
        assert ledger.anonymous().used == 3
        with connect(served.url, service) as client:
            for number in range(3):
                client.request(question(number), wire.Answer)
        assert ledger.anonymous().used == 3
    assert "A product failed inside the server" in caplog.messages


class Products:
    """Stands in for a service: a product is what was asked for."""

    def group(self, index: int) -> tuple[torch.Tensor, None]:
        return torch.empty(2, 2), None

    def answers(self, group: int, admitted: list[Admitted]) -> list[wire.Answer]:
        return [wire.Answer(memoryview(request.pack)) for request in admitted]


def test_a_client_whose_answer_cannot_be_sent_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> list[object]:
        batcher = Batcher(cast("LayerService", Products()), cast("Executor", None), lambda size: None)
        got: list[object] = []

        def fail(answer: object) -> None:
            raise OSError("gone")

        for _ in range(2):
            for number in range(4):
                request = Admitted(b"%d" % number, 0, np.zeros((1, 2), np.int32))
                batcher.add(number, number % 2, request, fail if number == 1 else got.append)
            await asyncio.sleep(0.05)
        return got

    got = asyncio.run(main())
    assert len(got) == 6
    assert caplog.messages.count("An answer could not be sent") == 2


@pytest.mark.parametrize("other", [1, 2])
def test_a_short_request_waits_for_its_own_client_s_long_one_and_for_nobody_else_s(
    other: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_module, "INLINE_WORK", 4)  # one token of a 2 x 2 matrix
    release = threading.Event()

    class Slow(Products):
        def answers(self, group: int, admitted: list[Admitted]) -> list[wire.Answer]:
            if len(admitted[0].masked) > 1:
                release.wait(10)
            return super().answers(group, admitted)

    async def main() -> tuple[list[bytes], list[bytes]]:
        got: list[bytes] = []
        with ThreadPoolExecutor(1) as worker:
            batcher = Batcher(cast("LayerService", Slow()), worker, lambda size: None)
            for client, name, tokens in ((1, b"long", 2), (other, b"short", 1)):
                request = Admitted(name, 0, np.zeros((tokens, 2), np.int32))
                batcher.add(client, 0, request, lambda answer: got.append(bytes(answer.values)))  # type: ignore[union-attr]
                await asyncio.sleep(0.05)
            early = list(got)
            release.set()
            await asyncio.sleep(0.05)
        return early, got

    early, got = asyncio.run(main())
    if other == 1:
        assert (early, got) == ([], [b"long", b"short"])
    else:
        assert (early, got) == ([b"short"], [b"short", b"long"])


def test_as_many_answers_as_a_server_may_owe_are_asked_for_before_one_is_read(service: LayerService) -> None:
    prepare(service)
    rows = service.group(0)[1].rows
    parts = 16
    tokens = wire.MAX_OWED // (4 * rows * parts)
    count = min(tokens, 4096 // parts)
    with serving(service) as served, connect(served.url, service) as client:
        for part in range(parts):
            client.send(question(part * count, count))
        sizes = [len(client.receive(wire.Answer).values) for _ in range(parts)]
    assert sizes == [4 * rows * count] * parts


def test_a_large_batch_does_not_wait() -> None:
    async def main() -> list[int]:
        sizes: list[int] = []
        batcher = Batcher(cast("LayerService", Products()), cast("Executor", None), sizes.append)
        for number in range(2 * batch_module.MAX_BATCH):
            batcher.add(number, 0, Admitted(b"", 0, np.zeros((1, 2), np.int32)), lambda answer: None)
        return sizes

    assert max(asyncio.run(main())) == batch_module.MAX_BATCH


# -- operators -------------------------------------------------------------------------------------------------


@pytest.fixture
def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_health_is_public_and_metrics_are_not(tmp_path: Path, free_port: int) -> None:
    service = small_service(tmp_path / "state", insecure_no_licences=False)
    licence, key = service.ledger.licences.create("a-secret-customer", disclosure=None)
    prepare(service, key)
    with serving(service, metrics_port=free_port) as served:
        with connect(served.url, service, licence=key) as client:
            client.request(question(0, 3), wire.Answer)
            with pytest.raises(errors.IndexUsed):
                client.request(online(PACK, 0, 0, 3, b"\1" * 96), wire.Answer)
            private = f"127.0.0.1:{free_port}"
            assert get(served.url, "/health") == get(private, "/health") == (200, "ok\n")
            status, text = get(private, "/metrics")
        assert status == 200
        for line in (
            "confide_connections 1.0",
            "confide_online_answers_total 1.0",
            "confide_online_rows_total 3.0",
            'confide_refusals_total{code="index-used"} 1.0',
            "confide_online_batch_count 1.0",
        ):
            assert line in text.splitlines()
        for secret in (key, licence.id.hex(), licence.name, PACK.hex()):
            assert secret not in text
        assert get(served.url, "/metrics")[0] in (400, 404)
        assert get(private, "/v1/layers")[0] in (400, 404)


def test_a_server_that_is_told_to_stop_lets_an_offline_request_finish(tmp_path: Path, free_port: int) -> None:
    service = small_service(tmp_path / "state")
    prepare(service)
    begin, rows = offline_request(service)
    begin = wire.OfflineBegin(b"n" * 16, 0, begin.client_nonce, begin.mask_seed, begin.public_key)
    half = len(rows.words) // 2
    with serving(service, metrics_port=free_port) as served:
        idle = connect(served.url, service)
        idle.request(question(0, 3), wire.Answer)
        client = connect(served.url, service)
        client.send(begin)
        client.send(wire.OfflineRows(0, rows.words[:half]))
        eventually(lambda: any(one.busy for one in served.server.conversations))
        served.stop()
        eventually(lambda: served.server.draining)
        assert get(f"127.0.0.1:{free_port}", "/health") == (200, "draining\n")
        with pytest.raises(errors.ConnectionLost):
            connect(served.url, service)
        client.send(wire.OfflineRows(COLUMNS // 2, rows.words[half:]))
        assert client.receive(wire.OfflineBlock).first_row == 0
        with pytest.raises(errors.ConnectionLost):
            idle.receive(wire.Answer)
    again = Ledger(tmp_path / "state")
    assert again.prepared_groups(again.anonymous(), b"n" * 16) == 1
    assert again._value("boot") is not None
    assert (again.mark(again.anonymous(), PACK), again.anonymous().used) == (3, 3)
    again.close()


def test_a_server_does_not_wait_for_ever_for_a_client_that_stopped(
    service: LayerService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "DRAIN_SECONDS", 0.3)
    begin, _ = offline_request(service)
    with serving(service) as served:
        client = connect(served.url, service)
        client.send(begin)
        eventually(lambda: any(one.busy for one in served.server.conversations))
        started = time.monotonic()
    assert time.monotonic() - started < 5

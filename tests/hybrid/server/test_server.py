"""Bad input, at the service and over the network: one typed error, and the server goes on serving others."""

import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from websockets.sync.client import connect as plain_connect

from confide import errors
from confide.hybrid import wire
from confide.hybrid.client.address import websocket_url
from confide.hybrid.client.connection import LayerConnection
from confide.hybrid.server.record import Recorder, read_record
from confide.hybrid.server.service import LayerService
from confide.net.loopback import require_loopback

from .small import activations, connect, exact, online, running, small_service, small_weights, twin_client
from .test_prepare import offline_request

PACK = b"p" * 16


@pytest.fixture
def prepared(service: LayerService) -> LayerService:
    _prepare(service)
    return service


def _prepare(service: LayerService) -> None:
    from .test_prepare import _greeted

    begin, rows = offline_request(service)
    request = _greeted(service).begin_offline(begin)
    request.add_rows(rows)
    list(request.answer())


def masked(service: LayerService, count: int = 1) -> bytes:
    return bytes(4 * count * service.group(0)[1].columns)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (
            lambda s: wire.Hello(wire.PROTOCOL_VERSION + 1, s.scheme.name, s.model_digest, s.table_digest),
            errors.VersionMismatch,
        ),
        (lambda s: wire.Hello(wire.PROTOCOL_VERSION, "other", s.model_digest, s.table_digest), errors.VersionMismatch),
        (lambda s: wire.Hello(wire.PROTOCOL_VERSION, s.scheme.name, bytes(32), s.table_digest), errors.ModelMismatch),
        (lambda s: wire.Hello(wire.PROTOCOL_VERSION, s.scheme.name, s.model_digest, bytes(32)), errors.ModelMismatch),
        (lambda s: wire.OpenPack(PACK), errors.ProtocolError),
        (lambda s: online(PACK, 0, 0, 1, masked(s)), errors.ProtocolError),
        (lambda s: wire.OfflineRows(0, memoryview(b"")), errors.ProtocolError),
    ],
)
def test_a_wrong_greeting_is_refused(
    server: tuple[str, LayerService], change: Callable[[LayerService], wire.FromClient], error: type[Exception]
) -> None:
    url, service = server
    with plain_connect(websocket_url(url)) as client:
        client.send(wire.encode(change(service)))
        reply = wire.decode_from_server(client.recv())
        assert isinstance(reply, wire.Failure)
        with pytest.raises(error):
            wire.raise_failure(reply)
        assert reply.message.endswith(".")
    still_serves(url, service)


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (lambda s: online(PACK, 9, 0, 1, masked(s)), errors.UnknownGroup),
        (lambda s: online(PACK, 0, 0, 2, masked(s)), errors.WrongShape),
        (lambda s: online(PACK, 0, 0, 1, masked(s)[:-1]), errors.WrongShape),
        (lambda s: online(PACK, 0, 4096, 1, masked(s)), errors.WrongShape),
        (lambda s: online(PACK, 0, 4095, 2, masked(s, 2)), errors.WrongShape),
        (lambda s: online(b"x" * 16, 0, 0, 1, masked(s)), errors.UnknownPack),
        (lambda s: online(PACK, 1, 0, 1, bytes(4 * 12)), errors.UnknownPack),
    ],
)
def test_a_wrong_online_request_is_refused_and_the_connection_lives(
    server: tuple[str, LayerService], message: Callable[[LayerService], wire.FromClient], error: type[Exception]
) -> None:
    url, service = server
    _prepare(service)
    with connect(url, service) as connection:
        with pytest.raises(error):
            connection.request(message(service), wire.Answer)
        connection.request(online(PACK, 0, 0, 1, masked(service)), wire.Answer)


def test_an_index_is_answered_once(server: tuple[str, LayerService]) -> None:
    url, service = server
    _prepare(service)
    other = (1).to_bytes(4, "little") + masked(service)[4:]
    with connect(url, service) as first, connect(url, service) as second:
        answer = first.request(online(PACK, 0, 3, 1, masked(service)), wire.Answer)
        again = second.request(online(PACK, 0, 3, 1, masked(service)), wire.Answer)
        assert bytes(again.values) == bytes(answer.values)
        with pytest.raises(errors.IndexUsed):
            second.request(online(PACK, 0, 3, 1, other), wire.Answer)


@pytest.mark.parametrize(
    "frame",
    [b"", b"\xc1", b"\x91" * 50, wire.encode(wire.OpenPack(PACK))[:-1], wire.encode(wire.Answer(memoryview(b"")))],
)
def test_a_malformed_frame_ends_that_connection_only(server: tuple[str, LayerService], frame: bytes) -> None:
    url, service = server
    with connect(url, service) as bystander:
        with connect(url, service) as connection:
            connection._protocol.send_binary(frame)
            connection._flush()
            with pytest.raises(errors.MalformedMessage):
                connection.receive(wire.Answer)
        assert bystander.request(wire.OpenPack(PACK), wire.PackState).groups == 0


def test_a_text_frame_is_malformed(server: tuple[str, LayerService]) -> None:
    url, service = server
    with connect(url, service) as connection:
        connection._protocol.send_text(b"hello")
        connection._flush()
        with pytest.raises(errors.MalformedMessage, match="text"):
            connection.receive(wire.Answer)
    still_serves(url, service)


def test_an_oversized_frame_is_refused_by_name(server: tuple[str, LayerService]) -> None:
    url, service = server
    with connect(url, service) as connection:
        connection._protocol.send_binary(bytes(wire.MAX_FRAME + wire.FRAME_OVERHEAD + 1))
        with pytest.raises(errors.ConnectionLost):
            _flush_and_receive(connection)
    still_serves(url, service)


@pytest.mark.parametrize("wrong", ["order", "surplus", "partial", "interrupted", "key"])
def test_a_wrong_offline_request_is_refused(server: tuple[str, LayerService], wrong: str) -> None:
    url, service = server
    begin, rows = offline_request(service)
    if wrong == "key":
        begin = wire.OfflineBegin(begin.pack, 0, begin.client_nonce, begin.mask_seed, begin.public_key[:-4])
    follow: wire.FromClient = {
        "order": wire.OfflineRows(1, rows.words),
        "surplus": wire.OfflineRows(0, memoryview(bytes(rows.words) * 2)),
        "partial": wire.OfflineRows(0, rows.words[:-4]),
        "interrupted": wire.OpenPack(PACK),
        "key": rows,
    }[wrong]
    with connect(url, service) as connection:
        connection.send(begin)
        with pytest.raises(errors.ProtocolError):
            _send_and_receive(connection, follow)
    assert service.ledger.prepared_groups(service.ledger.anonymous(), PACK) == 0
    still_serves(url, service)


def _flush_and_receive(connection: LayerConnection) -> None:
    connection._flush()
    connection.receive(wire.Answer)


def _send_and_receive(connection: LayerConnection, message: wire.FromClient) -> None:
    connection.send(message)
    connection.receive(wire.OfflineBlock)


def still_serves(url: str, service: LayerService) -> None:
    with connect(url, service) as connection:
        assert connection.request(wire.OpenPack(b"q" * 16), wire.PackState).mark == 0


def test_a_client_that_vanishes_offline_frees_its_place(server: tuple[str, LayerService]) -> None:
    url, service = server
    begin, rows = offline_request(service)
    for _ in range(4):
        connection = connect(url, service)
        connection.send(begin)
        connection._socket.close()
    with connect(url, service) as connection:
        connection.send(begin)
        connection.send(rows)
        assert connection.receive(wire.OfflineBlock).first_row == 0


def test_inside_failures_tell_the_client_nothing(
    server: tuple[str, LayerService], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, service = server

    def explode(account: object, message: wire.OpenPack) -> wire.PackState:
        raise RuntimeError("a secret detail")

    with connect(url, service) as connection:
        monkeypatch.setattr(service, "pack_state", explode)
        with pytest.raises(errors.ServerFault) as caught:
            connection.request(wire.OpenPack(PACK), wire.PackState)
        assert "secret" not in str(caught.value)


def test_many_clients_at_once(server: tuple[str, LayerService], tmp_path: Path, shell: Path) -> None:
    import shutil
    from concurrent.futures import ThreadPoolExecutor

    def work(number: int) -> bool:
        folder = tmp_path / f"client-{number}"
        shutil.copytree(shell, folder)
        with twin_client(folder, server[0]) as client:
            product = client.product()
            results = []
            for step in range(20):
                x = activations(client.parameters[0], 1 + step % 3, seed=number)
                results.append(torch.equal(product(0, x), exact(small_weights()[0], x)))
            product.close()
        return all(results)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(6)))


def test_the_record_is_what_the_server_saw(tmp_path: Path, shell: Path) -> None:
    path = tmp_path / "record"
    recorder = Recorder(path)
    with running(small_service(tmp_path / "state", observer=recorder)) as url, twin_client(shell, url) as client:
        product = client.product()
        x = activations(client.parameters[0], 3)
        product(0, x)
        product.close()
    (seen,) = read_record(path)
    values = np.frombuffer(seen.masked, np.int32)
    assert (seen.group, seen.first, seen.count) == (0, 0, 16)
    assert values.min() >= 0
    assert values.max() < 2**30
    assert not np.isin(values, x.numpy()).any()
    path.write_bytes(path.read_bytes() + b"\x10\0\0\0half")
    assert len(list(read_record(path))) == 1
    path.write_bytes(b"\xff" * 8)
    with pytest.raises(errors.MalformedMessage, match="not a record"):
        list(read_record(path))


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "example.com", "127.0.0.1.example.com", "::"])  # noqa: S104
def test_plain_serving_and_connecting_stay_on_this_machine(host: str, service: LayerService) -> None:
    with pytest.raises(errors.InsecureConnection):
        require_loopback(host, insecure_no_tls=False)
    require_loopback(host, insecure_no_tls=True)
    address = f"[{host}]" if ":" in host else host
    with pytest.raises(errors.InsecureConnection):
        connect(f"ws://{address}:1", service)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.9.9.9"])
def test_loopback_is_allowed(host: str) -> None:
    require_loopback(host, insecure_no_tls=False)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://x",
        "ws://",
        "file:///etc/passwd",
        "ws://[",
        "ws://h:99999",
        "ws://h:x",
        "u@h",
        "\ud800",
        "é" * 80,
        "ws://℀",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(errors.ProtocolError, match="ws://host:port"):
        websocket_url(url)


def test_nobody_listening_is_a_clear_error(service: LayerService) -> None:
    with pytest.raises(errors.ConnectionLost, match="confide serve"):
        connect("ws://127.0.0.1:9", service)


def test_something_else_listening_is_a_clear_error(service: LayerService) -> None:
    import threading

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def answer() -> None:
            peer, _ = listener.accept()
            peer.recv(4096)
            peer.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            peer.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(errors.ConnectionLost, match="not a layer server"):
            connect(f"127.0.0.1:{listener.getsockname()[1]}", service)
        thread.join()


@pytest.mark.parametrize(
    ("opcode", "error"),
    [(0x02, errors.MalformedMessage), (0x00, errors.ConnectionLost), (0x88, errors.ConnectionLost)],
    ids=["pieces", "nonsense", "after the end"],
)
def test_a_server_that_never_stops_talking_is_left(
    service: LayerService, monkeypatch: pytest.MonkeyPatch, opcode: int, error: type[errors.ConfideError]
) -> None:
    class Endless:
        def recv(self, size: int) -> bytes:
            return bytes(size - size % 2)

        def __getattr__(self, name: str) -> object:
            return getattr(connected, name)

    with running(service) as url, connect(url, service) as connection:
        connected = connection._socket
        connection._protocol.receive_data(bytes([opcode, 0]))
        connection._events.extend(connection._protocol.events_received())
        monkeypatch.setattr(connection, "_socket", Endless())
        with pytest.raises(error):
            connection.request(wire.OpenPack(PACK), wire.PackState)
        connection._socket = connected


def test_a_server_that_answers_nonsense_is_malformed(service: LayerService, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(service) as url:
        monkeypatch.setattr(service, "welcome", lambda hello: (service.ledger.anonymous(), wire.PackState(PACK, 0, 0)))
        with pytest.raises(errors.MalformedMessage, match="out of turn"):
            LayerConnection(url, scheme=service.scheme.name, release=service.release)

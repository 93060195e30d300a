"""A client whose server is a script: the upgrade to WebSocket, and every exchange that follows."""

import functools
import socket
from collections.abc import Callable
from unittest import mock

import numpy as np
import torch
from websockets.frames import Frame, Opcode
from websockets.utils import accept_key

from confide.hybrid import wire
from confide.hybrid.client.connection import LayerConnection
from confide.hybrid.client.dial import Dial
from confide.hybrid.client.links import Links
from confide.hybrid.client.padding import Padding
from confide.hybrid.client.pads.pool import Block, Taken
from confide.hybrid.client.pads.source import Pads
from confide.hybrid.client.product import CheckedGroup, RemoteProduct
from confide.net.http_proxy import HttpProxy
from confide.packages.signing import Release
from confide.rlwe.freivalds import AnswerCheck, secret_vector
from confide.rlwe.parameters import PLANES, RING_DEGREE, Parameters

from .bench import OWNER, model
from .script import Script


class _Peer:
    """A socket that takes whatever is sent, and gives what its server says, then the end."""

    def __init__(self, stream: bytes, *, upgrade: bool) -> None:
        self._stream = stream
        self._upgrade = upgrade

    def send(self, data: memoryview) -> int:
        if self._upgrade:
            self._upgrade = False
            key = bytes(data).partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0].decode()
            answer = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept_key(key)}"
            self._stream = f"HTTP/1.1 101 Switching Protocols\r\n{answer}\r\n\r\n".encode() + self._stream
        return len(data)

    def recv(self, size: int) -> bytes:
        data, self._stream = self._stream[:size], self._stream[size:]
        return data

    def settimeout(self, seconds: float) -> None: ...

    def setsockopt(self, level: int, option: int, value: int) -> None: ...

    def close(self) -> None: ...


@functools.cache
def _facts() -> tuple[Release, bytes, Parameters]:
    made = model()
    return made.signed.release, bytes.fromhex(made.signed.signature.release), made.parameters[0]


def _connect(stream: bytes, *, upgrade: bool = True) -> LayerConnection:
    peer = _Peer(stream, upgrade=upgrade)
    with mock.patch("socket.create_connection", return_value=peer):
        return LayerConnection(Dial("ws://127.0.0.1:1"), _facts()[0])


def upgrade(data: bytes) -> None:
    """Whatever answers instead of a layer server."""
    _connect(data, upgrade=False)


def http_proxy(data: bytes) -> None:
    """Whatever answers instead of a proxy, and the address of one."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(data[: 1 << 14])
        theirs.shutdown(socket.SHUT_WR)
        with mock.patch("socket.create_connection", return_value=ours), ours:
            HttpProxy.parse("http://user:password@proxy:1").connect("layers.example", 443, 5)
            HttpProxy.parse(data.decode("utf-8", "surrogateescape"))


def exchange(data: bytes) -> None:
    """A server that greets, mostly, and then says what it likes to a client that asks for something."""
    script = Script(data)
    stream = b"" if script.number() % 8 == 7 else _binary(wire.encode(_welcome()))
    while script:
        stream += _next(script)
    with _connect(stream) as connection:
        for _ in range(3):
            _multiply(connection)


class _Pool:
    """The same pads for everything."""

    def __init__(self, parameters: Parameters) -> None:
        self._pads = Pads(np.zeros((2, parameters.columns), np.int64), np.zeros((2, parameters.rows), np.int32))
        self._p0 = np.zeros((2, PLANES, RING_DEGREE), np.int8)

    def take(self, group: int, most: int) -> Taken:
        return Taken(0, 0, 2, frozenset({0}), self._pads, self._p0)

    def announcements(self, shard: int, most: int) -> list[Block]:
        return [Block(0, self._p0, [self._pads])] if most >= 2 else []


def _multiply(connection: LayerConnection) -> None:
    group, parameters = model().signed.manifest.groups[0], _facts()[2]
    check = AnswerCheck(secret_vector(bytes(32), 0, parameters.rows), np.zeros(parameters.columns, np.uint64))
    groups = [CheckedGroup(group, parameters, check)]
    links = Links([Dial(connection.url, patience=0)], 3, lambda dial: connection)
    product = RemoteProduct(links, _Pool(parameters), groups, Padding(1, 1), lambda *_: None)  # type: ignore[arg-type]
    answer = product(0, torch.zeros(2, parameters.columns, dtype=torch.int32))
    if answer.shape != (2, parameters.rows):
        raise AssertionError("an answer of the wrong shape was taken")


def _welcome(in_flight: int = 1 << 20, ahead: int = 64) -> wire.Welcome:
    return wire.Welcome(
        wire.PROTOCOL_VERSION, wire.Allowance(), OWNER.public.raw, _facts()[1], in_flight, ahead, ((0, 2),)
    )


def _binary(payload: bytes) -> bytes:
    return Frame(Opcode.BINARY, payload).serialize(mask=False)


def _next(script: Script) -> bytes:
    match script.number() % 8:
        case 0:
            return script.chunk(2)  # anything, below the frames
        case 1:
            opcode, payload, fin = script.choice(list(Opcode)), script.chunk(), script.number() % 2
            return bytes([fin << 7 | opcode]) + Frame(Opcode.BINARY, payload).serialize(mask=False)[1:]
        case 2:
            return _binary(script.damaged(wire.encode(_message(script))))
        case 3:
            return _binary(script.chunk(2))
        case _:
            return _binary(wire.encode(_message(script)))


def _message(script: Script) -> wire.FromServer:
    match script.number() % 4:
        case 0:
            return _welcome(script.number(2), script.number())
        case 1:
            return wire.Answer(memoryview(bytes(script.around(8 * _facts()[2].rows))))
        case 2:
            return wire.Failure("unknown-block", "Again.")
        case _:
            code, message = (script.chunk().decode(errors="replace") for _ in range(2))
            return wire.Failure(code, message)


def _seeds() -> list[bytes]:
    failure = bytes([4, 3, 12]) + b"server-fault" + bytes([6]) + b"Again."
    right = bytes([4, 1, 0])
    unknown = bytes([4, 2])
    return [
        bytes([0]) + right * 3,
        bytes([0]) + unknown + right * 3,
        bytes([0]) + unknown * 4,
        bytes([0]) + failure,
        bytes([0, 4, 0, 0, 0, 0]) + right,
        bytes([7]) + right,
        bytes([0, 2, 1, 0, 3, 0, 0, 0, 1, 65]),
        bytes([0, 1, 2, 1, 65, 1]),
        bytes([0, 0, 4, 0, 0x82, 0x7F, 0xFF, 0xFF]),
    ]


_UPGRADES = [
    b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"HTTP/1.1 503 Busy\r\nContent-Length: 999999999999\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.9\r\n",
    b"\x15\x03\x01\x00\x02\x02\x46",
]

TARGETS: dict[str, Callable[[bytes], None]] = {"upgrade": upgrade, "exchange": exchange, "http-proxy": http_proxy}
_PROXIES = [b"HTTP/1.1 200 fine\r\nVia: x\r\n\r\nhello", b"HTTP/1.0 407 no\r\n\r\n", b"http://a:b@[::1]:80", b""]
SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "upgrade": lambda: _UPGRADES,
    "exchange": _seeds,
    "http-proxy": lambda: _PROXIES,
}

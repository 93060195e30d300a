"""A client whose server is a script: the upgrade to WebSocket, and every exchange that follows."""

import functools
from collections.abc import Callable
from unittest import mock

import numpy as np
import torch
from confide.hybrid.client.prepare import _receive_values
from confide.hybrid.client.supply import Segment
from numpy.typing import NDArray
from websockets.frames import Frame, Opcode
from websockets.utils import accept_key

from confide.hybrid import wire
from confide.hybrid.client.connection import LayerConnection
from confide.hybrid.client.link import Link
from confide.hybrid.client.padding import Padding
from confide.hybrid.client.product import CheckedGroup, RemoteProduct
from confide.packages.manifest import PackageKind
from confide.packages.signing import Release, release_of, sign_manifest
from confide.rlwe.freivalds import AnswerCheck, secret_vector
from confide.rlwe.parameters import Parameters

from .bench import OWNER, TWIN, TwinClient, manifest_for, small_weights
from .script import Script

PACK = bytes(range(16))


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

    def close(self) -> None: ...


@functools.cache
def _facts() -> tuple[Release, bytes, list[Parameters]]:
    manifest = manifest_for(small_weights(), PackageKind.SHELL)
    signature = sign_manifest(b"in memory", manifest, OWNER)
    parameters = [group.parameters(manifest.profile) for group in manifest.groups]
    return release_of(manifest, OWNER.public), bytes.fromhex(signature.release), parameters


def _connect(stream: bytes, *, upgrade: bool = True) -> LayerConnection:
    peer = _Peer(stream, upgrade=upgrade)
    with mock.patch("confide.hybrid.client.connection._connect", return_value=peer):
        return LayerConnection("ws://127.0.0.1:1", scheme=TWIN.name, release=_facts()[0])


def upgrade(data: bytes) -> None:
    """Whatever answers instead of a layer server."""
    _connect(data, upgrade=False)


def exchange(data: bytes) -> None:
    """A server that greets, mostly, and then says what it likes to a client that asks for something."""
    script = Script(data)
    ask = script.choice([_open_pack, _receive, _multiply])
    stream = b"" if script.number() % 8 == 7 else _binary(wire.encode(_welcome()))
    while script:
        stream += _next(script)
    with _connect(stream) as connection:
        for _ in range(3):
            ask(connection)


def _open_pack(connection: LayerConnection) -> None:
    connection.request(wire.OpenPack(PACK), wire.PackState)


def _receive(connection: LayerConnection) -> None:
    parameters = _facts()[2][0]
    values = torch.empty(parameters.rows, parameters.tokens, dtype=torch.int32)
    for _ in _receive_values(connection, parameters, TwinClient(bytes(32), parameters.ring_degree), values):
        pass


class _Supply:
    """The same masks for everything; keeps no record."""

    def __init__(self, parameters: Parameters) -> None:
        self._masks = np.zeros((2, parameters.columns), np.int32)
        self._values = np.zeros((2, parameters.rows), np.int32)

    def take(self, group: int, inputs: NDArray[np.int32], most: int, *, anything: bool = False) -> list[Segment]:
        return [Segment(PACK, 0, self._masks, self._values, inputs, repeated=False)]

    def answered(self, segment: Segment) -> None: ...

    def look_ahead(self, group: int, tokens: int) -> None: ...

    def abandon_run(self) -> None: ...

    def end_run(self) -> None: ...


def _multiply(connection: LayerConnection) -> None:
    group, parameters = manifest_for(small_weights(), PackageKind.SHELL).groups[0], _facts()[2][0]
    check = AnswerCheck(secret_vector(bytes(32), 0, parameters.rows), np.zeros(parameters.columns, np.uint64))
    groups = [CheckedGroup(group, parameters, check)]
    link = Link(lambda: connection, patience=0)
    product = RemoteProduct(link, _Supply(parameters), groups, Padding(1, 1), lambda breach: None)  # type: ignore[arg-type]
    answer = product(0, torch.zeros(2, parameters.columns, dtype=torch.int32))
    if answer.shape != (2, parameters.rows):
        raise AssertionError("an answer of the wrong shape was taken")


def _welcome() -> wire.Welcome:
    return wire.Welcome(wire.PROTOCOL_VERSION, bytes(32), None, OWNER.public.raw, _facts()[1])


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
    parameters = _facts()[2][0]
    match script.number() % 5:
        case 0:
            return _welcome()
        case 1:
            return wire.PackState(PACK, script.number(2), script.number(2))
        case 2:
            low = script.around(2 * parameters.tokens * script.choice([parameters.rows, 1, 3]))
            return wire.OfflineBlock(script.number() % 16, memoryview(bytes(4 * low)), memoryview(bytes(low)))
        case 3:
            return wire.Answer(memoryview(bytes(script.around(8 * parameters.rows))))
        case _:
            code, message = (script.chunk().decode(errors="replace") for _ in range(2))
            return wire.Failure(code, message)


def _seeds() -> list[bytes]:
    failure = bytes([4, 4, 10]) + b"index-used" + bytes([6]) + b"Again."
    return [
        bytes([0, 0, 4, 1, 5, 0, 2, 0]),
        bytes([1, 0, 4, 2, 0, 0, 0]),
        bytes([1, 0]) + b"".join(bytes([4, 2, 0, 1, first]) for first in range(12)),
        bytes([2, 0, 4, 3, 0]) + bytes([4, 3, 0]) * 2,
        bytes([2, 0]) + failure,
        bytes([0, 0, 1, 3, 2, 3, 232, 1]),
        bytes([0, 0, 1, 2, 1, 65, 0, 1, 0, 1, 66, 1]),
        bytes([0, 7, 4, 1, 5, 0, 2, 0]),
        bytes([0, 0, 0, 4, 0, 0x82, 0x7F, 0xFF, 0xFF]),
        bytes([0, 0, 1, 4, 1, 65, 1, 2]) + failure,
    ]


_UPGRADES = [
    b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"HTTP/1.1 503 Busy\r\nContent-Length: 999999999999\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.9\r\n",
    b"\x15\x03\x01\x00\x02\x02\x46",
]

TARGETS: dict[str, Callable[[bytes], None]] = {"upgrade": upgrade, "exchange": exchange}
SEEDS: dict[str, Callable[[], list[bytes]]] = {"upgrade": lambda: _UPGRADES, "exchange": _seeds}

"""A layer server that is talked to by a script: frames of every kind, in any order, right or almost right."""

import asyncio
import functools
from collections.abc import Callable
from typing import Any

from picows import WSCloseCode, WSMsgType

from confide.hybrid import wire
from confide.hybrid.server.ahead import PART_TOKENS
from confide.hybrid.server.limits import Limits
from confide.hybrid.server.peer import Peer
from confide.hybrid.server.server import LayerServer
from confide.hybrid.server.service import P0_BYTES, LayerService

from .bench import model, scratch, service
from .script import Script

TURNS = 8
"""Of the event loop, after each frame: enough for a step of whatever is being dealt with."""


class _Frame:
    def __init__(self, payload: bytes, kind: WSMsgType = WSMsgType.BINARY, *, fin: bool = True) -> None:
        self._payload, self.msg_type, self.fin = payload, kind, fin
        self.payload_size = len(payload)

    def get_payload_as_bytes(self) -> bytes:
        return self._payload

    def get_close_code(self) -> WSCloseCode:
        return WSCloseCode.OK


class _Transport:
    """Keeps what was sent, and says whether the server wants to hear more."""

    def __init__(self) -> None:
        self.underlying_transport = self
        self.protocol: object = self
        self.sent: list[bytes] = []
        self.reading = self.connected = True

    def get_protocol(self) -> object:
        return self.protocol

    def set_protocol(self, protocol: object) -> None:
        self.protocol = protocol

    def set_write_buffer_limits(self, high: int) -> None: ...

    def send(self, kind: WSMsgType, frame: bytes) -> None:
        self.sent.append(frame)

    def send_close(self, code: WSCloseCode, reason: object) -> None: ...

    def disconnect(self, *, graceful: bool = True) -> None:
        self.connected = False

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class _Server:
    """One server for all talks, in one thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(lambda loop, context: self.trouble.append(context))
        self.trouble: list[dict[str, Any]] = []
        self.server = self.loop.run_until_complete(self._make())

    async def _make(self) -> LayerServer:
        made = service(scratch("state"))
        # Two connections' work and p0 of fewer tokens than a script may send
        work = PART_TOKENS * sum(made.ahead_bytes.values())
        limits = Limits(bytes_in_flight=8 * P0_BYTES, ahead_bytes=work, all_ahead_bytes=2 * work + 8 * P0_BYTES)
        return LayerServer({"small": made}, limits)


@functools.cache
def _server() -> _Server:
    return _Server()


def conversation(data: bytes) -> None:
    """A whole conversation. The server must not fail inside, and must let go of all that it kept."""
    hosted = _server()
    hosted.trouble.clear()
    sent = hosted.loop.run_until_complete(_talk(hosted.server, Script(data)))
    if hosted.trouble:
        raise AssertionError(f"the event loop reports {hosted.trouble}")
    for frame in sent:
        message = wire.decode_from_server(frame)
        if isinstance(message, wire.Failure) and message.code == "server-fault":
            raise AssertionError("the server failed inside")
    if hosted.server.room.used:
        raise AssertionError("work ahead is kept for nobody")


async def _talk(server: LayerServer, script: Script) -> list[bytes]:
    transport = _Transport()
    model = server.models["small"]
    talk = Peer(server, model)
    talk.on_ws_connected(transport)  # type: ignore[arg-type]
    while script and transport.connected:
        talk.on_ws_frame(transport, _frame(model.service, script))  # type: ignore[arg-type]
        await _turns(lambda: transport.reading)
    await _turns(lambda: not talk.busy)
    licensee = talk.licensee
    talk.on_ws_disconnected(transport)  # type: ignore[arg-type]
    await _turns(lambda: not server.busy)
    for _ in range(6000):  # a step of work ahead that is being made ends in its thread
        if not server.room.used:
            break
        await asyncio.sleep(0.01)
    if licensee is not None and not licensee.credit.idle:
        raise AssertionError("credit is lost")
    return transport.sent


async def _turns(enough: Callable[[], bool]) -> None:
    for turn in range(100):
        if turn >= TURNS and enough():
            return
        await asyncio.sleep(0)


def _frame(service: LayerService, script: Script) -> _Frame:
    match script.number() % 8:
        case 0:
            return _Frame(script.chunk(2))
        case 1:
            kinds = [WSMsgType.TEXT, WSMsgType.PING, WSMsgType.PONG, WSMsgType.CONTINUATION, WSMsgType.CLOSE]
            return _Frame(script.chunk(), script.choice(kinds))
        case 2:
            return _Frame(wire.encode(_message(service, script)), fin=bool(script.number() % 2))
        case 3:
            return _Frame(script.damaged(wire.encode(_message(service, script))))
        case _:
            return _Frame(wire.encode(_message(service, script)))


def _message(service: LayerService, script: Script) -> wire.FromClient:
    group, block = script.number() % 4, script.number() % 3
    parameters = service.parameters(group % 3)
    match script.number() % 3:
        case 0:
            licence = script.chunk().decode(errors="replace")[:200]
            release = model().signed.release
            return wire.Hello(3, wire.SCHEME, release.model_digest, release.table_digest, licence)
        case 1:
            tokens = script.number() % 10
            return wire.Ahead(block, memoryview(bytes(script.around(tokens * P0_BYTES))))
        case _:
            first, count = script.number() % 10, 1 + script.number() % 10
            planes = bytes([script.number()]) * script.around(6 * count * parameters.columns)
            p0 = bytes(script.around(count * P0_BYTES)) if script.number() % 2 else b""
            return wire.Online(group, block, first, count, memoryview(planes), memoryview(p0))


HELLO = bytes([4, 0, 0, 0, 0])
AHEAD = bytes([4, 0, 1, 1, 4, 0])
ONLINE = bytes([4, 0, 1, 2, 0, 3, 7, 0, 0])
WITH_P0 = bytes([4, 2, 0, 2, 0, 3, 7, 0, 1, 0])


def _seeds() -> list[bytes]:
    raw = wire.encode(wire.Ahead(0, memoryview(bytes(P0_BYTES))))
    return [
        HELLO + AHEAD + ONLINE,
        HELLO + WITH_P0 + WITH_P0,
        HELLO + ONLINE + WITH_P0,
        HELLO + AHEAD * 3 + ONLINE * 4,
        HELLO + AHEAD + AHEAD.replace(bytes([1, 1, 4]), bytes([2, 1, 9])) + ONLINE,
        HELLO + WITH_P0 * 12,
        AHEAD + HELLO,
        ONLINE,
        HELLO + HELLO,
        HELLO + bytes([0]) + len(raw).to_bytes(2, "little") + raw,
        HELLO + bytes([1, 1, 65, 1]) + ONLINE,
        HELLO + bytes([3]) + ONLINE[1:] + bytes([3, 0, 0, 0, 1, 255]),
    ]


TARGETS: dict[str, Callable[[bytes], None]] = {"conversation": conversation}
SEEDS: dict[str, Callable[[], list[bytes]]] = {"conversation": _seeds}

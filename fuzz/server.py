"""A layer server that is talked to by a script: frames of every kind, in any order, right or almost right."""

import asyncio
import functools
import itertools
from collections.abc import Callable
from typing import Any

from picows import WSCloseCode, WSMsgType

from confide.hybrid import wire
from confide.hybrid.server.peer import MAX_INBOX, Conversation
from confide.hybrid.server.server import LayerServer
from confide.hybrid.server.service import LayerService

from .bench import scratch, small_service
from .script import Script

TURNS = 8
"""Of the event loop, after each frame: enough for a step of whatever is being dealt with."""
_talks = itertools.count()


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
        self.sent: list[bytes] = []
        self.reading = self.connected = True

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
        server = LayerServer(small_service(scratch("state")))
        server.offline = _at_once  # type: ignore[method-assign]
        return server

    @property
    def service(self) -> LayerService:
        return self.server.service


async def _at_once(call: Callable[..., Any], *arguments: Any) -> Any:
    await asyncio.sleep(0)
    return call(*arguments)


@functools.cache
def _server() -> _Server:
    return _Server()


def conversation(data: bytes) -> None:
    """A whole conversation. The server must not fail inside, and must not let messages pile up."""
    hosted = _server()
    hosted.trouble.clear()
    sent = hosted.loop.run_until_complete(_talk(hosted.server, Script(data), next(_talks)))
    if hosted.trouble:
        raise AssertionError(f"the event loop reports {hosted.trouble}")
    for frame in sent:
        message = wire.decode_from_server(frame)
        if isinstance(message, wire.Failure) and message.code == "server-fault":
            raise AssertionError("the server failed inside")


async def _talk(server: LayerServer, script: Script, number: int) -> list[bytes]:
    transport = _Transport()
    talk = Conversation(server)
    talk.on_ws_connected(transport)  # type: ignore[arg-type]
    while script and transport.connected:
        talk.on_ws_frame(transport, _frame(server.service, script, number))  # type: ignore[arg-type]
        await _turns(lambda: transport.reading)
        if len(talk._inbox) > MAX_INBOX:
            raise AssertionError("messages pile up")
    await _turns(lambda: not talk.busy)
    task = talk._task
    talk.on_ws_disconnected(transport)  # type: ignore[arg-type]
    if task is not None:
        await asyncio.gather(task, return_exceptions=True)
    return transport.sent


async def _turns(enough: Callable[[], bool]) -> None:
    for turn in range(100):
        if turn >= TURNS and enough():
            return
        await asyncio.sleep(0)


def _frame(service: LayerService, script: Script, number: int) -> _Frame:
    match script.number() % 8:
        case 0:
            return _Frame(script.chunk(2))
        case 1:
            kinds = [WSMsgType.TEXT, WSMsgType.PING, WSMsgType.PONG, WSMsgType.CONTINUATION, WSMsgType.CLOSE]
            return _Frame(script.chunk(), script.choice(kinds))
        case 2:
            return _Frame(wire.encode(_message(service, script, number)), fin=bool(script.number() % 2))
        case 3:
            return _Frame(script.damaged(wire.encode(_message(service, script, number))))
        case _:
            return _Frame(wire.encode(_message(service, script, number)))


def _message(service: LayerService, script: Script, number: int) -> wire.FromClient:
    # Packs are new in every talk: what came before must not matter.
    pack = number.to_bytes(15, "big") + bytes([script.number() % 4])
    group = script.number() % 3
    _, parameters = service.group(group % 2)
    row = parameters.planes * parameters.ring_degree
    match script.number() % 5:
        case 0:
            licence = script.chunk().decode(errors="replace")[:200]
            return wire.Hello(2, service.scheme.name, service.model_digest, service.table_digest, licence)
        case 1:
            return wire.OpenPack(pack)
        case 2:
            return wire.OfflineBegin(pack, group, bytes(32), bytes(32), bytes(script.around(row)))
        case 3:
            rows = script.choice([parameters.columns, 1, 4])
            return wire.OfflineRows(script.number() % 16, memoryview(bytes(script.around(rows * row))))
        case _:
            first, count = script.number(2) % 4200, 1 + script.number(2) % 300
            masked = bytes([script.number()]) * script.around(4 * count * parameters.columns)
            return wire.Online(pack, group, first, count, memoryview(masked))


HELLO = bytes([4, 0, 0, 0, 0])
OPEN = bytes([4, 0, 0, 1])
BEGIN = bytes([4, 0, 0, 2, 0])
ROWS = bytes([4, 0, 0, 3, 0, 0, 0])
ONLINE = bytes([4, 0, 0, 4, 5, 0, 2, 0, 7, 0])


def _seeds() -> list[bytes]:
    raw = wire.encode(wire.OpenPack(bytes(16)))
    return [
        HELLO + OPEN,
        HELLO + BEGIN + ROWS + OPEN + ONLINE + ONLINE,
        HELLO + BEGIN + ROWS + ONLINE + ONLINE.replace(b"\7", b"\6"),
        HELLO + BEGIN + ONLINE,
        HELLO + ROWS + BEGIN,
        HELLO + BEGIN + bytes([4, 0, 0, 3, 1, 0, 0]) * 8,
        HELLO + bytes([0]) + len(raw).to_bytes(2, "little") + raw,
        HELLO + bytes([1, 1, 65, 1]) + OPEN,
        HELLO + bytes([3]) + OPEN[1:] + bytes([3, 0, 0, 0, 1, 255]),
        OPEN,
    ]


TARGETS: dict[str, Callable[[bytes], None]] = {"conversation": conversation}
SEEDS: dict[str, Callable[[], list[bytes]]] = {"conversation": _seeds}

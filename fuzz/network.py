"""A layer server on the network: bytes before, within and below WebSocket frames."""

import atexit
import functools
import socket
from collections.abc import Callable
from contextlib import ExitStack

from websockets.frames import Frame, Opcode

from confide.hybrid import wire
from confide.hybrid.wire import PATH

from .bench import scratch, service, serving
from .script import Script

PATIENCE_SECONDS = 5.0
UPGRADE = (
    f"GET {PATH} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
).encode()


@functools.cache
def _place() -> tuple[str, int]:
    stack = ExitStack()
    url = stack.enter_context(serving(service(scratch("network")))).url
    # The server's thread is no daemon: it must end before the interpreter waits for its threads.
    _at_exit(stack.close)
    host, _, port = url.removeprefix("ws://").partition(":")
    return host, int(port)


def _at_exit(call: Callable[[], None]) -> None:
    import threading

    getattr(threading, "_register_atexit", atexit.register)(call)


def connection(data: bytes) -> None:
    """A client that sends what it likes and hangs up. It is let go, and the server does not fail inside."""
    script = Script(data)
    stream = _opening(script)
    while script:
        stream += _next(script)
    with socket.create_connection(_place(), timeout=PATIENCE_SECONDS) as client:
        answer = b""
        try:
            client.sendall(stream)
            client.shutdown(socket.SHUT_WR)
            while part := client.recv(1 << 16):
                answer += part
        except (ConnectionError, BrokenPipeError):
            pass  # hung up first, which it may
    if b"server-fault" in answer:
        raise AssertionError("the server failed inside")


def _opening(script: Script) -> bytes:
    match script.number() % 4:
        case 0:
            return script.chunk(2)
        case 1:
            return script.damaged(UPGRADE)
        case _:
            return UPGRADE


def _next(script: Script) -> bytes:
    match script.number() % 4:
        case 0:
            return script.chunk(2)
        case 1:
            opcode, payload, fin = script.choice(list(Opcode)), script.chunk(2), script.number() % 2
            return bytes([fin << 7 | opcode]) + Frame(Opcode.BINARY, payload).serialize(mask=True)[1:]
        case 2:
            return Frame(Opcode.BINARY, wire.encode(wire.Ahead(0, memoryview(bytes(16))))).serialize(
                mask=script.number() % 8 > 0
            )
        case _:
            return script.damaged(Frame(Opcode.BINARY, script.chunk(2)).serialize(mask=True))


def _seeds() -> list[bytes]:
    plain = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    return [
        bytes([0]) + len(plain).to_bytes(2, "little") + plain,
        bytes([1, 20, 0, 0, 0, 1, 65]),
        bytes([2, 2, 1]),
        bytes([2, 2, 0]),
        bytes([2, 1, 3, 2, 0, 3, 232, 1]),
        bytes([2, 1, 4, 1, 0, 65, 1]),
        bytes([2, 0, 4, 0, 0x82, 0xFF, 0xFF, 0xFF]),
        bytes([2, 1, 2, 1, 0, 65, 0, 1, 0, 1, 0, 66, 1]),
    ]


TARGETS: dict[str, Callable[[bytes], None]] = {"connection": connection}
SEEDS: dict[str, Callable[[], list[bytes]]] = {"connection": _seeds}

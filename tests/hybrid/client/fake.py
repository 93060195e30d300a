"""A layer server in a thread: the real arithmetic behind a real socket, without licences, that can misbehave."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import Server, ServerConnection, serve

from confide.errors import ConfideError, UnknownBlock, UnknownGroup
from confide.hybrid import wire
from confide.hybrid.groups import Groups
from confide.packages.server_package import ServerPackage
from confide.rlwe.online import Ahead, GroupMatrix
from confide.rlwe.parameters import PLANES, RING_DEGREE

Tamper = Callable[[wire.Online, wire.Answer], wire.Answer]


class FakeServer:
    """groups: that it has, all without. claims: what it says of that, the truth without. tamper: what becomes of an
    honest answer. before: called with each online request, and may raise what is then reported, or
    ConnectionAbortedError to hang up. frames, greetings, blocks: what came.
    """

    def __init__(self, package: Path, groups: Groups | None = None) -> None:
        opened = ServerPackage.open(package)
        self.signed = opened.signed
        self.held = groups or Groups.of(range(len(opened.manifest.groups)))
        stored = {index: opened.group(index) for index in self.held}
        self.groups = {index: GroupMatrix(one.weights, one.u) for index, one in stored.items()}
        self.claims: tuple[tuple[int, int], ...] | None = None
        self.tamper: Tamper | None = None
        self.before: Callable[[wire.Online], object] = lambda message: None
        self.ahead_tokens = 256
        self.allowance = wire.Allowance()
        self.bytes_in_flight = 4 << 20
        self.frames: list[wire.Online] = []
        self.blocks: list[tuple[int, bytes]] = []
        self.raw: list[bytes] = []
        self.greetings = 0
        self.url = ""
        self._server: Server | None = None
        self._port = 0
        self._open: set[ServerConnection] = set()
        self._known: dict[int, np.ndarray] = {}

    def start(self) -> None:
        self._server = serve(self._handle, "127.0.0.1", self._port, max_size=None, compression=None, close_timeout=0.1)
        self._port = self._server.socket.getsockname()[1]
        self.url = f"ws://127.0.0.1:{self._port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """As a kill would: every connection is cut."""
        assert self._server is not None
        self._server.shutdown()
        for connection in list(self._open):
            with suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RDWR)

    def forget(self) -> None:
        """As a server does that has no room for blocks any more."""
        self._known.clear()

    def _handle(self, connection: ServerConnection) -> None:
        self._open.add(connection)
        blocks = self._known = {}
        try:
            while True:
                frame = connection.recv()
                assert isinstance(frame, bytes)
                self.raw.append(frame)
                for reply in self._reply(wire.decode_from_client(frame), blocks):
                    connection.send(wire.encode(reply))
        except (ConnectionClosed, ConnectionAbortedError, OSError):
            with suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RDWR)
        finally:
            self._open.discard(connection)

    def _reply(self, message: wire.FromClient, blocks: dict[int, np.ndarray]) -> Iterator[wire.FromServer]:
        if isinstance(message, wire.Hello):
            self.greetings += 1
            yield wire.Welcome(
                wire.PROTOCOL_VERSION,
                self.allowance,
                self.signed.release.owner.raw,
                bytes.fromhex(self.signed.signature.release),
                self.bytes_in_flight,
                self.ahead_tokens,
                self.claims if self.claims is not None else self.held.ranges,
            )
        elif isinstance(message, wire.Ahead):
            self.blocks.append((message.block, bytes(message.p0)))
            blocks[message.block] = planes_of(message.p0)
        else:
            yield self._answer(message, blocks)

    def _answer(self, message: wire.Online, blocks: dict[int, np.ndarray]) -> wire.FromServer:
        try:
            self.before(message)
            matrix = self.groups.get(message.group)
            if matrix is None:
                raise UnknownGroup("This server has other layer groups; ask another one.")
            group = self.signed.manifest.groups[message.group]
            planes = np.frombuffer(message.planes, np.int8).reshape(-1, message.count, group.columns)
            ahead: Ahead | None = None
            if len(planes) == PLANES:
                p0 = planes_of(message.p0) if len(message.p0) else blocks.get(message.block)
                if p0 is None:
                    raise UnknownBlock("This server has no p0 of that block; send it along.")
                if not len(message.p0):
                    p0 = p0[message.first : message.first + message.count]
                ahead = matrix.ahead(p0)
            answer = wire.Answer(wire.payload(matrix.answer(planes, ahead)))
            kept = wire.Online(
                message.group, message.block, message.first, message.count, copied(message.planes), copied(message.p0)
            )
            self.frames.append(kept)
            return self.tamper(message, answer) if self.tamper else answer
        except ConfideError as error:
            return wire.failure(error)


def copied(payload: memoryview) -> memoryview:
    return memoryview(bytes(payload))


def planes_of(p0: memoryview) -> np.ndarray:
    return np.frombuffer(bytes(p0), np.int8).reshape(-1, PLANES, RING_DEGREE)


@contextmanager
def serving(package: Path, groups: Groups | None = None) -> Iterator[FakeServer]:
    server = FakeServer(package, groups)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def values(reply: wire.Answer, message: wire.Online) -> np.ndarray:
    """A copy of an answer's numbers: int32 (count, rows)."""
    return np.frombuffer(reply.values, np.int32).reshape(message.count, -1).copy()


def add_one(message: wire.Online, reply: wire.Answer) -> wire.Answer:
    """The smallest wrong answer there is: one more, in the first output of the first token."""
    numbers = values(reply, message)
    numbers[0, 0] += 4
    return wire.Answer(wire.payload(numbers))


class FromFrame:
    """Cheats once: in the frame of this number, counted from 0."""

    def __init__(self, frame: int, tamper: Tamper = add_one) -> None:
        self._left = frame
        self._tamper = tamper

    def __call__(self, message: wire.Online, reply: wire.Answer) -> wire.Answer:
        self._left -= 1
        return self._tamper(message, reply) if self._left == -1 else reply

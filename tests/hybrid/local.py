"""A client and its server without a network between them, and a server that cheats."""

from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np

from confide.hybrid import wire
from confide.hybrid.client.client import HybridClient
from confide.hybrid.client.connection import LayerConnection
from confide.hybrid.server.service import LayerService, Session
from owners import OWNER

from .twin import TWIN

Tamper = Callable[[wire.Online, wire.Answer], wire.Answer]
"""What a cheating server makes of an honest answer."""


class LocalConnection(LayerConnection):
    """Messages handed to a service by a call. `frames` collects what online frames there were."""

    def __init__(self, service: LayerService, frames: list[wire.Online], tamper: Tamper | None) -> None:
        self.server_seed = service.ledger.server_seed
        self._service = service
        self._session = Session(service)
        self._frames = frames
        self._tamper = tamper
        self._replies: deque[wire.FromServer] = deque()
        hello = wire.Hello(wire.PROTOCOL_VERSION, TWIN.name, service.model_digest, service.table_digest)
        self._session.handle(hello)

    def send(self, message: wire.FromClient) -> None:
        if isinstance(message, wire.OfflineBegin):
            self._offline = self._session.begin_offline(message)
        elif isinstance(message, wire.OfflineRows):
            self._offline.add_rows(message)
            if self._offline.complete:
                self._replies.extend(self._offline.answer())
        else:
            reply = self._session.handle(message)
            if isinstance(message, wire.Online) and isinstance(reply, wire.Answer):
                copied = memoryview(bytes(message.masked))
                self._frames.append(wire.Online(message.pack, message.group, message.first, message.count, copied))
                reply = self._tamper(message, reply) if self._tamper else reply
            self._replies.append(reply)

    def receive(self, kind):  # type: ignore[no-untyped-def]
        reply = self._replies.popleft()
        assert isinstance(reply, kind)
        return reply

    def close(self) -> None:
        pass


class LocalClient(HybridClient):
    """The client of a service in this process. `tamper`: how it cheats; None while it is honest."""

    def __init__(self, folder: Path, service: LayerService, tamper: Tamper | None = None, **options: object) -> None:
        self._service = service
        self.tamper = tamper
        self.frames: list[wire.Online] = []
        super().__init__(folder, "127.0.0.1:1", owner=OWNER.public.raw, patience=0, scheme=TWIN, **options)  # type: ignore[arg-type]

    def _greet(self, silence: float) -> LayerConnection:
        return LocalConnection(self._service, self.frames, lambda *given: (self.tamper or honest)(*given))


def honest(message: wire.Online, reply: wire.Answer) -> wire.Answer:
    return reply


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

"""One client's connection at the layer server: what it may send when, how much, and how long it may be silent."""

import asyncio
import contextlib
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Final

import torch
from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport

from confide.errors import ConfideError, MalformedMessage, ProtocolError, ServerBusy, ServerFault
from confide.hybrid import wire
from confide.hybrid.server.limits import ByteMeter
from confide.hybrid.server.service import OfflineRequest, Session

if TYPE_CHECKING:
    from confide.hybrid.server.server import LayerServer

MAX_INBOX: Final = 2
"""Messages that wait for an earlier one to be dealt with before reading pauses."""
LINGER_SECONDS: Final = 2.0
"""How long what a client still sends is read and dropped after it was told why it is parted with."""

_log = logging.getLogger(__name__)


class Conversation(WSListener):
    """Answers one client. Online requests are admitted as they come; everything else is dealt with in order."""

    def __init__(self, server: "LayerServer") -> None:
        self._server = server
        self._session = Session(server.service)
        self._inbox: deque[wire.FromClient] = deque()
        self._arrival = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._task: asyncio.Task[None] | None = None
        self._meter = ByteMeter(server.limits.bytes_per_second)
        self._answering = 0
        self._parted = False
        self._throttle: asyncio.TimerHandle | None = None
        self._heard_at = self._stuck_since = time.monotonic()
        self._transport: WSTransport

    # -- what the transport calls ------------------------------------------------------------------------------

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport
        transport.underlying_transport.set_write_buffer_limits(wire.MAX_OWED + wire.FRAME_OVERHEAD)
        self._server.conversations.add(self)
        self._server.metrics.connections.inc()
        if sum(not one._parted for one in self._server.conversations) > self._server.limits.connections:
            self._part(ServerBusy("The server has all the connections it takes; try again in a minute."))

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self._server.conversations.discard(self)
        self._server.batcher.forget(self)
        self._server.metrics.connections.dec()
        self._parted = True
        self._writable.set()
        if self._task is not None:
            self._task.cancel()

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        kind = frame.msg_type
        if kind is WSMsgType.CLOSE:
            if not self._parted:
                transport.send_close(frame.get_close_code(), b"")
            transport.disconnect()
            return
        if self._parted:
            return
        self._limit_rate(frame.payload_size)
        if kind in (WSMsgType.PING, WSMsgType.PONG):
            return
        if self._session.greeted:  # nothing else counts before the greeting is in
            self._heard_at = time.monotonic()
        try:
            self._take(_decode(frame))
        except ConfideError as error:
            self._part(error)
        except Exception:  # noqa: BLE001 - one client's trouble must not reach the others
            self._fail()

    def pause_writing(self) -> None:
        self._writable.clear()
        self._stuck_since = time.monotonic()
        self._pause_reading()

    def resume_writing(self) -> None:
        self._writable.set()
        self._resume_reading()

    # -- reading -----------------------------------------------------------------------------------------------

    def _limit_rate(self, size: int) -> None:
        self._server.metrics.bytes_received.inc(size)
        pause = self._meter.pause(size)
        if pause > 0:
            self._pause_reading()
            if self._throttle is not None:
                self._throttle.cancel()
            self._throttle = asyncio.get_running_loop().call_later(pause, self._end_throttle)

    def _end_throttle(self) -> None:
        self._throttle = None
        self._resume_reading()

    def _pause_reading(self) -> None:
        with contextlib.suppress(RuntimeError):  # closing already
            self._transport.underlying_transport.pause_reading()

    def _resume_reading(self) -> None:
        ready = self._writable.is_set() and self._throttle is None and len(self._inbox) < MAX_INBOX
        if ready and not self._parted:
            with contextlib.suppress(RuntimeError):
                self._transport.underlying_transport.resume_reading()

    def _take(self, message: wire.FromClient) -> None:
        if isinstance(message, wire.Online) and self._task is None:
            self._answer(message)
            return
        self._inbox.append(message)
        self._arrival.set()
        if len(self._inbox) >= MAX_INBOX:
            self._pause_reading()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._deal_with_inbox())

    # -- dealing with messages ---------------------------------------------------------------------------------

    async def _deal_with_inbox(self) -> None:
        try:
            while self._inbox:
                await self._deal_with(self._next())
        except TimeoutError:
            self._part(ProtocolError("The client was silent for too long; connect again."))
        except ConfideError as error:
            self._part(error)
        except Exception:  # noqa: BLE001 - one client's trouble must not reach the others
            self._fail()
        finally:
            self._task = None

    def _next(self) -> wire.FromClient:
        message = self._inbox.popleft()
        self._resume_reading()
        return message

    async def _deal_with(self, message: wire.FromClient) -> None:
        match message:
            case wire.OfflineBegin():
                _ = self._session.account  # greeted, before a place is taken
                async with self._server.offline_slots:
                    await self._offline(message)
            case wire.Online():
                self._answer(message)
            case wire.Hello():
                welcome = self._session.handle(message)
                self._require_place()
                self._send(welcome)
                self._log("greeted")
            case _:
                self._reply(message)

    def _require_place(self) -> None:
        account = self._session.account
        present = [one for one in self._server.conversations if one._session.greeted and not one._parted]
        same = sum(one._session.account is account for one in present)
        if same > self._server.limits.connections_per_licence:
            raise ServerBusy("The licence has all the connections it may have; close one, or try again in a minute.")

    def _reply(self, message: wire.FromClient) -> None:
        try:
            self._send(self._session.handle(message))
        except MalformedMessage:
            raise
        except ConfideError as error:
            self._refuse(error)

    def _answer(self, message: wire.Online) -> None:
        account = self._session.account
        started = time.perf_counter()
        try:
            admitted = self._server.service.admit(account, message)
        except MalformedMessage:
            raise
        except ConfideError as error:  # the client may go on: nothing of its stream was lost
            self._refuse(error)
            return

        def deliver(answer: wire.Answer | ServerFault) -> None:
            self._answering -= 1
            if isinstance(answer, ServerFault):
                self._part(answer)
                return
            self._send(answer)
            metrics = self._server.metrics
            metrics.answers.inc()
            metrics.tokens.inc(message.count)
            metrics.seconds.observe(time.perf_counter() - started)

        self._answering += 1
        self._server.batcher.add(self, message.group, admitted, deliver)

    async def _offline(self, begin: wire.OfflineBegin) -> None:
        server = self._server
        request = await server.offline(self._session.begin_offline, begin)
        while not request.complete:
            message = await self._next_of_request()
            if not isinstance(message, wire.OfflineRows):
                raise MalformedMessage("An offline request was interrupted by another message; prepare it again.")
            await server.offline(request.add_rows, message)
        await self._send_blocks(request)
        server.metrics.offline.inc()
        self._log("prepared", pack=begin.pack.hex()[:8], layer_group=begin.group)

    async def _next_of_request(self) -> wire.FromClient:
        async with asyncio.timeout(self._server.limits.rows_seconds):
            while not self._inbox:
                self._arrival.clear()
                await self._arrival.wait()
        return self._next()

    async def _send_blocks(self, request: OfflineRequest) -> None:
        """Send an offline answer, computing the next block while the last one is on its way."""
        blocks = request.answer()

        @torch.inference_mode()
        def next_frame() -> bytes | None:
            block = next(blocks, None)
            return wire.encode(block) if block is not None else None

        frame = await self._server.offline(next_frame)
        while frame is not None:
            upcoming = asyncio.ensure_future(self._server.offline(next_frame))
            try:
                self._transport.send(WSMsgType.BINARY, frame)
                await self._writable.wait()
            finally:
                frame = await upcoming

    def _log(self, event: str, **fields: str | int) -> None:
        """A line for the operator: who, by the licence's public id, and what kind of thing happened."""
        licence = self._session.account.licence.id.hex() if self._session.greeted else None
        _log.info("client %s", event, extra={"fields": {"licence": licence} | fields})

    # -- writing and parting -----------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether something is being dealt with."""
        return self._task is not None or self._answering > 0

    def _send(self, message: wire.FromServer) -> None:
        if not self._parted:
            self._transport.send(WSMsgType.BINARY, wire.encode(message))

    def _refuse(self, error: ConfideError) -> None:
        self._server.metrics.refusals.labels(error.code).inc()
        self._send(wire.failure(error))

    def _part(self, error: ConfideError) -> None:
        if self._parted:
            return
        self._refuse(error)
        self._log("parted with", code=error.code)
        self._parted = True
        self._transport.send_close(WSCloseCode.POLICY_VIOLATION, error.code)
        # Closing a socket with unread data resets the connection, and the client would never read why.
        self._resume_reading_to_the_end()
        asyncio.get_running_loop().call_later(LINGER_SECONDS, self._transport.disconnect)

    def _resume_reading_to_the_end(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._transport.underlying_transport.resume_reading()

    def _fail(self) -> None:
        _log.exception("A connection failed inside the server")
        self._part(ServerFault("The server failed inside; ask its operator to look at its log."))

    def say_goodbye(self) -> None:
        """The server is about to stop."""
        self._parted = True
        self._transport.send_close(WSCloseCode.SERVICE_RESTART, b"")
        self._transport.disconnect()

    def part_if_silent(self) -> None:
        """Let a client go that has not greeted, has said nothing for long, or does not read its answers."""
        now = time.monotonic()
        limits = self._server.limits
        if not self._writable.is_set() and now - self._stuck_since > limits.write_seconds:
            self._parted = True
            self._transport.disconnect(graceful=False)
        elif not self.busy and now - self._heard_at > self._patience():
            self._part(ProtocolError("The client was silent for too long; connect again."))

    def _patience(self) -> float:
        limits = self._server.limits
        return limits.idle_seconds if self._session.greeted else limits.greeting_seconds


def _decode(frame: WSFrame) -> wire.FromClient:
    if frame.msg_type is WSMsgType.TEXT:
        raise MalformedMessage("A text frame arrived where the protocol has only binary ones; use a Confide client.")
    if frame.msg_type is not WSMsgType.BINARY or not frame.fin:
        raise MalformedMessage("A message arrived in pieces where the protocol sends whole ones; use a Confide client.")
    return wire.decode_from_client(frame.get_payload_as_bytes())

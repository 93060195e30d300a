"""One client's connection at the layer server: what it may send when, how much, and how long it may be silent."""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport

from confide.errors import ConfideError, MalformedMessage, ProtocolError, ServerBusy, ServerFault
from confide.hybrid import wire
from confide.hybrid.server.doorman import Doorman
from confide.hybrid.server.limits import ByteMeter, Cost, Credit, Limits
from confide.ledger.usage import Account

if TYPE_CHECKING:
    from confide.hybrid.server.server import HostedModel, LayerServer

WRITE_BUFFER: Final = 2 << 20
"""Bytes of answers that a client leaves unread before the server stops reading from it."""
LINGER_SECONDS: Final = 2.0
"""How long what a client still sends is read and dropped after it was told why it is parted with."""

_log = logging.getLogger(__name__)


class Licensee:
    """What all connections of one licence share, whatever model they are for."""

    def __init__(self, limits: Limits) -> None:
        self.peers: set[Peer] = set()
        self.credit = Credit(
            limits.licence_credit * limits.bytes_in_flight, limits.licence_credit * limits.work_in_flight
        )

    def go_on(self) -> None:
        """There is credit again, for whichever connection waits for it."""
        for peer in list(self.peers):
            peer.go_on()


@dataclass(eq=False)
class _Place:
    """Where an answer will be in the order of answers. frame: once it is there."""

    frame: bytes | None = None


class Peer(WSListener):
    """Answers one client. Requests are charged as they come, and wait unread while their licence has no credit."""

    def __init__(self, server: "LayerServer", model: "HostedModel") -> None:
        self._server = server
        self._model = model
        self.licensee: Licensee | None = None
        self._account: Account
        self._blocks = model.blocks(self._may_work_ahead)
        self._credit: Credit
        self._inbox: deque[wire.FromClient] = deque()
        self._places: deque[_Place] = deque()
        self._flying: dict[_Place, Cost] = {}
        self._writable = True
        self._reading = True
        self._going_on = False
        self._meter = ByteMeter(server.limits.bytes_per_second)
        self._throttle: asyncio.TimerHandle | None = None
        self._parted = False
        self._heard_at = self._stuck_since = time.monotonic()
        self._key_hash = b""
        self._errand: asyncio.Future[object] | None = None
        self._transport: WSTransport
        self._doorman: Doorman

    # -- what the transport calls ------------------------------------------------------------------------------

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport
        self._doorman = Doorman(transport.underlying_transport)
        transport.underlying_transport.set_write_buffer_limits(WRITE_BUFFER)
        self._server.peers.add(self)
        self._server.metrics.connections.inc()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self._parted = True
        self._server.peers.discard(self)
        self._server.metrics.connections.dec()
        self._let_go()

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
        if self.licensee is not None:  # nothing else counts before the greeting is in
            self._heard_at = time.monotonic()
        try:
            if self.licensee is None and frame.payload_size > wire.MAX_GREETING:
                raise MalformedMessage("The first message is larger than a greeting; connect with a Confide client.")
            message = _decode(frame)
            if self._inbox or not self._deal_with(message):
                self._keep_for_later(message)
        except ConfideError as error:
            self._part(error)
        except Exception:  # noqa: BLE001 - one client's trouble must not reach the others
            self._fail()

    def pause_writing(self) -> None:
        self._writable = False
        self._stuck_since = time.monotonic()
        self._pause_reading()

    def resume_writing(self) -> None:
        self._writable = True
        self.go_on()

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
        self._reading = False
        with contextlib.suppress(RuntimeError):  # closing already
            self._transport.underlying_transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._reading or self._inbox or not self._writable or self._throttle is not None:
            return
        self._reading = True
        if not self._parted:
            with contextlib.suppress(RuntimeError):
                self._transport.underlying_transport.resume_reading()

    def _keep_for_later(self, message: wire.FromClient) -> None:
        """Keep a message that was read before reading could stop: there is at most a buffer full of them."""
        self._inbox.append(message)
        self._pause_reading()

    def go_on(self) -> None:
        """Deal with what waits, as far as there is credit."""
        if self._going_on:  # an answer that was given at once gave its credit back
            return
        self._going_on = True
        try:
            while self._inbox and self._deal_with(self._inbox[0]):
                if self._inbox:  # not parted with meanwhile
                    self._inbox.popleft()
        except ConfideError as error:
            self._part(error)
        except Exception:  # noqa: BLE001 - one client's trouble must not reach the others
            self._fail()
        finally:
            self._going_on = False
        self._resume_reading()

    # -- dealing with messages ---------------------------------------------------------------------------------

    def _deal_with(self, message: wire.FromClient) -> bool:
        """Whether it was dealt with; not where it waits for credit, for the ledger, or for answers to be read."""
        match message:
            case wire.Online():
                return self._answer(message)
            case wire.Ahead():
                return self._work_ahead(message)
            case wire.Hello():
                return self._greet(message)

    def _asked_of_ledger(self, ask: Callable[[], object]) -> bool:
        """Whether a thread has asked the ledger, whose database takes longer than the event loop may stand still.

        Where it has not, it is begun, and the message is dealt with again once it is done. Raises what asking raised.
        """
        if self._errand is None:
            loop = asyncio.get_running_loop()
            self._errand = loop.run_in_executor(self._server.ledger_worker, ask)
            self._errand.add_done_callback(self._end_errand)
        if not self._errand.done():
            return False
        errand, self._errand = self._errand, None
        errand.result()
        return True

    def _end_errand(self, errand: asyncio.Future[object]) -> None:
        if not errand.cancelled():
            errand.exception()  # known, also where the client has gone and nobody asks for it
        self.go_on()

    def _require_greeted(self) -> Licensee:
        if self.licensee is None:
            raise ProtocolError("The first message must be a greeting; connect with a Confide client.")
        return self.licensee

    def _greet(self, message: wire.Hello) -> bool:
        if self.licensee is not None:
            raise ProtocolError("A connection is greeted once; open another one for another licence.")
        server, limits = self._server, self._server.limits

        def authenticate() -> None:
            self._account = self._model.service.authenticate(message)

        if not self._asked_of_ledger(authenticate):
            return False
        account = self._account
        self._key_hash = account.licence.key_hash
        licensee = server.licensee(account)
        if len(licensee.peers) >= limits.connections_per_licence:
            raise ServerBusy("The licence has all the connections it may have; close one, or try again in a minute.")
        self.licensee = licensee
        licensee.peers.add(self)
        self._credit = Credit(limits.bytes_in_flight, limits.work_in_flight, licensee.credit)
        self._doorman.leave()
        self._heard_at = time.monotonic()
        self._send(
            self._model.service.welcome(
                account, bytes_in_flight=limits.bytes_in_flight, ahead_tokens=self._model.p0_tokens
            )
        )
        self._log("greeted")
        return True

    def _work_ahead(self, message: wire.Ahead) -> bool:
        """Take a block in, where the licence and the room allow it; else its requests will have to bring their p0."""
        self._require_greeted()
        account, ledger = self._account, self._server.ledger
        ready = self._errand is None and ledger.ready(account)
        if not ready and not self._asked_of_ledger(ledger.refresh):
            return False
        ledger.require_key(account, self._key_hash)
        block = self._model.service.block(message)
        left = account.tokens_left
        self._blocks.add(message.block, block, work=left is None or block.tokens <= left)
        return True

    def _may_work_ahead(self, tokens: int) -> bool:
        return self._model.allowance(self._account.licence.id).take(tokens)

    def _answer(self, message: wire.Online) -> bool:
        licensee, server, model = self._require_greeted(), self._server, self._model
        cost = model.service.cost(message)
        if not self._writable or not self._credit.has(cost):
            return False
        account = self._account
        started = time.perf_counter()
        used = account.used
        place, block = _Place(), self._blocks.get(message.block)
        self._places.append(place)
        try:
            ready = self._errand is None and model.service.ready(account, message)
            prepare = partial(model.service.prepare, account, message, block, self._key_hash)
            if not ready and not self._asked_of_ledger(prepare):
                self._places.pop()
                return False
            server.ledger.require_key(account, self._key_hash)
            admitted = model.service.admit(account, message, block)
        except MalformedMessage:
            raise
        except ConfideError as error:  # the client may go on: nothing of its stream was lost
            server.metrics.refusals.labels(error.code).inc()
            self._fill(place, wire.failure(error))
            return True
        model.allowance(account.licence.id).used(account.used - used)
        self._blocks.spend(message.block, message.group, message.first + message.count)
        if admitted.lease_is_low:
            server.renew(account)
        self._credit.take(cost)
        self._flying[place] = cost

        def deliver(answer: wire.Answer | ServerFault) -> None:
            if self._flying.pop(place, None) is None:
                return  # the client has gone meanwhile
            self._credit.give_back(cost)
            if isinstance(answer, ServerFault):
                self._part(answer)
            else:
                self._fill(place, answer)
                server.metrics.answers.inc()
                server.metrics.tokens.inc(message.count)
                server.metrics.seconds.observe(time.perf_counter() - started)
            licensee.go_on()

        model.batcher.add(self, message.group, admitted, deliver)
        return True

    def _log(self, event: str, **fields: str | int) -> None:
        """A line for the operator: who, by the licence's public id, and what kind of thing happened."""
        licence = self._account.licence.id.hex() if self.licensee is not None else None
        _log.info("client %s", event, extra={"fields": {"licence": licence} | fields})

    # -- writing and parting -----------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether the client waits for an answer."""
        return bool(self._places or self._inbox) and not self._parted

    def _fill(self, place: _Place, message: wire.FromServer) -> None:
        """Send an answer, once all that were asked for before it have been sent."""
        place.frame = wire.encode(message)
        while self._places and (frame := self._places[0].frame) is not None:
            self._places.popleft()
            if not self._parted:
                self._transport.send(WSMsgType.BINARY, frame)

    def _send(self, message: wire.FromServer) -> None:
        if not self._parted:
            self._transport.send(WSMsgType.BINARY, wire.encode(message))

    def _let_go(self) -> None:
        """Drop all that is kept for the client."""
        self._inbox.clear()
        self._blocks.clear()
        self._places.clear()
        self._model.batcher.forget(self)
        if self.licensee is not None:
            self.licensee.peers.discard(self)
            while self._flying:
                self._credit.give_back(self._flying.popitem()[1])
            self.licensee.go_on()

    def _part(self, error: ConfideError) -> None:
        if self._parted:
            return
        self._server.metrics.refusals.labels(error.code).inc()
        self._send(wire.failure(error))
        self._log("parted with", code=error.code)
        self._parted = True
        self._let_go()
        self._transport.send_close(WSCloseCode.POLICY_VIOLATION, error.code)
        # Closing a socket with unread data resets the connection, and the client would never read why.
        with contextlib.suppress(RuntimeError):
            self._transport.underlying_transport.resume_reading()
        asyncio.get_running_loop().call_later(LINGER_SECONDS, self._transport.disconnect)

    def _fail(self) -> None:
        _log.exception("A connection failed inside the server")
        self._part(ServerFault("The server failed inside; ask its operator to look at its log."))

    def say_goodbye(self) -> None:
        """The server is about to stop."""
        self._parted = True
        self._let_go()
        self._transport.send_close(WSCloseCode.SERVICE_RESTART, b"")
        self._transport.disconnect()

    def part_if_silent(self) -> None:
        """Let a client go that has not greeted, has said nothing for long, or does not read its answers."""
        now = time.monotonic()
        limits = self._server.limits
        patience = limits.idle_seconds if self.licensee is not None else limits.greeting_seconds
        if not self._writable and now - self._stuck_since > limits.write_seconds:
            self._parted = True
            self._transport.disconnect(graceful=False)
        elif not self.busy and now - self._heard_at > patience:
            self._part(ProtocolError("The client was silent for too long; connect again."))


def _decode(frame: WSFrame) -> wire.FromClient:
    if frame.msg_type is WSMsgType.TEXT:
        raise MalformedMessage("A text frame arrived where the protocol has only binary ones; use a Confide client.")
    if frame.msg_type is not WSMsgType.BINARY or not frame.fin:
        raise MalformedMessage("A message arrived in pieces where the protocol sends whole ones; use a Confide client.")
    return wire.decode_from_client(frame.get_payload_as_bytes())

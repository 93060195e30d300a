"""The client's end of the wire: a WebSocket over one blocking socket, without threads or an event loop.

A decoded token crosses the network once for every layer group, so a round trip must cost little: the sans-I/O
protocol of `websockets` on a plain socket takes about half of what its threaded client does.
"""

import contextlib
import socket
from collections import deque
from types import TracebackType
from typing import Self, TypeVar

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidState
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from confide.errors import ConnectionLost, InsecureConnection, MalformedMessage
from confide.hybrid import wire
from confide.hybrid.address import is_loopback, websocket_url
from confide.models.seal import Release

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 600.0
_READ_BYTES = 1 << 20

Reply = TypeVar("Reply", bound=wire.FromServer)


class LayerConnection:
    """A greeted connection to a layer server. One thread at a time.

    Raises ConnectionLost where the server cannot be reached, InsecureConnection where it is not on this machine and
    `insecure_no_tls` is not set, what the server reports as the error it is, and UntrustedOwner or ModelMismatch
    where it does not present the release that is asked for.
    """

    def __init__(
        self,
        url: str,
        *,
        scheme: str,
        release: Release,
        licence: str = "",
        insecure_no_tls: bool = False,
    ) -> None:
        uri = parse_uri(websocket_url(url))
        if not is_loopback(uri.host) and not insecure_no_tls:
            raise InsecureConnection(
                f"{uri.host} is another machine and the connection would be plain; use a tunnel to a loopback port, "
                "or insecure_no_tls on a network you trust."
            )
        self.url = url
        self._events: deque[object] = deque()
        self._protocol = ClientProtocol(uri, max_size=wire.MAX_FRAME + wire.FRAME_OVERHEAD)
        try:
            self._socket = socket.create_connection((uri.host, uri.port), timeout=CONNECT_SECONDS)
        except OSError as error:
            raise ConnectionLost(
                f"No layer server answers at {url} ({error.strerror or error}); start one with `confide serve`."
            ) from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self._upgrade()
            self._socket.settimeout(ANSWER_SECONDS)
            greeting = wire.Hello(wire.PROTOCOL_VERSION, scheme, release.model_digest, release.table_digest, licence)
            welcome = self.request(greeting, wire.Welcome)
            release.require_signed(welcome.owner, welcome.release)
            self.server_seed = welcome.server_seed
            self.tokens_left = welcome.tokens_left
        except BaseException:
            self._socket.close()
            raise

    def _upgrade(self) -> None:
        self._protocol.send_request(self._protocol.connect())
        self._flush()
        while self._protocol.state is State.CONNECTING and self._protocol.handshake_exc is None:
            self._read()
        if self._protocol.handshake_exc is not None:
            raise ConnectionLost(f"What answers at {self.url} is not a layer server; check the address.")
        self._events.popleft()  # the handshake's response

    def send(self, message: wire.FromClient) -> None:
        """Send one message. Where the server has hung up, the reason it gave is raised."""
        try:
            self._protocol.send_binary(wire.encode(message))
            self._flush()
        except (ConnectionLost, InvalidState):
            while True:  # ends in ConnectionLost at the latest
                parting = wire.decode_from_server(self._next_frame())
                if isinstance(parting, wire.Failure):
                    wire.raise_failure(parting)

    def receive(self, kind: type[Reply]) -> Reply:
        """The next message, which must be of this kind; a Failure is raised as the error it reports."""
        message = wire.decode_from_server(self._next_frame())
        if isinstance(message, wire.Failure):
            wire.raise_failure(message)
        if not isinstance(message, kind):
            raise MalformedMessage(f"The server sent a {type(message).__name__} out of turn; connect again.")
        return message

    def request(self, message: wire.FromClient, kind: type[Reply]) -> Reply:
        """Send a message and receive its reply."""
        self.send(message)
        return self.receive(kind)

    def _next_frame(self) -> bytes:
        fragments: list[bytes] = []
        while True:
            while self._events:
                event = self._events.popleft()
                if not isinstance(event, Frame) or event.opcode is Opcode.TEXT:
                    raise MalformedMessage("The server sent text where the protocol has only binary frames.")
                if event.opcode in (Opcode.BINARY, Opcode.CONT):
                    fragments.append(bytes(event.data))
                    if event.fin:
                        return fragments[0] if len(fragments) == 1 else b"".join(fragments)
            self._read()

    def _read(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
        except TimeoutError as error:
            raise ConnectionLost(f"The server at {self.url} does not answer; try again later.") from error
        except OSError as error:
            raise self._lost() from error
        if not data:
            self._protocol.receive_eof()
            raise self._lost()
        self._protocol.receive_data(data)
        self._events.extend(self._protocol.events_received())
        self._flush()  # answers to pings

    def _lost(self) -> ConnectionLost:
        closed = self._protocol.close_rcvd
        if closed is not None and closed.code == 1009:
            return ConnectionLost(
                "The server refused an oversized frame; use the same version of Confide on both sides."
            )
        return ConnectionLost(f"The connection to {self.url} broke; start again, nothing that was sent is reused.")

    def _flush(self) -> None:
        try:
            for data in self._protocol.data_to_send():
                if data:
                    self._socket.sendall(data)
        except OSError as error:
            raise self._lost() from error

    def close(self) -> None:
        """Say goodbye and close the socket."""
        with contextlib.suppress(ConnectionLost, InvalidState):
            self._protocol.send_close()
            self._flush()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

"""The client's end of the wire: a WebSocket over one blocking socket, without threads or an event loop.

A decoded token crosses the network once for every layer group, so a round trip must cost little: the sans-I/O
protocol of `websockets` on a plain socket takes about half of what its threaded client does.
"""

import contextlib
import socket
import ssl
import time
from collections import Counter, deque
from collections.abc import Container
from http import HTTPStatus
from typing import TypeVar

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidState, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.protocol import State

from confide.errors import (
    ConnectionLost,
    InvalidPlacement,
    MalformedMessage,
    ServerBusy,
    ServerSilent,
    UntrustedCertificate,
)
from confide.hybrid import wire
from confide.hybrid.client.dial import Dial
from confide.hybrid.closing import Closing
from confide.hybrid.groups import Groups
from confide.logs import quiet_logger
from confide.net.http_proxy import HttpProxy
from confide.packages.owner import OwnerPublicKey
from confide.packages.signing import Release

CONNECT_SECONDS = 10.0
GOODBYE_SECONDS = 1.0
_READ_BYTES = 1 << 20
_TLS_RECORD = 1 << 14
"""What one read of a TLS socket gives at most; room for more would be allocated in vain, at half the throughput."""
_PING = b"there?"

Reply = TypeVar("Reply", bound=wire.FromServer)


class LayerConnection(Closing):
    """A greeted connection to a layer server. One thread at a time.

    welcome: what the server said of itself and of the licence. groups: the layer groups that it says it has. asked:
    tokens of each layer group that it was asked for since. Raises ConnectionLost where the server cannot be reached,
    ServerSilent where it stops answering, UntrustedCertificate where it cannot prove who it is, UntrustedOwner or
    ModelMismatch where it does not present the release that is asked for, and what the server reports as the error it
    is.
    """

    def __init__(self, dial: Dial, release: Release, same_owner: Container[OwnerPublicKey] = ()) -> None:
        uri = dial.uri
        self.url = dial.url
        self.asked: Counter[int] = Counter()
        self._events: deque[object] = deque()
        self._silence = dial.silence
        self._protocol = ClientProtocol(
            uri, max_size=wire.MAX_FRAME + wire.FRAME_OVERHEAD, logger=quiet_logger("client.frames")
        )
        self._read_bytes = _TLS_RECORD if uri.secure else _READ_BYTES
        self._socket = _connect(self.url, uri.host, uri.port, dial.http_proxy)
        try:
            if uri.secure:
                self._socket = _secure(self._socket, dial.trust, self.url, uri.host)
            self._upgrade()
            self._socket.settimeout(self._silence)
            self.welcome = self.request(
                wire.Hello(
                    wire.PROTOCOL_VERSION, wire.SCHEME, release.model_digest, release.table_digest, dial.licence
                ),
                wire.Welcome,
            )
            release.require_signed(self.welcome.owner, self.welcome.release, same_owner)
            self.groups = _groups(self.welcome)
        except BaseException:
            self._socket.close()
            raise

    def _upgrade(self) -> None:
        self._protocol.send_request(self._protocol.connect())
        self._flush()
        try:
            while self._protocol.state is State.CONNECTING and self._protocol.handshake_exc is None:
                self._read()
        except ServerSilent:
            raise
        except ConnectionLost as error:
            raise ConnectionLost(
                f"What answers at {self.url} hangs up at once; check the address, which starts with wss:// where the "
                "server has TLS."
            ) from error
        refusal = self._protocol.handshake_exc
        if isinstance(refusal, InvalidStatus) and refusal.response.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
            raise ServerBusy("The server has all the connections it takes, or is stopping; try again in a minute.")
        if refusal is not None:
            raise ConnectionLost(
                f"What answers at {self.url} is not a layer server, or has no model by that name, or has several and "
                "one must be named (wss://host:port/name); check the address."
            ) from refusal
        self._events.popleft()  # the handshake's response

    def send(self, message: wire.FromClient) -> None:
        """Send one message. Where the server has hung up, the reason it gave is raised."""
        try:
            self._protocol.send_binary(wire.encode(message))
            self._flush()
        except ServerSilent:
            raise
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

    def ping(self) -> None:
        """Return if the server is still there, while it owes nothing. Where it has hung up, the reason is raised."""
        try:
            self._protocol.send_ping(_PING)
            self._flush()
        except InvalidState as error:
            raise self._lost() from error
        until = time.monotonic() + self._silence  # before the pong there may be pings of the server's own
        while time.monotonic() < until:
            while self._events:
                event = self._events.popleft()
                if not isinstance(event, Frame) or event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                    raise MalformedMessage("The server sent something that it was not asked for; connect again.")
                if event.opcode is Opcode.PONG and event.data == _PING:
                    return
            if self._protocol.parser_exc is not None or self._protocol.close_rcvd is not None:
                break
            self._read()
        raise self._lost()

    def _next_frame(self) -> bytes:
        while True:
            while self._events:
                event = self._events.popleft()
                if not isinstance(event, Frame) or event.opcode is Opcode.TEXT:
                    raise MalformedMessage("The server sent text where the protocol has only binary frames.")
                if event.opcode is Opcode.BINARY and event.fin:
                    return bytes(event.data)
                if event.opcode in (Opcode.BINARY, Opcode.CONT):
                    # Of pieces there could be infinitely many, all of them empty.
                    raise MalformedMessage("The server sent a message in pieces where the protocol has whole ones.")
            if self._protocol.parser_exc is not None or self._protocol.close_rcvd is not None:
                raise self._lost()  # whatever else arrives would be dropped, for as long as the server likes
            self._read()

    def _read(self) -> None:
        try:
            data = self._socket.recv(self._read_bytes)
        except OSError as error:
            raise self._lost(error) from error
        if not data:
            self._protocol.receive_eof()
            raise self._lost()
        self._protocol.receive_data(data)
        self._events.extend(self._protocol.events_received())
        self._flush()  # answers to pings

    def _lost(self, error: OSError | None = None) -> ConnectionLost:
        if isinstance(error, TimeoutError):
            return ServerSilent(f"The server at {self.url} does not answer; try again later.")
        closed = self._protocol.close_rcvd
        if closed is not None and closed.code == 1009:
            return ConnectionLost(
                "The server refused an oversized frame; use the same version of Confide on both sides."
            )
        return ConnectionLost(f"The connection to {self.url} broke; start again, nothing that was sent is reused.")

    def _flush(self) -> None:
        try:
            for data in self._protocol.data_to_send():
                rest = memoryview(data)
                while rest:  # not sendall, whose time limit is one for the whole frame
                    rest = rest[self._socket.send(rest) :]
        except OSError as error:
            raise self._lost(error) from error

    def close(self) -> None:
        """Say goodbye and close the socket."""
        with contextlib.suppress(ConnectionLost, InvalidState, OSError):
            self._socket.settimeout(GOODBYE_SECONDS)
            self._protocol.send_close()
            self._flush()
        self._socket.close()


def _groups(welcome: wire.Welcome) -> Groups:
    try:
        return Groups(welcome.groups)
    except InvalidPlacement as error:
        raise MalformedMessage("The server's greeting names no layer groups in their form; connect again.") from error


def _connect(url: str, host: str, port: int, proxy: HttpProxy | None) -> socket.socket:
    try:
        if proxy is not None:
            connected = proxy.connect(host, port, CONNECT_SECONDS)
            connected.settimeout(CONNECT_SECONDS)
        else:
            connected = socket.create_connection((host, port), timeout=CONNECT_SECONDS)
    except (OSError, UnicodeError) as error:  # the latter for what can be no host name
        kind = ServerSilent if isinstance(error, TimeoutError) else ConnectionLost
        reason = getattr(error, "strerror", None) or error
        raise kind(f"No layer server answers at {url} ({reason}); start one with `confide serve`.") from error
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected


def _secure(plain: socket.socket, trust: ssl.SSLContext, url: str, host: str) -> ssl.SSLSocket:
    """The socket under TLS, once its certificate and host name are proved."""
    try:
        return trust.wrap_socket(plain, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        raise UntrustedCertificate(
            f"{host} could not prove that it is {host} ({error.verify_message.rstrip('.')}); "
            "give the authority of its certificate with --ca, write a host name that is in the certificate, "
            "or have its operator make a new one."
        ) from error
    except TimeoutError as error:
        raise ServerSilent(f"The server at {url} does not answer; try again later.") from error
    except OSError as error:
        raise ConnectionLost(
            f"What answers at {url} does not speak TLS; check the address, and that the server has --tls-cert."
        ) from error

"""An application on a port, until it is told to stop. Whoever is silent, slow or too many is parted with."""

import asyncio
import contextlib
import errno
import signal
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, Final, Literal

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from confide.net.connections import Connection, Connections, room_for, unavailable
from confide.net.vsock import VSOCK, spelled

CONNECTIONS: Final = 4096
_HEADER_BYTES: Final = 32 << 10
HEADER_SECONDS: Final = 20.0
"""For TLS, and again for the head of the first request, to arrive."""
KEEP_ALIVE_SECONDS: Final = 30
"""From an answer to the whole head of the next request."""
_WRITE_SECONDS: Final = 30.0
"""For a client to take what is on its way to it: some 50 KB."""
_DRAIN_SECONDS: Final = 30
_PRIVATE_CONNECTIONS: Final = 16
_BACKLOG: Final = 4096
_ACCEPT_AGAIN_SECONDS: Final = 0.1


def bind(host: str, port: int) -> socket.socket:
    """A socket for `serve_app`, which does not listen yet. AddressUnavailable.

    host: an address, or `vsock` for virtual sockets. port: 0 takes a free one.
    """
    if host == VSOCK:
        return _bind_vsock(port)
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if bound.family is socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise unavailable(host, port, error) from error
    return bound


def _bind_vsock(port: int) -> socket.socket:
    try:
        bound = socket.socket(socket.AF_VSOCK)
        bound.bind((socket.VMADDR_CID_ANY, port or socket.VMADDR_PORT_ANY))
    except (OSError, AttributeError) as error:
        refused = error if isinstance(error, OSError) else OSError(errno.EAFNOSUPPORT, "this system has none")
        raise unavailable(VSOCK, port, refused) from error
    return bound


async def _nothing() -> None:
    """There is nothing to do first."""


def serve_app(
    app: ASGIApp,
    bound: socket.socket,
    tls: ssl.SSLContext | None,
    ready: Callable[[str], None],
    *,
    before: Callable[[], Awaitable[None]] = _nothing,
    connections: int = CONNECTIONS,
    private: tuple[ASGIApp, socket.socket] | None = None,
    forwarded: bool = True,
) -> None:
    """Serve until SIGINT or SIGTERM; answers in progress then have half a minute to end. Closes the socket.

    ready: called with the address once clients can connect. before: what must have succeeded by then, in the event loop
    that serves; what it raises is raised here. connections: at a time. private: another application, without TLS, on
    another socket, which is closed too. forwarded: see `configuration`.
    """
    with bound, private[1] if private else contextlib.nullcontext():
        host, port = bound.getsockname()[:2]
        virtual = isinstance(host, int)
        named = VSOCK if virtual else f"[{host}]" if ":" in host else host
        url = f"{'https' if tls else 'http'}://{named}:{port}"
        config = configuration(app, tls, forwarded=forwarded, loop="asyncio" if virtual else "uvloop")
        server = Server(config, lambda: ready(url), before, connections)
        if private:
            server.add(private[0], private[1])
        server.run([bound])


def configuration(
    app: ASGIApp,
    tls: ssl.SSLContext | None,
    *,
    forwarded: bool = True,
    loop: Literal["uvloop", "asyncio"] = "uvloop",
) -> uvicorn.Config:
    """uvicorn's settings: nothing that is asked reaches a log, and nobody holds a connection for long with nothing.

    forwarded: whether a gateway on this machine says with X-Forwarded-For whom a request is from, for fair shares.
    loop: uvloop takes no virtual sockets.
    """
    return uvicorn.Config(
        app,
        loop=loop,
        http=Patient,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="info",  # below that, uvicorn would log addresses with their queries
        access_log=False,
        proxy_headers=forwarded,
        forwarded_allow_ips=["127.0.0.1", "::1"],
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
        h11_max_incomplete_event_size=_HEADER_BYTES,
        ssl_context_factory=(lambda _config, _default: tls) if tls else None,
    )


class Patient(H11Protocol):
    """uvicorn's connection, with an end to its patience: a request's head, and taking an answer, have their time.

    connection: how it is counted, where it is. peer: host and port of who is at its other end.
    """

    connection: Connection | None = None
    peer: tuple[str, int] | None = None
    head_seconds = HEADER_SECONDS
    write_seconds = _WRITE_SECONDS

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._silence: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self.client = self.peer or self.client
        if self.connection:
            self.connection.close = self.transport.abort
        self._wait_for_head(self.head_seconds)

    def handle_events(self) -> None:
        """Something came."""
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._cancel_timers()
            if self.connection:
                self.connection.speak()

    def on_response_complete(self) -> None:
        """An answer has ended."""
        closing = self.transport.is_closing()
        self._wait_for_head(self.write_seconds if closing else self.timeout_keep_alive + 1)
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The client takes no more."""
        super().pause_writing()
        self._stuck = self._stuck or self.loop.call_later(self.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """It has taken most of it."""
        super().resume_writing()
        if self._stuck:
            self._stuck.cancel()
            self._stuck = None

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed."""
        super().connection_lost(exc)
        self._cancel_timers()
        if self.connection:
            self.connection.leave()

    def _wait_for_head(self, seconds: float) -> None:
        self._cancel_timers()
        self._silence = self.loop.call_later(seconds, self.transport.abort)
        if self.connection:
            self.connection.fall_silent()

    def _cancel_timers(self) -> None:
        if self._silence:
            self._silence.cancel()
            self._silence = None


class Door:
    """Takes connections from a socket, each with its TLS, as long as there is room. In place of asyncio's server."""

    def __init__(
        self,
        bound: socket.socket,
        tls: ssl.SSLContext | None,
        protocol: Callable[[], Patient],
        connections: Connections,
    ) -> None:
        """Listens from now on. AddressUnavailable where another program does meanwhile."""
        try:
            bound.listen(_BACKLOG)
        except OSError as error:
            raise unavailable(*spelled(bound.getsockname()[:2]), error) from error
        bound.setblocking(False)
        self.sockets = (bound,)
        self._tls, self._protocol, self._connections = tls, protocol, connections
        self._greeting: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.create_task(self._accept(bound))

    def close(self) -> None:
        """Take no more."""
        for task in (self._accepting, *self._greeting):
            task.cancel()

    async def wait_closed(self) -> None:
        """Nothing is left of it."""
        await asyncio.gather(self._accepting, *self._greeting, return_exceptions=True)

    async def _accept(self, bound: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, address = await loop.sock_accept(bound)
            except OSError:  # gone again, or files are short for the moment
                await asyncio.sleep(_ACCEPT_AGAIN_SECONDS)
                continue
            peer = spelled(address[:2])
            connection = self._connections.enter(*peer, lambda: None)
            if connection is None:
                client.close()
                continue
            task = loop.create_task(self._greet(client, peer, connection))
            connection.close = task.cancel
            self._greeting.add(task)
            task.add_done_callback(self._greeting.discard)

    async def _greet(self, client: socket.socket, peer: tuple[str, int], connection: Connection) -> None:
        """TLS, if there is any, and from then on HTTP."""
        protocol = self._protocol()
        protocol.connection, protocol.peer = connection, peer
        times = {"ssl_handshake_timeout": HEADER_SECONDS, "ssl_shutdown_timeout": HEADER_SECONDS} if self._tls else {}
        loop = asyncio.get_running_loop()
        try:
            client.setblocking(False)
            await loop.connect_accepted_socket(lambda: protocol, client, ssl=self._tls, **times)
        except (OSError, asyncio.CancelledError) as error:
            connection.leave()
            client.close()
            if isinstance(error, asyncio.CancelledError):
                raise


class Server(uvicorn.Server):
    """uvicorn's, with its own doorman; it says when it is ready, and returns after a signal so that others clean up."""

    def __init__(
        self,
        config: uvicorn.Config,
        ready: Callable[[], None] = lambda: None,
        before: Callable[[], Awaitable[None]] = _nothing,
        connections: int = CONNECTIONS,
    ) -> None:
        super().__init__(config)
        self.connections = Connections(room_for(connections))
        self._ready = ready
        self._before = before
        self._private: list[tuple[uvicorn.Config, socket.socket]] = []

    def add(self, app: ASGIApp, bound: socket.socket) -> None:
        """Serve another application on another socket, without TLS."""
        config = configuration(app, None)
        config.lifespan = "off"
        self._private.append((config, bound))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await self._before()
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            raise RuntimeError("The application does not start.")
        own = Connections(_PRIVATE_CONNECTIONS)
        doors = [(self.config, bound, self.connections) for bound in sockets or ()]
        doors += [(config, bound, own) for config, bound in self._private]
        self.servers = []
        for config, bound, connections in doors:
            if not config.loaded:
                config.load()
            made = partial(Patient, config, self.server_state, self.lifespan.state)
            self.servers.append(Door(bound, config.ssl, made, connections))  # type: ignore[arg-type]
        self.started = True
        self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals end the server, not the process."""
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        for number in signals:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

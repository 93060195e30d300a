"""An application on a port, until it is told to stop."""

import asyncio
import contextlib
import signal
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import uvicorn
from starlette.types import ASGIApp

_HEADER_BYTES: Final = 32 << 10
CONNECTIONS: Final = 1024
_KEEP_ALIVE_SECONDS: Final = 30
_DRAIN_SECONDS: Final = 30


def bind(host: str, port: int) -> socket.socket:
    """A socket for `serve_app`, which does not listen yet. port: 0 takes a free one. OSError where it cannot be had."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if bound.family is socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((host, port))
    except BaseException:
        bound.close()
        raise
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
) -> None:
    """Serve until SIGINT or SIGTERM; answers in progress then have half a minute to end. Closes the socket.

    ready: called with the address once clients can connect. before: what must have succeeded by then, in the event loop
    that serves; what it raises is raised here. connections: at a time.
    """
    with bound:
        host, port = bound.getsockname()[:2]
        url = f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
        Server(configuration(app, tls, connections), lambda: ready(url), before).run([bound])


def configuration(app: ASGIApp, tls: ssl.SSLContext | None, connections: int = CONNECTIONS) -> uvicorn.Config:
    """uvicorn's settings: nothing that is asked reaches a log, and nobody holds more than the limits say."""
    return uvicorn.Config(
        app,
        loop="uvloop",
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="info",  # below that, uvicorn would log addresses with their queries
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=connections,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
        h11_max_incomplete_event_size=_HEADER_BYTES,
        ssl_context_factory=(lambda _config, _default: tls) if tls else None,
    )


class Server(uvicorn.Server):
    """uvicorn's, which says when it is ready, and returns after a signal so that others can clean up too."""

    def __init__(
        self, config: uvicorn.Config, ready: Callable[[], None], before: Callable[[], Awaitable[None]] = _nothing
    ) -> None:
        super().__init__(config)
        self._ready = ready
        self._before = before

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await self._before()
        await super().startup(sockets)
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

"""An application on a port, until it is told to stop."""

import asyncio
import contextlib
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Final

import uvicorn
from starlette.types import ASGIApp

_HEADER_BYTES: Final = 32 << 10
CONNECTIONS: Final = 1024
_KEEP_ALIVE_SECONDS: Final = 30
_DRAIN_SECONDS: Final = 30


def serve_app(
    app: ASGIApp,
    host: str,
    port: int,
    tls: ssl.SSLContext | None,
    ready: Callable[[str], None],
    connections: int = CONNECTIONS,
) -> None:
    """Serve until SIGINT or SIGTERM; answers in progress then have half a minute to end.

    port: 0 takes a free one. ready: called with the address once clients can connect. connections: at a time.
    OSError where it cannot listen.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=1024) as listener:
        name = f"[{host}]" if ":" in host else host
        url = f"{'https' if tls else 'http'}://{name}:{listener.getsockname()[1]}"
        Server(configuration(app, tls, connections), lambda: ready(url)).run([listener])


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

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
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

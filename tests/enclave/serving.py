"""An application behind uvicorn on this machine, as `confide serve` runs it, in a thread."""

import asyncio
import contextlib
import ssl
import time
from collections.abc import Callable, Iterator
from threading import Event, Thread

import uvloop
from starlette.types import ASGIApp

from confide.enclave.api.server import CONNECTIONS, Server, bind, configuration


class InThread(Server):
    """Leaves signals alone, which are the main thread's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.contextmanager
def serving(
    app: ASGIApp, tls: ssl.SSLContext | None = None, connections: int = CONNECTIONS, host: str = "127.0.0.1"
) -> Iterator[str]:
    """Its address."""
    server = InThread(configuration(app, tls), connections=connections)
    with bind(host, 0) as listener:
        thread = Thread(target=lambda: uvloop.run(server.serve([listener])), daemon=True)
        thread.start()
        eventually(lambda: server.started)
        yield f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(15)
        assert not thread.is_alive()


def eventually(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "It did not come to pass."
        time.sleep(0.01)


class Relay:
    """A TCP relay to `port` that keeps every byte of both directions."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.port = 0
        self.seen = bytearray()
        self._ready, self._done = Event(), Event()
        self._thread = Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> "Relay":
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(10)

    async def _run(self) -> None:
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        while not self._done.is_set():
            await asyncio.sleep(0.05)
        server.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to = await asyncio.open_connection("127.0.0.1", self.target)
        await asyncio.gather(self._copy(reader, to), self._copy(there, writer))

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while part := await source.read(65536):
                self.seen += part
                target.write(part)
                await target.drain()
            target.close()

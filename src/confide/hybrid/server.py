"""The layer server on the network: one WebSocket endpoint over a `LayerService`.

Online answers are computed where they arrive, on the event loop: they take a fraction of a millisecond, less than a
change of threads. Long prompts and offline work run in threads, a bounded number at a time.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from confide.errors import (
    ConfideError,
    InsecureConnection,
    MalformedMessage,
    ProtocolError,
    ServerBusy,
    ServerFault,
)
from confide.hybrid import wire
from confide.hybrid.address import is_loopback
from confide.hybrid.ledger import Ledger
from confide.hybrid.record import Recorder
from confide.hybrid.service import LayerService, OfflineRequest, Session
from confide.models.server_package import ServerPackage
from confide.rlwe.scheme import RLWE

MAX_OFFLINE = 2
"""Offline requests held at a time; each needs up to 24 x 4096 bytes an input, in memory or paged."""
MAX_CONNECTIONS = 256
GREETING_SECONDS = 10.0
OFFLINE_ROWS_SECONDS = 60.0
INLINE_WORK = 4 << 20
"""Online requests of more weights times tokens than this leave the event loop to others."""

Result = TypeVar("Result")

WORKER_THREADS = torch.get_num_threads()
"""Threads of the long products, as torch chose them for this machine."""

_log = logging.getLogger(__name__)


def create_app(service: LayerService) -> Starlette:
    """The ASGI application; closing it settles the ledger."""
    endpoint = _Endpoint(service)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        # Answers on the event loop are too short to share out: waiting for a second thread that the client on the
        # same machine keeps from running can take a hundred times as long. Workers set their own number.
        torch.set_num_threads(1)
        yield
        service.ledger.close()

    return Starlette(routes=[WebSocketRoute(wire.PATH, endpoint.serve)], lifespan=lifespan)


class _Endpoint:
    def __init__(self, service: LayerService) -> None:
        self._service = service
        self._offline_slots = asyncio.Semaphore(MAX_OFFLINE)
        self._connections = 0
        # One thread for all long work: every thread that enters a parallel region of torch gets helpers of its own,
        # and with more of them than processors each region takes half as long again.
        self._worker = ThreadPoolExecutor(1, "worker", torch.set_num_threads, (WORKER_THREADS,))

    async def serve(self, socket: WebSocket) -> None:
        """One client's connection, from greeting to goodbye; whatever it sends, other clients go on."""
        await socket.accept()
        self._connections += 1
        try:
            if self._connections > MAX_CONNECTIONS:
                raise ServerBusy("The server has all the connections it takes; try again in a minute.")
            await self._converse(socket, Session(self._service))
        except (WebSocketDisconnect, ConnectionError):
            pass
        except TimeoutError:
            await _part(socket, ProtocolError("The client was silent for too long; connect again."))
        except ConfideError as error:
            await _part(socket, error)
        except Exception:  # noqa: BLE001 - one client's trouble must not reach the others
            _log.exception("A connection failed inside the server")
            await _part(socket, ServerFault("The server failed inside; ask its operator to look at its log."))
        finally:
            self._connections -= 1

    async def _converse(self, socket: WebSocket, session: Session) -> None:
        async with asyncio.timeout(GREETING_SECONDS):
            await self._reply(socket, session, await _receive(socket))
        while True:
            message = await _receive(socket)
            if isinstance(message, wire.OfflineBegin):
                async with self._offline_slots:
                    await self._offline(socket, session, message)
                continue
            try:
                await self._reply(socket, session, message)
            except MalformedMessage:
                raise
            except ConfideError as error:  # the client may go on: nothing of its stream was lost
                await socket.send_bytes(wire.encode(wire.failure(error)))

    async def _reply(self, socket: WebSocket, session: Session, message: wire.FromClient) -> None:
        if isinstance(message, wire.Online) and self._service.work(message) > INLINE_WORK:
            reply = await _run(self._worker, session.handle, message)
        else:
            reply = session.handle(message)
        await socket.send_bytes(wire.encode(reply))

    async def _offline(self, socket: WebSocket, session: Session, begin: wire.OfflineBegin) -> None:
        request = await _run(self._worker, session.begin_offline, begin)
        async with asyncio.timeout(OFFLINE_ROWS_SECONDS) as patience:
            while not request.complete:
                message = await _receive(socket)
                if not isinstance(message, wire.OfflineRows):
                    raise MalformedMessage("An offline request was interrupted by another message; prepare it again.")
                await _run(self._worker, request.add_rows, message)
                patience.reschedule(asyncio.get_running_loop().time() + OFFLINE_ROWS_SECONDS)
        await _send_blocks(socket, request, self._worker)


async def _run(worker: ThreadPoolExecutor, call: Callable[..., Result], *arguments: Any) -> Result:
    return await asyncio.get_running_loop().run_in_executor(worker, call, *arguments)


async def _send_blocks(socket: WebSocket, request: OfflineRequest, worker: ThreadPoolExecutor) -> None:
    """Send an offline answer, computing the next block while the last one is on its way."""
    blocks = request.answer()

    @torch.inference_mode()
    def next_frame() -> bytes | None:
        block = next(blocks, None)
        return wire.encode(block) if block is not None else None

    frame = await _run(worker, next_frame)
    while frame is not None:
        upcoming = asyncio.create_task(_run(worker, next_frame))
        try:
            await socket.send_bytes(frame)
        finally:
            frame = await upcoming


async def _receive(socket: WebSocket) -> wire.FromClient:
    event = await socket.receive()
    if event["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(event.get("code", 1006))
    frame = event.get("bytes")
    if frame is None:
        raise MalformedMessage("A text frame arrived where the protocol has only binary ones; use a Confide client.")
    return wire.decode_from_client(frame)


async def _part(socket: WebSocket, error: ConfideError) -> None:
    with contextlib.suppress(RuntimeError, WebSocketDisconnect, ConnectionError):
        await socket.send_bytes(wire.encode(wire.failure(error)))
        await socket.close(code=1008, reason=error.code)


def load_service(package_folder: Path, state_folder: Path, recorder: Recorder | None = None) -> LayerService:
    """A service for a server package, with its ledger in `state_folder`. Reads and checks every weight."""
    torch.set_num_threads(1)  # this thread will be the event loop's, and must not gather helpers: see _Endpoint
    package = ServerPackage.open(package_folder)
    package.verify()
    weights = [package.weights(index) for index in range(len(package.manifest.groups))]
    return LayerService(package.manifest, weights, Ledger(state_folder), RLWE, recorder)


def require_loopback(host: str, *, insecure_no_tls: bool) -> None:
    """InsecureConnection for a host that is not this machine's own, unless that is allowed."""
    if not is_loopback(host) and not insecure_no_tls:
        raise InsecureConnection(
            f"Serving on {host} without TLS lets anyone on the way see who asks what and when; "
            "give --tls-cert and --tls-key (`confide tls make-local` makes them), or use a loopback host."
        )


def server_config(app: Starlette, host: str, port: int, tls: ssl.SSLContext | None = None) -> uvicorn.Config:
    """How the application is served: bounded frames, no compression of what cannot be compressed."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        ssl_context_factory=None if tls is None else lambda *_: tls,
        ws="websockets-sansio",
        ws_max_size=wire.MAX_FRAME + wire.FRAME_OVERHEAD,
        ws_per_message_deflate=False,
        ws_ping_interval=None,
        lifespan="on",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=5,
    )


def serve(
    service: LayerService,
    host: str,
    port: int,
    *,
    tls: ssl.SSLContext | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM. `on_ready` is called with the address once clients can connect."""
    server = _AnnouncingServer(server_config(create_app(service), host, port, tls))
    server.on_ready = on_ready
    server.run()


class _AnnouncingServer(uvicorn.Server):
    on_ready: Callable[[str], None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self.on_ready:
            port = self.servers[0].sockets[0].getsockname()[1]
            host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
            self.on_ready(f"{'wss' if self.config.is_ssl else 'ws'}://{host}:{port}")

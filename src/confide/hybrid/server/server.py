"""The layer server on the network: WebSocket connections over a `LayerService`, and what an operator asks for.

Decoding requests are checked where they arrive, on the event loop, and answered there in batches: that takes a
fraction of a millisecond, less than a change of threads. Long prompts and work ahead run in threads.
"""

import asyncio
import contextlib
import logging
import signal
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import Any

import torch
import uvloop
from picows import WSListener, WSUpgradeRequest, WSUpgradeResponse, WSUpgradeResponseWithListener, ws_create_server

from confide.errors import LedgerUnavailable, UnknownGroup
from confide.hybrid import wire
from confide.hybrid.groups import Groups
from confide.hybrid.priority import lower_priority
from confide.hybrid.server.ahead import PART_TOKENS, AheadMaker, Blocks, Room
from confide.hybrid.server.batch import Batcher
from confide.hybrid.server.limits import AheadAllowance, Limits
from confide.hybrid.server.metrics import Metrics
from confide.hybrid.server.peer import Licensee, Peer
from confide.hybrid.server.record import Recorder
from confide.hybrid.server.service import P0_BYTES, LayerService
from confide.ledger.address import Place
from confide.ledger.ledger import Ledger
from confide.ledger.usage import Account, AccountKey
from confide.logs import quiet_logger
from confide.net.connections import unavailable
from confide.packages.server_package import ServerPackage, StoredGroup

CHECKPOINT_SECONDS = 5.0
SWEEP_SECONDS = 1.0
DRAIN_SECONDS = 10.0
"""How long a server that was told to stop goes on answering what was asked for."""
_AHEAD_NICENESS = 10
"""Gives way to decoding, and still gets on where other programs keep the machine busy."""

LEDGER_THREADS = 4
"""That wait for the ledger's database, so that a new client's first word to it does not hold up a lease."""
WORKER_THREADS = torch.get_num_threads()
"""Threads of the long products, as torch chose them for this machine."""

_log = logging.getLogger(__name__)


class HostedModel:
    """One of a server's models: its service, and what answers and works ahead for it."""

    def __init__(self, service: LayerService, server: "LayerServer") -> None:
        self.service = service
        self._limits, self._room = server.limits, server.room
        self.p0_tokens = self._limits.p0_bytes // P0_BYTES if service.private else 0
        self.batcher = Batcher(service, server.online_worker, server.metrics.batch.observe)
        self.maker = AheadMaker(
            service.matrices,
            service.ahead_bytes,
            server.ahead_worker,
            lambda: server.busy,
            server.metrics.ahead.inc,
        )
        tokens = self._limits.ahead_bytes // sum(service.ahead_bytes.values())
        self._allowed_tokens = max(tokens, PART_TOKENS)
        self._allowances: dict[bytes, AheadAllowance] = {}

    def allowance(self, licence: bytes) -> AheadAllowance:
        """Of work done ahead, for all connections of a licence."""
        return self._allowances.setdefault(licence, AheadAllowance(self._allowed_tokens))

    def blocks(self, grant: Callable[[int], bool]) -> Blocks:
        """Of a new connection. grant: whether its licence may have so many tokens worked for."""
        return Blocks(self.p0_tokens, self._room, Room(self._limits.ahead_bytes, self._room), grant, self.maker)


class LayerServer:
    """Serves models on the running event loop; `async with LayerServer(services).listening(...)`.

    services: by name, which is where in the path of an address each is found; one alone is found without it, too. All
    have the same ledger, and share the limits.
    """

    def __init__(self, services: Mapping[str, LayerService], limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.metrics = Metrics()
        self.peers: set[Peer] = set()
        self.draining = False
        (self.ledger,) = {service.ledger for service in services.values()}
        # One thread each for long prompts and for work ahead: every thread that enters a parallel region of torch
        # gets helpers of its own. Work ahead gives way to everything else.
        self.online_worker = ThreadPoolExecutor(1, "online", _prepare_worker, (0,))
        self.ahead_worker = ThreadPoolExecutor(1, "ahead", _prepare_worker, (_AHEAD_NICENESS,))
        self.ledger_worker = ThreadPoolExecutor(LEDGER_THREADS, "ledger")
        self.room = Room(self.limits.all_ahead_bytes)
        self.models = {name: HostedModel(service, self) for name, service in services.items()}
        self._paths = {f"/{name}{wire.PATH}": model for name, model in self.models.items()}
        if len(self.models) == 1:
            (self._paths[wire.PATH],) = self.models.values()
        self.metrics.ahead_bytes.set_function(lambda: self.room.used)
        self._licensees: dict[bytes, Licensee] = {}
        self._renewing: set[AccountKey] = set()

    @property
    def busy(self) -> bool:
        """Whether a request for any of the models waits for its answer."""
        return any(model.batcher.busy for model in self.models.values())

    def licensee(self, account: Account) -> Licensee:
        """What the connections of a licence share."""
        return self._licensees.setdefault(account.licence.id, Licensee(self.limits))

    def renew(self, account: Account) -> None:
        """Have the account's next lease written while the present one still lasts."""
        lease = account.key
        if lease in self._renewing:
            return
        self._renewing.add(lease)

        def done(future: asyncio.Future[None]) -> None:
            self._renewing.discard(lease)
            if not future.cancelled() and future.exception() is not None:
                _log.error("A lease could not be renewed", exc_info=future.exception())

        loop = asyncio.get_running_loop()
        loop.run_in_executor(self.ledger_worker, self.ledger.renew, account).add_done_callback(done)

    @contextlib.asynccontextmanager
    async def listening(
        self, host: str, port: int, *, tls: ssl.SSLContext | None = None, metrics_port: int | None = None
    ) -> AsyncIterator[str]:
        """Listen; yields the address. At the end clients are let go, and the ledger is settled and closed."""
        # Answers on the event loop are too short to share out: waiting for a second thread that the client on the
        # same machine keeps from running can take a hundred times as long. Workers set their own number.
        torch.set_num_threads(1)
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._close)
            listener = await self._listen(self._route, host, port, tls)
            stack.callback(listener.close)
            if metrics_port is not None:
                private = await self._listen(self._route_private, "127.0.0.1", metrics_port, None)
                stack.callback(private.close)
            housekeeping = asyncio.create_task(self._keep_house())
            stack.callback(housekeeping.cancel)
            stack.push_async_callback(self._drain)
            bound = listener.sockets[0].getsockname()[1]
            name = f"[{host}]" if ":" in host else host
            yield f"{'wss' if tls else 'ws'}://{name}:{bound}"
            listener.close()

    async def _listen(
        self, route: Callable[[WSUpgradeRequest], Any], host: str, port: int, tls: ssl.SSLContext | None
    ) -> asyncio.Server:
        try:
            return await ws_create_server(
                route,
                host,
                port,
                ssl=tls,
                max_frame_size=wire.MAX_FRAME + wire.FRAME_OVERHEAD,
                websocket_handshake_timeout=self.limits.greeting_seconds,
                # Its remarks on clients that misbehave are not for the operator's log.
                logger_name=quiet_logger("server.frames"),
            )
        except OSError as error:
            raise unavailable(host, port, error) from error

    def _route(self, request: WSUpgradeRequest) -> WSListener | WSUpgradeResponseWithListener | None:
        path = request.path.decode("ascii", "replace")
        if (model := self._paths.get(path)) is not None:
            if self.draining or len(self.peers) >= self.limits.connections:
                return _busy()
            return Peer(self, model)
        return self._health(path)

    def _route_private(self, request: WSUpgradeRequest) -> WSUpgradeResponseWithListener | None:
        match request.path:
            case b"/metrics":
                return _page(self.metrics.text())
        return self._health(request.path.decode("ascii", "replace"))

    def _health(self, path: str) -> WSUpgradeResponseWithListener | None:
        """/health: whether answers can be had here now. /health/live: that there is a server, not to be restarted."""
        if path == "/health/live":
            return _page(b"ok\n")
        if path != "/health":
            return None
        if self.draining:
            return _unwell("draining\n")
        return _page(b"ok\n") if self.ledger.in_touch else _unwell(f"{LedgerUnavailable.code}\n")

    async def _keep_house(self) -> None:
        """Part with silent clients, and bring the ledger up to date now and then."""
        loop = asyncio.get_running_loop()
        settle_at = loop.time() + CHECKPOINT_SECONDS
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            for peer in list(self.peers):
                peer.part_if_silent()
            if loop.time() >= settle_at:
                settle_at = loop.time() + CHECKPOINT_SECONDS
                try:
                    await loop.run_in_executor(self.ledger_worker, self.ledger.checkpoint)
                except Exception:  # noqa: BLE001 - serving goes on, and the next answer says what is wrong
                    _log.exception("The ledger could not be brought up to date")

    async def _drain(self) -> None:
        """Answer what was asked for, for a while, and let the clients go."""
        self.draining = True
        for model in self.models.values():
            model.maker.close()
        deadline = asyncio.get_running_loop().time() + DRAIN_SECONDS
        while any(peer.busy for peer in self.peers) and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        for peer in list(self.peers):
            peer.say_goodbye()
        await asyncio.sleep(0)

    def _close(self) -> None:
        for worker in (self.online_worker, self.ahead_worker, self.ledger_worker):
            worker.shutdown(cancel_futures=True)
        self.ledger.close()


def _prepare_worker(niceness: int) -> None:
    torch.set_num_threads(WORKER_THREADS)
    lower_priority(niceness)


def _page(body: bytes) -> WSUpgradeResponseWithListener:
    return WSUpgradeResponseWithListener(WSUpgradeResponse.create_ok_response(body), None)


def _busy() -> WSUpgradeResponseWithListener:
    return _unwell("The server has all the connections it takes; try again in a minute.\n")


def _unwell(text: str) -> WSUpgradeResponseWithListener:
    # One for each: picows adds a length to the headers whenever it writes a response.
    return WSUpgradeResponseWithListener(
        WSUpgradeResponse.create_error_response(HTTPStatus.SERVICE_UNAVAILABLE, text.encode()), None
    )


def load_services(
    packages: Mapping[str, Path],
    place: Place,
    recorder: Recorder | None = None,
    *,
    groups: Groups | None = None,
    insecure_no_licences: bool = False,
) -> dict[str, LayerService]:
    """Services for server packages by name, with one ledger at `place`. Reads and checks every weight.

    groups: of one package, to answer these layer groups alone; files of the others are not read, and need not be there.
    Raises UnknownGroup where the package has not so many.
    """
    torch.set_num_threads(1)  # this thread will be the event loop's, and must not gather helpers: see LayerServer
    opened = {name: ServerPackage.open(folder) for name, folder in packages.items()}
    stored = {name: _stored(package, groups) for name, package in opened.items()}
    ledger = Ledger(place)
    return {
        name: LayerService(
            package.signed,
            stored[name],
            ledger,
            recorder,
            groups=groups,
            insecure_no_licences=insecure_no_licences,
        )
        for name, package in opened.items()
    }


def _stored(package: ServerPackage, groups: Groups | None) -> list[StoredGroup]:
    if groups is None:
        return package.load()
    total = len(package.manifest.groups)
    if groups.last >= total:
        raise UnknownGroup(
            f"{package.folder} has the layer groups 0-{total - 1} and not {groups}; `confide plan {package.folder} "
            "--machines N` shares them out."
        )
    return [package.group(index) for index in groups]


def serve(
    services: Mapping[str, LayerService],
    host: str,
    port: int,
    *,
    limits: Limits | None = None,
    tls: ssl.SSLContext | None = None,
    metrics_port: int | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM. `on_ready` is called with the address once clients can connect."""

    async def until_told_to_stop() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, stop.set)
        server = LayerServer(services, limits)
        async with server.listening(host, port, tls=tls, metrics_port=metrics_port) as url:
            if on_ready:
                on_ready(url)
            await stop.wait()
            _log.info("Told to stop; answering what was asked for.")

    uvloop.run(until_told_to_stop())

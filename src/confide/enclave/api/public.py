"""What a workload shows the network: its evidence, the encrypted channel to its API, and how it is."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp

from confide.attest.wire import Attested
from confide.channel.encryption import PATH
from confide.channel.middleware import EncryptedChannel
from confide.enclave.api.answer import Serving, while_connected
from confide.enclave.api.app import API_PATHS, api_app, health_routes
from confide.enclave.api.graph import Shown
from confide.enclave.api.line import Line
from confide.enclave.api.neighbours import Neighbours
from confide.enclave.api.problems import HANDLERS, problem_response
from confide.enclave.api.receipts import Receipted, Receipts
from confide.enclave.api.service import Service
from confide.enclave.workload import Workload
from confide.errors import InsecureConnection, RequestRefused
from confide.graph.evidence import EVIDENCE_PATH, LOG_PATH
from confide.net.body import origin_of
from confide.receipts.keyset import is_nonce

_NONCE: Final = re.compile(r"(?:[0-9a-f]{2}){32,64}")
_Made = TypeVar("_Made")
_BURST_SECONDS: Final = 2.0
_LONGEST_WAIT: Final = 90.0
"""Seconds in line for evidence at most; clients wait for two minutes."""


def public_app(
    workload: Workload,
    serving: Serving,
    *,
    tls_ends_here: bool = False,
    neighbours: Neighbours | None = None,
    graph: Shown | None = None,
) -> Starlette:
    """The application to serve a model to the world. Closes the engine and the ledger when the server stops.

    tls_ends_here: the server's TLS key is the workload's own (see `confide.enclave.ra_tls`), so that the API
    may be asked directly. Otherwise it is reached through the encrypted channel alone. neighbours: who may ask;
    anybody where there are none. graph: what is shown of the graph that it is a service of, if anything.
    """

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        engine, pulse = serving.engine, serving.pulse
        watching = [asyncio.create_task(pulse.keep_watching(engine, serving.limits.engine_seconds))]
        if serving.self_test:
            watching.append(asyncio.create_task(serving.self_test.keep_running()))
        if serving.users:
            watching.append(asyncio.create_task(serving.users.keep_recording()))
        yield
        for task in watching:
            task.cancel()
        await engine.close()
        if serving.search is not None:
            await serving.search.close()
        if serving.users:
            await run_in_threadpool(serving.users.close)
        if serving.traces:
            await run_in_threadpool(serving.traces.close)

    name, api = serving.engine.facts.model, api_app(serving)
    return workload_app(
        workload,
        serving,
        name,
        api,
        API_PATHS,
        tls_ends_here=tls_ends_here,
        neighbours=neighbours,
        graph=graph,
        lifespan=lifespan,
    )


def workload_app(
    workload: Workload,
    service: Service,
    name: str,
    api: ASGIApp,
    paths: Sequence[str],
    *,
    tls_ends_here: bool,
    neighbours: Neighbours | None = None,
    graph: Shown | None = None,
    lifespan: Callable[[Starlette], AbstractAsyncContextManager[None]] | None = None,
) -> Starlette:
    """An API behind attestation and the encrypted channel, with a receipt for every answer.

    name: of what is served, as the API calls it. paths: below which questions are asked.
    tls_ends_here, neighbours, graph: as in `public_app`. lifespan: around all of it.
    """
    limits, metrics, receipts = service.limits, service.metrics, Receipts(workload, name)
    line = Line(1, limits.attestations_waiting, _LONGEST_WAIT, 1 / limits.attestations_per_second)
    attestation = _Attestation(workload, service, line, Pace(limits.attestations_per_second))
    inside = Starlette(
        routes=[
            Route("/v1/aci/attestation", attestation.report),
            Route("/v1/aci/receipts/{id}", receipts.show),
            Mount("/", Receipted(api, receipts)),
        ],
        exception_handlers=HANDLERS,
    )
    let_in: ASGIApp = inside if neighbours is None else neighbours.around(inside)
    channel = EncryptedChannel(
        let_in,
        workload.key,
        body_bytes=limits.largest_bytes,
        body_seconds=limits.body_seconds,
        bodies_bytes=limits.bodies_bytes,
        on_refusal=lambda code: metrics.refusals.labels(code).inc(),
    )
    rest: list[BaseRoute] = [Mount("/", let_in)] if tls_ends_here else [
        Route(path + "{rest:path}", _not_in_the_clear, methods=["GET", "POST"]) for path in paths
    ]  # fmt: skip
    routes = [
        Route(PATH, channel, methods=["POST"]),
        Route("/attestation", attestation.show),
        *health_routes(service),
        *(_graph_routes(graph, attestation) if graph else ()),
        *rest,
    ]
    return Starlette(routes=routes, exception_handlers=HANDLERS, lifespan=lifespan)


def private_app(service: Service) -> Starlette:
    """What the operator alone may see, on an address that nobody else can reach: /metrics, and /health as above."""
    metrics = service.metrics

    async def show(_request: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    return Starlette(routes=[Route("/metrics", show), *health_routes(service)], exception_handlers=HANDLERS)


@dataclass(frozen=True)
class _Attestation:
    """Evidence on demand: one at a time, for hardware gives no more, and not too often. The others wait in line."""

    workload: Workload
    service: Service
    line: Line
    pace: "Pace"

    async def show(self, request: Request) -> Response:
        """GET /attestation?nonce=, as JSON: see `confide.attest.wire.Attested`."""
        return _as_json((await self.attest(request, _nonce_of(request))).encode())

    async def attest(self, request: Request, nonce: str) -> Attested:
        """Fresh evidence, once it is this request's turn."""
        return await self._in_turn(request, lambda: self.workload.attest(nonce))

    async def report(self, request: Request) -> Response:
        """GET /v1/aci/attestation?nonce=, as JSON: see `confide.receipts.report`."""
        nonce = request.query_params.get("nonce")
        if nonce is not None and not is_nonce(nonce):
            raise RequestRefused("Ask with a fresh random ?nonce= of 32 bytes, in lower-case hexadecimal.", "nonce")
        return _as_json(await self._in_turn(request, lambda: self.workload.report(nonce)))

    async def _in_turn(self, request: Request, make: Callable[[], _Made]) -> _Made:
        async with AsyncExitStack() as stack:
            await while_connected(request, stack.enter_async_context(self.line.turn(origin_of(request))))
            await self.pace.step()
            made = await run_in_threadpool(make)
        self.service.metrics.attestations.inc()
        return made


def _graph_routes(graph: Shown, attestation: _Attestation) -> list[BaseRoute]:
    """GET LOG_PATH, and GET EVIDENCE_PATH with a nonce, see `confide.graph.evidence`."""

    async def log(_request: Request) -> Response:
        return Response(graph.log, 200, {"cache-control": "no-store"}, media_type="application/jsonl")

    async def evidence(request: Request) -> Response:
        nonce = _nonce_of(request)
        return _as_json(await graph.gather(nonce, await attestation.attest(request, nonce)))

    return [Route(LOG_PATH, log), Route(EVIDENCE_PATH, evidence)]


def _nonce_of(request: Request) -> str:
    nonce = request.query_params.get("nonce", "")
    if not _NONCE.fullmatch(nonce):
        raise RequestRefused("Ask with a fresh random ?nonce= of 32 to 64 bytes, in lower-case hexadecimal.", "nonce")
    return nonce


def _as_json(content: bytes) -> Response:
    return Response(content, 200, {"cache-control": "no-store"}, media_type="application/json")


class Pace:
    """So many a second in the long run, and two seconds' worth at once (a token bucket)."""

    def __init__(self, per_second: float) -> None:
        self._rate = per_second
        self._most = max(1.0, per_second * _BURST_SECONDS)
        self._tokens = self._most
        self._at = time.monotonic()

    async def step(self) -> None:
        """Take one, once there is one. For one caller at a time."""
        while True:
            now = time.monotonic()
            self._tokens = min(self._most, self._tokens + (now - self._at) * self._rate)
            self._at = now
            if self._tokens >= 1:
                self._tokens -= 1
                return
            await asyncio.sleep((1 - self._tokens) / self._rate)


async def _not_in_the_clear(request: Request) -> Response:
    return problem_response(
        InsecureConnection(
            "Questions are answered through the encrypted channel only, for whoever stands in between could read this "
            "one. Use `confide chat`, or `confide.connect` in Python: its `openai` is the SDK's client in that channel."
        ),
        request.url.path,
    )

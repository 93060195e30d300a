"""What a workload shows the network: its evidence, the sealed channel to its API, and how it is."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route

from confide.channel.middleware import SealedChannel
from confide.channel.sealing import PATH
from confide.enclave.api.answer import Serving
from confide.enclave.api.app import API_PATHS, api_app, health
from confide.enclave.api.problems import HANDLERS, problem_response
from confide.enclave.workload import Workload
from confide.errors import InsecureConnection, RequestRefused, ServerBusy

_NONCE: Final = re.compile(r"(?:[0-9a-f]{2}){32,64}")
_BURST_SECONDS: Final = 2.0


def public_app(workload: Workload, serving: Serving, *, tls_ends_here: bool = False) -> Starlette:
    """The application to serve to the world. Closes the engine when the server stops.

    tls_ends_here: the server's TLS key is the workload's own (see `confide.enclave.ra_tls`), so that the API
    may be asked directly. Otherwise it is reached through the sealed channel alone.
    """
    api, limits, metrics = api_app(serving), serving.limits, serving.metrics
    channel = SealedChannel(
        api,
        workload.key,
        body_bytes=limits.body_bytes,
        body_seconds=limits.body_seconds,
        on_refusal=lambda code: metrics.refusals.labels(code).inc(),
    )
    attestation = _Attestation(workload, serving, RateLimit(limits.attestations_per_second))
    rest: list[BaseRoute] = [Mount("/", api)] if tls_ends_here else [
        Route(path + "{rest:path}", _not_in_the_clear, methods=["GET", "POST"]) for path in API_PATHS
    ]  # fmt: skip
    routes = [
        Route(PATH, channel, methods=["POST"]),
        Route("/attestation", attestation.show),
        Route("/health", partial(health, serving)),
        Route("/metrics", lambda _request: Response(metrics.text(), media_type="text/plain; version=0.0.4")),
        *rest,
    ]

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        testing = asyncio.create_task(serving.self_test.keep_running()) if serving.self_test else None
        yield
        if testing is not None:
            testing.cancel()
        await serving.engine.close()

    return Starlette(routes=routes, exception_handlers=HANDLERS, lifespan=lifespan)


@dataclass(frozen=True)
class _Attestation:
    """Evidence on demand: one at a time, for hardware gives no more, and not too often."""

    workload: Workload
    serving: Serving
    rate: "RateLimit"
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def show(self, request: Request) -> Response:
        """GET /attestation?nonce=, as JSON: see `confide.attest.wire.Attested`."""
        nonce = request.query_params.get("nonce", "")
        if not _NONCE.fullmatch(nonce):
            raise RequestRefused(
                "Ask with a fresh random ?nonce= of 32 to 64 bytes, in lower-case hexadecimal.", "nonce"
            )
        self.rate.take()
        async with self.turn:
            attested = await run_in_threadpool(self.workload.attest, nonce)
        self.serving.metrics.attestations.inc()
        return Response(attested.encode(), 200, {"cache-control": "no-store"}, media_type="application/json")


class RateLimit:
    """So many a second in the long run, and two seconds' worth at once (a token bucket)."""

    def __init__(self, per_second: float) -> None:
        self._rate = per_second
        self._most = max(1.0, per_second * _BURST_SECONDS)
        self._tokens = self._most
        self._at = time.monotonic()

    def take(self) -> None:
        """ServerBusy where it was too many."""
        now = time.monotonic()
        self._tokens = min(self._most, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            raise ServerBusy("Too many ask at once; try again in a moment.")
        self._tokens -= 1


async def _not_in_the_clear(_request: Request) -> Response:
    return problem_response(
        InsecureConnection(
            "Questions are answered through the encrypted channel only, for whoever stands in between could read this "
            "one. Use `confide chat`, or `confide.connect` in Python: its `openai` is the SDK's client in that channel."
        )
    )

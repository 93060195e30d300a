"""A coordinator: it verifies every service of a graph that is not shown, and says whether all meet what is promised.

GET /graph/verdict?nonce=, inside the encrypted channel; see `confide.graph.verdict`. It sees no user's data.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from confide.enclave.api.admission import Admission
from confide.enclave.api.app import health_routes
from confide.enclave.api.line import Line
from confide.enclave.api.problems import HANDLERS
from confide.enclave.api.public import workload_app
from confide.enclave.api.service import Engineless
from confide.enclave.workload import Workload
from confide.errors import RequestRefused
from confide.graph.verdict import PATH, SignedVerdict
from confide.net.body import Bodies
from confide.receipts.keyset import is_nonce

_NAME: Final = "coordinator"


@dataclass(frozen=True)
class Coordinating(Engineless):
    """vouch: verifies all services now, and says so for a nonce. NeighbourRefused where one is not what it must be."""

    vouch: Callable[[str], SignedVerdict]


def coordinator_app(workload: Workload, coordinating: Coordinating, *, tls_ends_here: bool = False) -> Starlette:
    """The application to serve to the world: as `public_app` is for a model."""
    limits = coordinating.limits
    line = Line(1, limits.waiting, limits.waiting_seconds)
    bodies = Bodies(0, limits.body_seconds, limits.bodies_bytes)

    async def verdict(request: Request) -> Response:
        nonce = request.query_params.get("nonce", "")
        if not is_nonce(nonce):
            raise RequestRefused("Ask with a fresh random ?nonce= of 32 bytes, in lower-case hexadecimal.", "nonce")
        signed = await run_in_threadpool(coordinating.vouch, nonce)
        return Response(signed.encode(), headers={"cache-control": "no-store"}, media_type="application/json")

    gate = Middleware(Admission, service=coordinating, line=line, bodies=bodies, endpoint=PATH)
    routes = [*health_routes(coordinating), Route(PATH, verdict, middleware=[gate])]
    api = Starlette(routes=routes, exception_handlers=HANDLERS)
    return workload_app(workload, coordinating, _NAME, api, (PATH,), tls_ends_here=tls_ends_here)

"""A guard before a model: it looks for phrases in every text of a question, and hands on what has none of them.

What it hands on are the very bytes that it looked at, and JSON that two readers could read in two ways is refused. The
model's answer comes back as it is, part by part. Needs no language model.
"""

from dataclasses import dataclass
from typing import Any, Final

import httpx
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from confide.channel.encryption import CACHE_SALT, COLLECTION_KEY
from confide.enclave.api.admission import Admission
from confide.enclave.api.app import API_PATHS, health_routes
from confide.enclave.api.graph import Shown
from confide.enclave.api.line import Line
from confide.enclave.api.neighbours import Neighbours
from confide.enclave.api.problems import HANDLERS, MESSAGES
from confide.enclave.api.public import workload_app
from confide.enclave.api.relay import handed_on
from confide.enclave.api.service import Engineless
from confide.enclave.workload import Workload
from confide.errors import MalformedReceipt, PromptRefused, RequestRefused
from confide.net.body import Bodies
from confide.packages.guard import GuardPackage, texts_of
from confide.receipts.documents import read_json

_QUESTIONS: Final = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    MESSAGES,
    f"{MESSAGES}/count_tokens",
)
"""Whose bodies are looked at. Nothing else is handed on but the list of models."""
_MODELS: Final = "/v1/models"
_TOKENS: Final = ("prompt", "input")
"""Members that may hold numbers of tokens, which no phrase can be looked for in."""
_HANDED_ON: Final = ("authorization", "content-type", "x-api-key", CACHE_SALT, COLLECTION_KEY)
"""With a licence, and the key of a collection, which go where prompts go."""
_PARALLEL: Final = 64


@dataclass(frozen=True)
class Guarding(Engineless):
    """Rules, and the model that they are before. model: asks it by paths alone."""

    package: GuardPackage
    model: httpx.AsyncClient

    def require_allowed(self, body: bytes) -> None:
        """PromptRefused for a question that has one of the phrases, RequestRefused for one that cannot be read."""
        try:
            asked = read_json(body, "question", self.limits.body_bytes)
        except MalformedReceipt:
            raise RequestRefused(
                "The question is no JSON object that has one meaning alone; name nothing twice, and nest less."
            ) from None
        for name in _TOKENS:
            if _has_numbers(asked.get(name)):
                raise RequestRefused("A guard reads texts and no numbers of tokens; send the text.", name)
        if any(map(self.package.rules.match, texts_of(asked))):
            raise PromptRefused(self.package.manifest.refusal)

    async def close(self) -> None:
        """Ask nobody any more."""
        await self.model.aclose()


def guard_app(
    workload: Workload,
    guarding: Guarding,
    *,
    tls_ends_here: bool = False,
    neighbours: Neighbours | None = None,
    graph: Shown | None = None,
) -> Starlette:
    """The application to serve to the world: as `public_app` is for a model."""
    return workload_app(
        workload,
        guarding,
        guarding.package.manifest.name,
        _api(guarding),
        API_PATHS,
        tls_ends_here=tls_ends_here,
        neighbours=neighbours,
        graph=graph,
    )


def _api(guarding: Guarding) -> Starlette:
    limits = guarding.limits
    line = Line(_PARALLEL, limits.waiting, limits.waiting_seconds)
    bodies = Bodies(limits.body_bytes, limits.body_seconds, limits.bodies_bytes)

    async def ask(request: Request) -> Response:
        body = await request.body()
        await run_in_threadpool(guarding.require_allowed, body)
        return await handed_on(guarding.model, request, body, _HANDED_ON)

    async def look(request: Request) -> Response:
        return await handed_on(guarding.model, request, b"", _HANDED_ON)

    def gate(path: str) -> list[Middleware]:
        return [Middleware(Admission, service=guarding, line=line, bodies=bodies, endpoint=path)]

    return Starlette(
        routes=[
            *health_routes(guarding),
            Route(_MODELS, look, middleware=gate(_MODELS)),
            *(Route(path, ask, methods=["POST"], middleware=gate(path)) for path in _QUESTIONS),
        ],
        exception_handlers=HANDLERS,
    )


def _has_numbers(value: Any) -> bool:
    """Whether this is, or lists at any depth, a number."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case int() | float():
                return True
            case list() as items:
                waiting += items
    return False

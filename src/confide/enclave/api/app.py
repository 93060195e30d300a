"""The API over one engine. It knows of no channel: whoever puts it on a network sees to that."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from confide.enclave.api.admission import Admission
from confide.enclave.api.answer import Serving
from confide.enclave.api.line import Line
from confide.enclave.api.messages import Messages
from confide.enclave.api.openai import OpenAi, json_response
from confide.enclave.api.own import FILES, STORES
from confide.enclave.api.problems import HANDLERS, MESSAGES
from confide.enclave.api.responses import Responses
from confide.enclave.api.service import Service
from confide.enclave.api.simple import Simple
from confide.enclave.api.sources import Search
from confide.errors import ConfideError, LedgerUnavailable
from confide.net.body import Bodies

_DOCUMENTS: Final = 4
"""Requests about documents at once."""
API_PATHS = ("/v1", "/generate", "/chat")
"""Below these questions are asked, in the clear; see `confide.enclave.api.public`."""


def api_app(serving: Serving) -> Starlette:
    """An ASGI application with OpenAI's endpoints, Anthropic's, /generate, /chat and /health."""
    openai, simple, limits = OpenAi(serving), Simple(serving), serving.limits
    responses, messages = Responses(serving), Messages(serving)
    line = Line(serving.engine.facts.parallel, limits.waiting, limits.waiting_seconds)
    bodies = Bodies(limits.body_bytes, limits.body_seconds, limits.bodies_bytes)

    def answering(path: str, endpoint: Callable[[Request], Awaitable[Response]], *methods: str) -> Route:
        gate = Middleware(Admission, service=serving, line=line, bodies=bodies, endpoint=path)
        return Route(path, endpoint, methods=methods or ("POST",), middleware=[gate])

    search = serving.search
    return Starlette(
        routes=[
            *health_routes(serving),
            *(() if search is None else _documents(serving, search)),
            Route("/v1/models", openai.models),
            Route("/v1/models/{name:path}", openai.model),
            Route("/v1/usage", openai.usage, methods=["POST"]),
            answering("/v1/chat/completions", openai.chat),
            answering("/v1/completions", openai.completions),
            answering("/v1/embeddings", openai.embeddings),
            answering("/v1/responses", responses.create),
            answering(MESSAGES, messages.create),
            answering(f"{MESSAGES}/count_tokens", messages.count),
            answering("/generate", simple.generate, "GET", "POST"),
            answering("/chat", simple.chat, "GET", "POST"),
        ],
        exception_handlers=HANDLERS,
    )


def _documents(serving: Serving, search: Search) -> list[Route]:
    """What is about users' own documents is answered by the corpus service behind the model, and takes no turn of its.

    They are whoever's key of a collection is shown; see `confide.enclave.api.collections`.
    """
    limits = serving.limits
    line = Line(_DOCUMENTS, limits.waiting, limits.waiting_seconds)
    bodies = Bodies(limits.largest_bytes, limits.body_seconds, limits.bodies_bytes)
    one = f"{STORES}/{{id}}"
    paths = (FILES, f"{FILES}/{{file}}", STORES, one, f"{one}/search", f"{one}/files", f"{one}/files/{{file}}")

    def gate(path: str) -> list[Middleware]:
        return [Middleware(Admission, service=serving, line=line, bodies=bodies, endpoint=path)]

    return [Route(path, search.hand_on, methods=["GET", "POST", "DELETE"], middleware=gate(path)) for path in paths]


def health_routes(service: Service) -> list[Route]:
    """/health, for whoever sends requests here, and /health/live, for whoever restarts what is dead."""
    return [Route("/health", partial(health, service)), Route("/health/live", partial(live, service))]


async def health(service: Service, _request: Request) -> Response:
    """Whether an answer can be made now: with status 503 where an engine makes none, or computes garbage."""
    try:
        service.require_sound()
        service.require_alive()
    except ConfideError as error:
        return json_response({"status": "failed", "reason": error.code}, 503)
    return json_response({"status": "ok"})


async def live(service: Service, _request: Request) -> Response:
    """That there is a server, whatever its engine does: with status 503 where nothing but a restart would help."""
    if service.users is not None and service.users.over:
        return json_response({"status": "failed", "reason": LedgerUnavailable.code}, 503)
    return json_response({"status": "ok"})

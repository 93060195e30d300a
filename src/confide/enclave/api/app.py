"""The API over one engine. It knows of no channel: whoever puts it on a network sees to that."""

from collections.abc import Awaitable, Callable
from functools import partial

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from confide.enclave.api.admission import Admission, Slots
from confide.enclave.api.answer import Serving
from confide.enclave.api.openai import OpenAi, json_response
from confide.enclave.api.problems import HANDLERS
from confide.enclave.api.simple import Simple
from confide.errors import SelfTestFailed

API_PATHS = ("/v1", "/generate", "/chat")
"""Below these questions are asked, in the clear; see `confide.enclave.api.public`."""


def api_app(serving: Serving) -> Starlette:
    """An ASGI application with OpenAI's endpoints, /generate, /chat and /health."""
    openai, simple, slots = OpenAi(serving), Simple(serving), Slots(serving.limits.concurrent)

    def answering(path: str, endpoint: Callable[[Request], Awaitable[Response]], *methods: str) -> Route:
        gate = Middleware(Admission, serving=serving, slots=slots, endpoint=path)
        return Route(path, endpoint, methods=methods or ("POST",), middleware=[gate])

    return Starlette(
        routes=[
            Route("/health", partial(health, serving)),
            Route("/v1/models", openai.models),
            Route("/v1/models/{name:path}", openai.model),
            answering("/v1/chat/completions", openai.chat),
            answering("/v1/completions", openai.completions),
            answering("/v1/embeddings", openai.embeddings),
            answering("/generate", simple.generate),
            answering("/chat", simple.chat, "GET", "POST"),
        ],
        exception_handlers=HANDLERS,
    )


async def health(serving: Serving, _request: Request) -> Response:
    """That there is a server, and whether it answers: with status 503 once its engine computes garbage."""
    try:
        serving.require_sound()
    except SelfTestFailed as error:
        return json_response({"status": "failed", "reason": error.code}, 503)
    return json_response({"status": "ok"})

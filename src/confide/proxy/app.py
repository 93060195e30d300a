"""The proxy's HTTP: OpenAI's endpoints, each question passed on to the model that it names."""

import asyncio
import contextlib
import hmac
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from confide.enclave.api.failures import Outlet
from confide.enclave.api.openai import json_response
from confide.enclave.api.problems import HANDLERS, problem_response
from confide.errors import PASSING, AttestationRefused, KeyChanged, RequestRefused, UnknownModel, UnknownReceipt
from confide.net.body import Bodies
from confide.proxy.backend import Backend, Question, State
from confide.proxy.page.page import page_routes

MAX_BODY_BYTES: Final = 8 << 20
_BODY_SECONDS: Final = 30.0
_BODIES_BYTES: Final = 64 << 20
_NOT_BEGUN: Final = (*PASSING, AttestationRefused, KeyChanged)
"""Errors that only come before an answer has begun: another backend may be asked the same."""


class ProxyApp:
    """The application. backends: each model's. stop: called by whoever shows `stop_token`."""

    def __init__(self, backends: Sequence[Backend], stop_token: str, stop: Callable[[], None]) -> None:
        self._backends = backends
        self._stop_token = stop_token
        self._stop = stop
        self._started = int(time.time())

    def asgi(self) -> Starlette:
        """As ASGI servers take it."""
        return Starlette(
            routes=[
                *page_routes(),
                Route("/health", self._health),
                Route("/confide/status", self._status),
                Route("/confide/stop", self._end, methods=["POST"]),
                Route("/v1/models", self._models),
                Route("/v1/models/{name:path}", self._model),
                Route("/v1/aci/receipts/{id}", self._receipt),
                Route("/v1/{path:path}", _Endpoint(self)),
            ],
            exception_handlers=HANDLERS,
            lifespan=self._lifespan,
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(backend.run()) for backend in self._backends]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for backend in self._backends:
                await backend.close()

    async def _health(self, _request: Request) -> Response:
        """Whether questions can be asked: 503 while no model is ready."""
        states = [backend.state for backend in self._backends]
        order = (State.READY, State.VERIFYING, State.UNREACHABLE, State.REFUSED)
        best = next(state for state in order if state in states)
        content = {"status": best.value, "backends": [_brief(backend) for backend in self._backends]}
        return json_response(content, 200 if best is State.READY else 503)

    async def _status(self, _request: Request) -> Response:
        """What was verified of each backend."""
        return json_response({"backends": [_brief(backend) | backend.describe() for backend in self._backends]})

    async def _end(self, request: Request) -> Response:
        shown = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(shown.encode(), self._stop_token.encode()):
            return problem_response(RequestRefused("Only `confide proxy stop` of the same user stops this proxy."))
        self._stop()
        return json_response({"status": "stopping"})

    async def _models(self, _request: Request) -> Response:
        return json_response({"object": "list", "data": [self._described(name) for name in self._names()]})

    async def _model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._names():
            return problem_response(_unknown())
        return json_response(self._described(name))

    async def _receipt(self, request: Request) -> Response:
        """As whoever signed it wrote it; whoever knows an id, which nobody can guess, may have it."""
        found = (backend.receipts.get(request.path_params["id"]) for backend in self._backends)
        receipt = next(filter(None, found), None)
        if receipt is None:
            return problem_response(
                UnknownReceipt("There is no such receipt here, or not any more; fetch them right after answers.")
            )
        return Response(receipt, 200, {"cache-control": "no-store"}, media_type="application/json")

    def _described(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._started, "owned_by": "confide"}

    def _names(self) -> list[str]:
        return list(dict.fromkeys(name for backend in self._backends for name in backend.models))

    async def begin(self, question: Question, name: str, scope: Scope, receive: Receive) -> ASGIApp:
        """An answer of a backend of this name. While none has begun, the next one that is ready is asked instead."""
        tried: list[Backend] = []
        backend = await self._choose(name)
        while True:
            try:
                return await backend.begin(question, scope, receive)
            except _NOT_BEGUN:
                tried.append(backend)
                others = (one for one in self._backends if name in one.models and one.state is State.READY)
                other = next((one for one in others if one not in tried), None)
                if other is None:
                    raise
                backend = other

    async def _choose(self, name: str) -> Backend:
        """A backend that answers to this name and is ready; the first one listed that is."""
        if not any(name in backend.models for backend in self._backends):
            # What a backend serves under names of its own is known once it is verified.
            unnamed = [backend for backend in self._backends if not backend.models]
            for backend in unnamed:
                await backend.ready()
        able = [backend for backend in self._backends if name in backend.models]
        if not able:
            raise _unknown()
        chosen = next((backend for backend in able if backend.state is State.READY), None)
        if chosen is None:
            chosen = next((backend for backend in able if backend.state is State.VERIFYING), able[0])
            await chosen.ready()
        return chosen


class _Endpoint:
    """POST below /v1, whatever it is: what a model's server does not have, it refuses itself."""

    def __init__(self, proxy: ProxyApp) -> None:
        self._proxy = proxy
        self._bodies = Bodies(MAX_BODY_BYTES, _BODY_SECONDS, _BODIES_BYTES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await Outlet(send).fill(self._answer, scope, receive)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if request.method != "POST":
            raise RequestRefused("This endpoint takes another method; use POST for questions.")
        async with self._bodies.read(request) as body:
            fields = _fields(body)
        name = fields.get("model")
        if not isinstance(name, str):
            raise RequestRefused("A question names its model; /v1/models lists them.", "model")
        question = Question("/" + scope["path"].removeprefix("/v1/"), body, fields)
        answer = await self._proxy.begin(question, name, scope, receive)
        await answer(scope, receive, send)


def _fields(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise RequestRefused("The question is not a JSON object; see OpenAI's API reference.") from None


def _unknown() -> UnknownModel:
    return UnknownModel("This model is not served here; /v1/models says which are.", "model")


def _brief(backend: Backend) -> dict[str, Any]:
    reason = {} if backend.problem is None else {"reason": str(backend.problem), "code": backend.problem.code}
    receipts = {"receipts": backend.receipts.counts()}
    return {"models": list(backend.models), "state": backend.state.value, **reason, **receipts}

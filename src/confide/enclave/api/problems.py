"""Errors as the APIs show them, each with its status. They say what to do, and quote nothing of a request.

OpenAI's form is that of every path but those of Anthropic's API, whose programs look for theirs.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from confide.errors import (
    PASSING,
    REFUSING,
    AnswerTimedOut,
    ApiKeyRefused,
    BudgetExhausted,
    CollectionDamaged,
    ConfideError,
    EngineError,
    EngineUnavailable,
    EvidenceUnavailable,
    InsecureConnection,
    LedgerUnavailable,
    LicenceError,
    NeighbourRefused,
    NonceRefused,
    NotANeighbour,
    PromptRefused,
    PromptTooLong,
    RateLimited,
    RequestRefused,
    RequestTimedOut,
    RequestTooLarge,
    SelfTestFailed,
    ServerBusy,
    ServerFault,
    UnknownCorpus,
    UnknownDocument,
    UnknownModel,
    UnknownReceipt,
    UnreadableDocument,
)

_INVALID: Final = "invalid_request_error"
_PERMISSION: Final = "permission_error"
_QUOTA: Final = "insufficient_quota"
KINDS: Final[Mapping[type[Exception], tuple[int, str]]] = {
    RequestRefused: (400, _INVALID),
    RequestTooLarge: (413, _INVALID),
    RequestTimedOut: (408, _INVALID),
    UnknownModel: (404, _INVALID),
    UnknownCorpus: (404, _INVALID),
    UnknownDocument: (404, _INVALID),
    UnreadableDocument: (400, _INVALID),
    CollectionDamaged: (500, "server_error"),
    UnknownReceipt: (404, "not_found"),
    PromptRefused: (400, _INVALID),
    EngineError: (502, "server_error"),
    EngineUnavailable: (503, "server_error"),
    InsecureConnection: (403, _INVALID),
    NotANeighbour: (403, _PERMISSION),
    NonceRefused: (409, _INVALID),
    NeighbourRefused: (502, "server_error"),
    ApiKeyRefused: (401, _INVALID),
    BudgetExhausted: (429, _QUOTA),
    ServerBusy: (429, "rate_limit_error"),
    LedgerUnavailable: (503, "server_error"),
    AnswerTimedOut: (504, "timeout_error"),
    EvidenceUnavailable: (503, "server_error"),
    SelfTestFailed: (503, "server_error"),
}
"""The status of an error that a workload reports, and its type in OpenAI's words; or that of its nearest parent."""
_OWN: Final[Mapping[type[Exception], tuple[int, str]]] = {
    # Somebody is not to be trusted, or allows nothing: no program asks again by itself at a 403.
    **dict.fromkeys((*REFUSING, LicenceError), (403, _PERMISSION)),
    **dict.fromkeys(PASSING, (502, "server_error")),
}
"""The same of what the local proxy finds out: no peer's word is taken for these."""
_OPENAI_CODES: Final[Mapping[type[Exception], str]] = {
    ApiKeyRefused: "invalid_api_key",
    BudgetExhausted: _QUOTA,
    PromptTooLong: "context_length_exceeded",
    RateLimited: "rate_limit_exceeded",
    UnknownModel: "model_not_found",
}
"""Where programs look for OpenAI's own word; elsewhere the code is the error's in `confide.errors`."""
MESSAGES: Final = "/v1/messages"
"""Here and below is Anthropic's API."""
_ANTHROPIC_KINDS: Final[Mapping[int, str]] = {
    401: "authentication_error",
    403: _PERMISSION,
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
}
"""The type of an error in Anthropic's words, by its status; of any other, whose fault it is."""
_HTTP: Final = {
    404: "There is no such endpoint here; /v1/models, /v1/chat/completions, /v1/completions, /v1/responses, "
    "/v1/messages and /v1/embeddings are, or /v1/vector_stores where a corpus is served, and /v1/files "
    "where its users keep documents of their own.",
    405: "This endpoint takes another method; use POST for questions.",
}
_MAX_RETRY_SECONDS: Final = 3600
_SERVERS_FAULT: Final = 500


def problem(error: Exception, path: str = "", status: int | None = None) -> dict[str, Any]:
    """An error's JSON in the form of the path's API. Of one that is not Confide's own it tells nothing.

    status: that of its response, where it is not the error's own.
    """
    own_status, kind = _kind(error)
    if not isinstance(error, ConfideError):
        error = ServerFault("The workload failed inside; ask its operator, whose log says where.")
    if path == MESSAGES or path.startswith(MESSAGES + "/"):
        status = status or own_status
        kind = _ANTHROPIC_KINDS.get(status, "api_error" if status >= _SERVERS_FAULT else _INVALID)
        return {"type": "error", "error": {"type": kind, "message": str(error)}}
    code = _OPENAI_CODES.get(type(error), error.code)
    return {"error": {"message": str(error), "type": kind, "param": getattr(error, "field", None), "code": code}}


def problem_response(error: Exception, path: str = "", status: int | None = None) -> Response:
    """An error as an HTTP response; path and status as in `problem`."""
    return _response(problem(error, path, status), status or _kind(error)[0], retry_headers(error))


def retry_headers(error: Exception) -> dict[str, str] | None:
    """When to try again, where an error says so; and that OpenAI's clients should not, where that is of no use."""
    if isinstance(error, BudgetExhausted):
        return {"x-should-retry": "false"}
    if not isinstance(error, ServerBusy):
        return None
    return {"retry-after": str(min(max(1, math.ceil(error.retry_seconds)), _MAX_RETRY_SECONDS))}


async def on_confide_error(request: Request, error: Exception) -> Response:
    """Exception handler for an application."""
    return problem_response(error, request.url.path)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Exception handler for what the framework refuses: paths and methods."""
    if not isinstance(error, HTTPException):
        raise error
    refused = RequestRefused(_HTTP.get(error.status_code, "This request cannot be answered; see the docs."))
    return _response(problem(refused, request.url.path, error.status_code), error.status_code, error.headers)


async def on_disconnect(_request: Request, _error: Exception) -> Response:
    """Exception handler for clients that went away. Nobody reads this; 499 is nginx's number for it."""
    return Response(status_code=499)


HANDLERS: Final = {
    ConfideError: on_confide_error,
    HTTPException: on_http_error,
    ClientDisconnect: on_disconnect,
}


def _kind(error: Exception) -> tuple[int, str]:
    for parent in type(error).__mro__:
        if found := KINDS.get(parent) or _OWN.get(parent):
            return found
    return 500, "server_error"


def _response(content: dict[str, Any], status: int, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")

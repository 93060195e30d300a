"""The broker over HTTP. Bodies are bounded in size and time; refusals are JSON with a code and the failed checks."""

import logging
import math
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from confide.broker.broker import Broker
from confide.channel.key_release import (
    MAX_REQUEST_BYTES,
    NONCE_PATH,
    RELEASE_PATH,
    Refusal,
    RefusalAnswer,
    ReleaseRequest,
)
from confide.errors import (
    ConfideError,
    KeyRefused,
    MalformedMessage,
    NonceRefused,
    RequestTimedOut,
    RequestTooLarge,
    ServerBusy,
    ServerFault,
    UnknownModelKey,
)
from confide.net.body import Bodies, origin_of

CONNECTIONS: Final = 1024
BODY_SECONDS: Final = 30.0
BODIES_BYTES: Final = 16 * MAX_REQUEST_BYTES
"""Of all requests that come in or are looked at."""
STATUS: Final[Mapping[type[ConfideError], int]] = MappingProxyType(
    {
        MalformedMessage: 400,
        RequestTimedOut: 408,
        RequestTooLarge: 413,
        KeyRefused: 403,
        UnknownModelKey: 404,
        NonceRefused: 409,
        ServerBusy: 429,
    }
)
"""What may be told to a stranger. Of anything else the broker's own log says more."""
_FAULT: Final = ServerFault("The key broker failed inside; its own log says why. Tell the model's owner.")
_log = logging.getLogger(__name__)

Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]
Clock = Callable[[], datetime]


def key_broker_app(broker: Broker, clock: Clock = lambda: datetime.now(UTC)) -> Starlette:
    """The two endpoints of `messages`."""
    bodies = Bodies(MAX_REQUEST_BYTES, BODY_SECONDS, BODIES_BYTES)

    async def nonce(request: Request) -> Response:
        return _answer(broker.nonce(clock(), origin_of(request)))

    async def release(request: Request) -> Response:
        peer = request.client.host if request.client else ""
        async with bodies.read(request) as body:
            asked = _parse(body)
            # In a thread, since it waits for the disk, and sometimes for a vendor's collateral.
            return _answer(await run_in_threadpool(lambda: broker.release(asked, clock(), peer)))

    routes = [
        Route(NONCE_PATH, _refusing(nonce), methods=["POST"]),
        Route(RELEASE_PATH, _refusing(release), methods=["POST"]),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _no_such_endpoint})


def _refusing(endpoint: Endpoint) -> Endpoint:
    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ConfideError as error:
            if type(error) in STATUS:
                return _refuse(STATUS[type(error)], error)
            _log.error("A key was not released: %s", error)
        except ClientDisconnect:
            return Response(status_code=400)  # to nobody
        except Exception:  # noqa: BLE001 - whatever it is, a stranger hears nothing of it
            _log.exception("The key broker failed.")
        return _refuse(500, _FAULT)

    return answer


def _parse(body: bytes) -> ReleaseRequest:
    try:
        return msgspec.json.decode(body, type=ReleaseRequest)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise MalformedMessage("This is no request for a key, or it was damaged; see the protocol.") from None


def _answer(message: msgspec.Struct, status: int = 200, retry_seconds: float | None = None) -> Response:
    headers = {"Cache-Control": "no-store"}
    if retry_seconds is not None:
        headers["Retry-After"] = str(math.ceil(retry_seconds))
    return Response(msgspec.json.encode(message), status, headers, media_type="application/json")


def _refuse(status: int, error: ConfideError) -> Response:
    checks = error.checks if isinstance(error, KeyRefused) else ()
    retry_seconds = error.retry_seconds if isinstance(error, ServerBusy) else None
    return _answer(RefusalAnswer(Refusal(error.code, str(error), checks)), status, retry_seconds)


async def _no_such_endpoint(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    return _refuse(status, MalformedMessage(f"Ask with POST {NONCE_PATH} and POST {RELEASE_PATH}."))

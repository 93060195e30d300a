"""Requests that a service hands on to one behind it, and that one's answers, part by part and as they are."""

import re
from collections.abc import AsyncIterator, Sequence
from typing import Final

import httpx
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from confide.enclave.api.own import HEAD_HEADER
from confide.errors import RequestRefused

_BACK: Final = ("content-type", "retry-after", HEAD_HEADER)
_PATH: Final = re.compile(r"(?:/[A-Za-z0-9_-]+)+")


async def handed_on(there: httpx.AsyncClient, request: Request, body: bytes, headers: Sequence[str]) -> Response:
    """The answer of whoever is there, by paths alone. headers: those of the request that go along.

    RequestRefused for a path that another one may read in another way; what the client raises.
    """
    path = request.url.path
    if not _PATH.fullmatch(path):
        raise RequestRefused("There is nothing by this name here; use an id as it was given.")
    shown = {name: value for name in headers if (value := request.headers.get(name))}
    answer = await there.send(there.build_request(request.method, path, content=body, headers=shown), stream=True)

    async def parts() -> AsyncIterator[bytes]:
        try:
            async for part in answer.aiter_raw():
                yield part
        finally:
            await answer.aclose()

    back = {name: value for name in _BACK if (value := answer.headers.get(name))}
    return StreamingResponse(parts(), answer.status_code, back)

"""What comes in with a request: a body, as large as it may be and all of them no larger, from whom, with what key."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.datastructures import Headers
from starlette.requests import Request

from confide.errors import RequestTimedOut, RequestTooLarge, ServerBusy
from confide.net.fairness import Shares, origin


class Bodies:
    """Takes bodies in, as long as together they are not too much to keep."""

    def __init__(self, most: int, seconds: float, together: int) -> None:
        """most: bytes of one. seconds: for one to arrive. together: bytes of all that are held."""
        self._most, self._seconds = most, seconds
        self._shares = Shares(together)

    @asynccontextmanager
    async def read(self, request: Request, who: str | None = None) -> AsyncIterator[bytes]:
        """A body, which counts as held until the block ends. RequestTooLarge, RequestTimedOut, and ServerBusy.

        who: whom it counts for; where it comes from without.
        """
        who = origin_of(request) if who is None else who
        body = bytearray()
        try:
            async with asyncio.timeout(self._seconds):
                async for part in request.stream():
                    if len(body) + len(part) > self._most:
                        raise RequestTooLarge(f"A request has at most {self._most} bytes here; send less text.")
                    if part and not self._shares.take(who, len(part)):
                        raise ServerBusy("Too many large requests come in at once; try again in a moment.")
                    body += part
        except BaseException as error:
            self._give_back(who, len(body))
            if isinstance(error, TimeoutError):
                raise RequestTimedOut("The request did not arrive in time; send it again.") from None
            raise
        try:
            yield bytes(body)
        finally:
            self._give_back(who, len(body))

    def _give_back(self, who: str, size: int) -> None:
        if size:
            self._shares.give_back(who, size)


def bearer(headers: Headers) -> str:
    """The key that a request shows, as OpenAI's programs do, or in `x-api-key`, as Anthropic's do; empty for none."""
    given = headers.getlist("authorization")
    if len(given) > 1:
        return ""
    scheme, _, token = (given or [""])[0].partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def origin_of(request: Request) -> str:
    """Whom a request counts for."""
    return origin(request.client.host, request.client.port) if request.client else ""

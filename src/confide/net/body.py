"""Bodies of requests, as large as they may be and no larger."""

import asyncio

from starlette.requests import Request

from confide.errors import RequestTimedOut, RequestTooLarge


async def read_body(request: Request, most: int, seconds: float) -> bytes:
    """A body of at most so many bytes, which has arrived in time: RequestTooLarge and RequestTimedOut otherwise."""
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise RequestTooLarge(f"A request has at most {most} bytes here; send less text.")
    except TimeoutError:
        raise RequestTimedOut("The request did not arrive in time; send it again.") from None
    return bytes(body)

"""Server-sent events: answers that arrive while they are made.

Encryption hides what an event says, and not how long it is: the lengths of tokens alone give much of a text away
(Weiss, Ayub and Mirsky, USENIX Security 2024). So every event is filled up with spaces, which JSON ignores.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

import msgspec
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from confide.enclave.api.answer import Answer

_GRAIN: Final = 256
"""Events are of a multiple of this many bytes."""


def event(data: Any, name: str = "", number: int = 0) -> bytes:
    """One event with JSON as its data; name and number are left out where there are none."""
    head = (f"id: {number}\n" if number else "") + (f"event: {name}\n" if name else "")
    line = head.encode() + b"data: " + msgspec.json.encode(data)
    return line + b" " * (-(len(line) + 2) % _GRAIN) + b"\n\n"


KEEP_ALIVE: Final = b":" + b" " * (_GRAIN - 3) + b"\n\n"
"""A comment in place of an event."""


class EventStream(StreamingResponse):
    """Sends events as they come. However it ends, the engine's work on the answer ends with it."""

    def __init__(self, events: AsyncGenerator[bytes, None], answer: Answer) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self._events = events
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._answer), aclosing(self._events):
            await super().__call__(scope, receive, send)

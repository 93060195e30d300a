"""Two endpoints without ceremony: /generate for one question, /chat for a conversation as server-sent events.

Both are compatible with Cosmian's example of a confidential model (github.com/Cosmian/mse-example-gpt).
"""

import base64
import binascii
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from confide.enclave.api.answer import Answer, Serving, begin, read, while_connected
from confide.enclave.api.events import EventStream, event
from confide.enclave.api.openai import as_turns, json_response
from confide.enclave.api.problems import problem
from confide.enclave.api.schemas import GenerateRequest, PromptRequest, convert
from confide.enclave.engines.engine import Message
from confide.errors import ConfideError, RequestRefused


@dataclass(frozen=True)
class Simple:
    """The endpoints over one engine."""

    serving: Serving

    async def generate(self, request: Request) -> Response:
        """{"query": ...} to {"response": ...}."""
        asked = await read(request, GenerateRequest)
        answer = await begin(self.serving, request, asked.query, asked)
        async with aclosing(answer):
            text, _ = await while_connected(request, answer.whole())
        return json_response({"response": text})

    async def chat(self, request: Request) -> Response:
        """Events named data, each with a piece of the answer as a JSON string, then one named end.

        By POST a PromptRequest, by GET its prompt alone as `?prompt=`, which is what browsers' EventSource can do.
        With `history`, even an empty one, the prompt is the user's next turn after it. Without, it goes to the model
        as it is, and holds whatever was said before.
        """
        if request.method == "GET":
            asked = convert(dict(request.query_params), PromptRequest)
        else:
            asked = await read(request, PromptRequest)
        text = _decoded(asked.prompt)
        prompt = text if asked.history is None else [*as_turns(asked.history), Message("user", text)]
        answer = await begin(self.serving, request, prompt, asked)
        return EventStream(_events(answer), answer)


async def _events(answer: Answer) -> AsyncGenerator[bytes, None]:
    number = 0
    finish = None
    try:
        async for piece in answer:
            number += 1
            finish = piece.finish
            yield event(piece.text, "data", number)
    except ConfideError as error:
        yield event(problem(error), "error", number + 1)
        return
    yield event({"finish_reason": finish}, "end", number + 1)


def _decoded(prompt: str) -> str:
    try:
        return base64.b64decode(prompt, validate=True).decode()
    except (binascii.Error, ValueError):
        raise RequestRefused("`prompt` is not base64 of UTF-8 text; encode it so.", "prompt") from None

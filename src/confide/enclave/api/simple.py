"""Two endpoints without ceremony: /generate, whole or as server-sent events, and /chat for a conversation.

/generate is that of Cosmian's example of a confidential model (github.com/Cosmian/mse-example-gpt), whose clients can
ask it: POST answers a `query`, and GET streams what follows a `prompt`. /chat is Confide's own.
"""

import base64
import binascii
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from confide.enclave.api.answer import Answer, Serving, begin, read, while_connected
from confide.enclave.api.events import EventStream, event
from confide.enclave.api.openai import as_turns, json_response
from confide.enclave.api.problems import problem
from confide.enclave.api.schemas import GenerateRequest, PromptRequest, convert
from confide.enclave.engines.engine import Message
from confide.enclave.engines.prompts import BYTES_PER_TOKEN
from confide.errors import ConfideError, RequestRefused

ANSWER_TOKENS: Final = 64
SEED: Final = 123
"""What the example answers with; here a request may say otherwise."""
_Asked = TypeVar("_Asked", GenerateRequest, PromptRequest)


@dataclass(frozen=True)
class Simple:
    """The endpoints over one engine."""

    serving: Serving

    async def generate(self, request: Request) -> Response:
        """{"query": ...} to {"response": ...}; by GET a stream, see `_stream`."""
        if request.method == "GET":
            return await self._stream(request)
        asked = _as_the_example(await read(request, GenerateRequest))
        answer = await begin(self.serving, request, asked.query, asked)
        async with aclosing(answer):
            [choice] = await while_connected(request, answer.whole())
        return json_response({"response": choice.text})

    async def _stream(self, request: Request) -> Response:
        """What follows `?prompt=`, base64 of UTF-8 text: events named data, each a JSON string, then one named end.

        The prompt goes to the model as it is. Of one that is too long, the beginning is left out, so that a history
        that grows with each turn goes on being answered.
        """
        asked = _as_the_example(convert(dict(request.query_params), PromptRequest))
        prompt = await self._end_of(_decoded(asked.prompt), asked.max_tokens or ANSWER_TOKENS)
        answer = await begin(self.serving, request, prompt, asked)
        return EventStream(_events(answer, told=False), answer)

    async def _end_of(self, text: str, answer_tokens: int) -> str:
        """The longest end of a text that leaves room for an answer of so many tokens."""
        engine, limits = self.serving.engine, self.serving.limits
        most = max(1, min(limits.prompt_tokens, engine.facts.context - answer_tokens))

        async def fits(text: str) -> bool:
            return len((await engine.read(text)).tokens) <= most

        # More bytes than that are not read at all.
        text = text.encode()[-most * BYTES_PER_TOKEN :].decode(errors="ignore")
        if await fits(text):
            return text
        left_out, too_few = len(text), 0
        while left_out - too_few > 1:
            middle = (left_out + too_few) // 2
            if await fits(text[middle:]):
                left_out = middle
            else:
                too_few = middle
        return text[left_out:]

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
        return EventStream(_events(answer, told=True), answer)


def _as_the_example(asked: _Asked) -> _Asked:
    """A request with the example's length and seed, where it names none."""
    seed = SEED if asked.seed is None else asked.seed
    return msgspec.structs.replace(asked, max_tokens=asked.max_tokens or ANSWER_TOKENS, seed=seed)


async def _events(answer: Answer, *, told: bool) -> AsyncGenerator[bytes, None]:
    """told: whether the last one says why the answer ends."""
    number = 0
    finish = None
    try:
        async for _, piece in answer:
            number += 1
            finish = piece.finish
            yield event(piece.text, "data", number)
    except ConfideError as error:
        yield event(problem(error), "error", number + 1)
        return
    end: dict[str, Any] = {"finish_reason": finish} if told else {}
    yield event(end, "end", number + 1)


def _decoded(prompt: str) -> str:
    try:
        return base64.b64decode(prompt, validate=True).decode()
    except (binascii.Error, ValueError):
        raise RequestRefused("`prompt` is not base64 of UTF-8 text; encode it so.", "prompt") from None

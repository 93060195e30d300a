"""Anthropic's endpoints, /v1/messages and /v1/messages/count_tokens.

Forms after Anthropic's API reference (Messages; Streaming; Errors). A request becomes a conversation and its sampling,
and the answer a message of one block; all between is that of OpenAI's endpoints.
"""

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from confide.enclave.api.answer import Choice, Serving, Wanted, read, while_connected
from confide.enclave.api.events import event
from confide.enclave.api.openai import json_response, require_model, respond
from confide.enclave.api.problems import MESSAGES, problem
from confide.enclave.api.schemas import MAX_MESSAGES, MAX_PARTS, MAX_STOPS, SamplingFields, Stop
from confide.enclave.api.shapes import Object, Shape
from confide.enclave.engines.engine import FinishReason, Message, Piece
from confide.errors import ConfideError, RequestRefused

_BETWEEN: Final = "\n\n"
"""Between blocks, and between turns of the same speaker."""


class TextBlock(msgspec.Struct, forbid_unknown_fields=True):
    """A block of a message; texts are the only kind here. What else may stand in it has no effect."""

    type: Literal["text"]
    text: str
    citations: Any = None
    cache_control: Any = None


_Blocks = Annotated[list[TextBlock], Meta(max_length=MAX_PARTS)]


class Turn(msgspec.Struct, forbid_unknown_fields=True):
    """A turn of a conversation."""

    role: Literal["user", "assistant"]
    content: str | _Blocks


class CountRequest(msgspec.Struct, kw_only=True):
    """POST /v1/messages/count_tokens."""

    model: str
    messages: Annotated[list[Turn], Meta(min_length=1, max_length=MAX_MESSAGES)]
    system: str | _Blocks | None = None


class MessageRequest(CountRequest, kw_only=True):
    """POST /v1/messages."""

    max_tokens: Annotated[int, Meta(ge=1)]
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=1 << 20)] | None = None
    stop_sequences: Annotated[list[Stop], Meta(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None


@dataclass(frozen=True)
class Messages:
    """The endpoints over one engine."""

    serving: Serving

    async def create(self, request: Request) -> Response:
        """The next turn of a conversation."""
        asked = await read(request, MessageRequest)
        require_model(self.serving, asked.model)
        fields = SamplingFields(
            max_tokens=asked.max_tokens,
            temperature=asked.temperature,
            top_p=asked.top_p,
            top_k=asked.top_k,
            stop=asked.stop_sequences,
        )
        shape = MessageShape(asked.model)
        return await respond(self.serving, request, _turns(asked), fields, Wanted(), shape, stream=bool(asked.stream))

    async def count(self, request: Request) -> Response:
        """How many tokens a conversation has, without an answer."""
        asked = await read(request, CountRequest)
        require_model(self.serving, asked.model)
        prompt = await while_connected(request, self.serving.engine.read(_turns(asked)))
        return json_response({"input_tokens": len(prompt.tokens)})


def _turns(asked: CountRequest) -> list[Message]:
    """The conversation, in which no two turns in a row are of the same speaker.

    RequestRefused for one that ends with the assistant's, which a chat template cannot go on with.
    """
    turns: list[Message] = []
    for turn in asked.messages:
        text = _text(turn.content)
        if turns and turns[-1].role == turn.role:
            turns[-1] = Message(turn.role, turns[-1].content + _BETWEEN + text)
        else:
            turns.append(Message(turn.role, text))
    if turns[-1].role == "assistant":
        raise RequestRefused("The beginning of an answer is not offered here; end with the user's turn.", "messages")
    system = _text(asked.system or "")
    return [Message("system", system), *turns] if system else turns


def _text(content: str | list[TextBlock]) -> str:
    return content if isinstance(content, str) else _BETWEEN.join(block.text for block in content)


class MessageShape(Shape):
    """Of /v1/messages: one message of one block, whose text comes in deltas."""

    def __init__(self, model: str) -> None:
        self._end: Object = {}
        self._head: Object = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": model,
        }

    def whole(self, choices: Sequence[Choice], usage: Object) -> Object:
        """As `Shape.whole`."""
        [choice] = choices
        content = {"type": "text", "text": choice.text}
        return self._head | {"content": [content]} | _end(choice.finish, choice.stop) | {"usage": _usage(usage)}

    def opening(self, usage: Object) -> Iterable[bytes]:
        """As `Shape.opening`."""
        message = self._head | {"content": [], "stop_reason": None, "stop_sequence": None}
        yield _event("message_start", message=message | {"usage": _usage(usage)})
        yield _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
        yield _event("ping")

    def part(self, index: int, piece: Piece) -> Iterable[bytes]:
        """As `Shape.part`."""
        if piece.finish:
            self._end = _end(piece.finish, piece.stop)
        yield _event("content_block_delta", index=0, delta={"type": "text_delta", "text": piece.text})

    def closing(self, usage: Object) -> Iterable[bytes]:
        """As `Shape.closing`."""
        yield _event("content_block_stop", index=0)
        yield _event("message_delta", delta=self._end, usage=_usage(usage))
        yield _event("message_stop")

    def failed(self, error: ConfideError) -> Iterable[bytes]:
        """As `Shape.failed`."""
        yield event(problem(error, MESSAGES), "error")


def _event(kind: str, **content: Any) -> bytes:
    return event({"type": kind} | content, kind)


def _end(finish: FinishReason | None, stop: str | None) -> Object:
    """Why an answer is over. stop: as in `Piece`; the stop text is null where the engine does not know which it was."""
    if finish == "stop":
        return {"stop_reason": "end_turn" if stop is None else "stop_sequence", "stop_sequence": stop or None}
    return {"stop_reason": "refusal" if finish == "content_filter" else "max_tokens", "stop_sequence": None}


def _usage(usage: Object) -> Object:
    """What was read from a cache is no input token in Anthropic's words."""
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": usage["prompt_tokens"] - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage["completion_tokens"],
    }

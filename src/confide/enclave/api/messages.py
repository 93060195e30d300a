"""Anthropic's endpoints, /v1/messages and /v1/messages/count_tokens.

Forms after Anthropic's API reference (Messages; Streaming; Errors). A request becomes a conversation and its sampling,
and the answer a message of blocks; all between is that of OpenAI's endpoints.
"""

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from confide.enclave.api.answer import Choice, Serving, Wanted, planned, read, while_connected
from confide.enclave.api.events import event
from confide.enclave.api.openai import json_response, offer_of, require_model, respond, tool_of
from confide.enclave.api.problems import MESSAGES, problem
from confide.enclave.api.schemas import (
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_STOPS,
    MAX_TOOLS,
    CallId,
    FunctionName,
    SamplingFields,
    Stop,
)
from confide.enclave.api.shapes import BlockShape, Object
from confide.enclave.engines.engine import Chosen, FinishReason, Message
from confide.enclave.engines.tools import CallPart, Offer, ToolCall
from confide.errors import ConfideError, RequestRefused

_BETWEEN: Final = "\n\n"
"""Between blocks, and between turns of the same speaker."""


class TextBlock(msgspec.Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    """A text. What else may stand in it has no effect."""

    text: str
    citations: Any = None
    cache_control: Any = None


class CallBlock(msgspec.Struct, tag_field="type", tag="tool_use", forbid_unknown_fields=True):
    """A call in an earlier answer. input: its arguments."""

    id: CallId
    name: FunctionName
    input: dict[str, Any]
    caller: Any = None
    cache_control: Any = None


_Texts = Annotated[list[TextBlock], Meta(max_length=MAX_PARTS)]


class ResultBlock(msgspec.Struct, tag_field="type", tag="tool_result", forbid_unknown_fields=True):
    """What a call gave. is_error: the model is told that it failed."""

    tool_use_id: CallId
    content: str | _Texts | None = None
    is_error: bool | None = None
    cache_control: Any = None


class Turn(msgspec.Struct, forbid_unknown_fields=True):
    """A turn of a conversation. Calls are the assistant's, results the user's."""

    role: Literal["user", "assistant"]
    content: str | Annotated[list[TextBlock | CallBlock | ResultBlock], Meta(max_length=MAX_PARTS)]

    def __post_init__(self) -> None:
        other = ResultBlock if self.role == "assistant" else CallBlock
        if isinstance(self.content, list) and any(isinstance(block, other) for block in self.content):
            raise ValueError("Expected `tool_use` in the assistant's turns and `tool_result` in the user's alone")

    def messages(self) -> list[Message]:
        """As engines take it: a result is a turn of its own."""
        if isinstance(self.content, str):
            return [Message(self.role, self.content)]
        return [self._message(block) for block in self.content] or [Message(self.role, "")]

    def _message(self, block: TextBlock | CallBlock | ResultBlock) -> Message:
        if isinstance(block, TextBlock):
            return Message(self.role, block.text)
        if isinstance(block, CallBlock):
            call = ToolCall(block.id, block.name, msgspec.json.encode(block.input).decode())
            return Message(self.role, "", (call,))
        said = ("Error: " if block.is_error else "") + _text(block.content or "")
        return Message("tool", said, call_id=block.tool_use_id)


class MessageTool(msgspec.Struct, forbid_unknown_fields=True):
    """A tool of the client's. input_schema: a JSON Schema of its arguments."""

    name: FunctionName
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None
    strict: bool | None = None
    cache_control: Any = None

    def __post_init__(self) -> None:
        if self.input_schema.get("type", "object") != "object":
            raise ValueError("Expected `input_schema` to be the schema of an object")


class MessageToolChoice(msgspec.Struct, forbid_unknown_fields=True):
    """What may be called, and must be. name: where the type is `tool`."""

    type: Literal["auto", "any", "tool", "none"]
    name: FunctionName | None = None
    disable_parallel_tool_use: bool | None = None

    def __post_init__(self) -> None:
        if (self.name is not None) != (self.type == "tool"):
            raise ValueError("Expected `name` with the type `tool`, and there alone")


class CountRequest(msgspec.Struct, kw_only=True):
    """POST /v1/messages/count_tokens."""

    model: str
    messages: Annotated[list[Turn], Meta(min_length=1, max_length=MAX_MESSAGES)]
    system: str | _Texts | None = None
    tools: Annotated[list[MessageTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: MessageToolChoice | None = None


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
        wanted = Wanted(offer=_offer(asked))
        shape = MessageShape(asked.model, calls=wanted.offer is not None)
        return await respond(self.serving, request, _turns(asked), fields, wanted, shape, stream=bool(asked.stream))

    async def count(self, request: Request) -> Response:
        """How many tokens a conversation has, with its tools and without an answer."""
        asked = await read(request, CountRequest)
        require_model(self.serving, asked.model)
        engine, turns = self.serving.engine, _turns(asked)
        plan, _ = planned(engine.facts, SamplingFields(), Wanted(offer=_offer(asked)))
        prompt = await while_connected(request, plan.read(engine, turns))
        return json_response({"input_tokens": len(prompt.tokens)})


def _offer(asked: CountRequest) -> Offer | None:
    choice = asked.tool_choice or MessageToolChoice("auto")
    tools = [tool_of(one.name, one.description, one.input_schema, strict=one.strict) for one in asked.tools or ()]
    must = choice.type in ("any", "tool")
    several = not choice.disable_parallel_tool_use
    return offer_of(tools, off=choice.type == "none", must=must, named=choice.name, several=several)


def _turns(asked: CountRequest) -> list[Message]:
    """The conversation, in which no two turns in a row are of the same speaker, but for results of calls.

    RequestRefused for one that ends with the assistant's, which a chat template cannot go on with.
    """
    turns: list[Message] = []
    for message in (message for turn in asked.messages for message in turn.messages()):
        if turns and turns[-1].role == message.role != "tool":
            before = turns.pop()
            said = _BETWEEN.join(filter(None, (before.content, message.content)))
            message = Message(message.role, said, before.calls + message.calls)
        turns.append(message)
    if turns[-1].role == "assistant":
        raise RequestRefused("The beginning of an answer is not offered here; end with the user's turn.", "messages")
    system = _text(asked.system or "")
    return [Message("system", system), *turns] if system else turns


def _text(content: str | list[TextBlock]) -> str:
    return content if isinstance(content, str) else _BETWEEN.join(block.text for block in content)


class MessageShape(BlockShape):
    """Of /v1/messages: a message of a text and calls, which come in deltas."""

    def __init__(self, model: str, *, calls: bool) -> None:
        super().__init__(calls=calls)
        self._index = -1
        self._stopped: Object = {}
        self._head: Object = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": model,
        }

    def whole(self, choices: Sequence[Choice], usage: Object) -> Object:
        """As `Shape.whole`."""
        [choice] = choices
        content: list[Object] = [{"type": "text", "text": choice.text}] if choice.text or not choice.calls else []
        content += [
            _call(call.id, call.name) | {"input": msgspec.Raw(call.arguments.encode())} for call in choice.calls
        ]
        return self._head | {"content": content} | _stopped(choice.finish, choice.stop) | {"usage": _usage(usage)}

    def failed(self, error: ConfideError) -> Iterable[bytes]:
        """As `Shape.failed`."""
        yield event(problem(error, MESSAGES), "error")

    def _begin(self, usage: Object) -> Iterable[bytes]:
        message = self._head | {"content": [], "stop_reason": None, "stop_sequence": None}
        yield _event("message_start", message=message | {"usage": _usage(usage)})
        yield _event("ping")

    def _open_text(self) -> Iterable[bytes]:
        return self._start({"type": "text", "text": ""})

    def _text(self, text: str, chosen: Sequence[Chosen]) -> Iterable[bytes]:
        yield self._delta({"type": "text_delta", "text": text})

    def _open_call(self, call: CallPart) -> Iterable[bytes]:
        return self._start(_call(call.id, call.name) | {"input": {}})

    def _arguments(self, text: str) -> Iterable[bytes]:
        yield self._delta({"type": "input_json_delta", "partial_json": text})

    def _close(self) -> Iterable[bytes]:
        yield _event("content_block_stop", index=self._index)

    def _finish(self, reason: FinishReason, stop: str | None) -> None:
        self._stopped = _stopped(reason, stop)

    def _end(self, usage: Object) -> Iterable[bytes]:
        yield _event("message_delta", delta=self._stopped, usage=_usage(usage))
        yield _event("message_stop")

    def _start(self, block: Object) -> Iterable[bytes]:
        self._index += 1
        yield _event("content_block_start", index=self._index, content_block=block)

    def _delta(self, delta: Object) -> bytes:
        return _event("content_block_delta", index=self._index, delta=delta)


def _event(kind: str, **content: Any) -> bytes:
    return event({"type": kind} | content, kind)


def _call(call_id: str, name: str) -> Object:
    return {"type": "tool_use", "id": call_id, "name": name}


_REASONS: Final[dict[FinishReason | None, str]] = {
    "length": "max_tokens",
    "content_filter": "refusal",
    "tool_calls": "tool_use",
}


def _stopped(finish: FinishReason | None, stop: str | None) -> Object:
    """Why an answer is over. stop: as in `Piece`; the stop text is null where the engine does not know which it was."""
    if finish in _REASONS:
        return {"stop_reason": _REASONS[finish], "stop_sequence": None}
    return {"stop_reason": "end_turn" if stop is None else "stop_sequence", "stop_sequence": stop or None}


def _usage(usage: Object) -> Object:
    """What was read from a cache is no input token in Anthropic's words."""
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": usage["prompt_tokens"] - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage["completion_tokens"],
    }

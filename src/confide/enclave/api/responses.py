"""OpenAI's newer endpoint, /v1/responses, without a memory: every request brings all that was said.

Forms after OpenAI's API reference (Responses; Streaming events). A request becomes a conversation and its sampling, and
the answer items of one message; all between is that of the older endpoints.
"""

import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from confide.enclave.api.answer import Choice, Serving, Wanted, read
from confide.enclave.api.events import event
from confide.enclave.api.openai import require_model, respond
from confide.enclave.api.problems import problem
from confide.enclave.api.schemas import MAX_MESSAGES, MAX_PARTS, SamplingFields
from confide.enclave.api.shapes import Object, Shape, told
from confide.enclave.engines.engine import Chosen, FinishReason, Message, Piece
from confide.errors import ConfideError, RequestRefused

_LOGPROBS: Final = "message.output_text.logprobs"
_INCOMPLETE: Final[Mapping[FinishReason | None, str]] = {
    "length": "max_output_tokens",
    "content_filter": "content_filter",
}
"""Why an answer is no whole one, by how it ended."""


class InputPart(msgspec.Struct, forbid_unknown_fields=True):
    """A part of a message, the user's or an earlier answer's. What else may stand in it has no effect."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: Any = None
    logprobs: Any = None
    prompt_cache_breakpoint: Any = None


class InputItem(msgspec.Struct, forbid_unknown_fields=True):
    """A turn of the conversation; messages are the only items here. id, status and phase are what answers have."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[InputPart], Meta(max_length=MAX_PARTS)]
    type: Literal["message"] = "message"
    id: str | None = None
    status: str | None = None
    phase: str | None = None

    @property
    def text(self) -> str:
        """All parts, joined."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class PlainText(msgspec.Struct, forbid_unknown_fields=True):
    """Text without a form."""

    type: Literal["text"] = "text"


class TextConfig(msgspec.Struct, forbid_unknown_fields=True):
    """What the text is like. verbosity: the usual one alone."""

    format: PlainText | None = None
    verbosity: Literal["medium"] | None = None


class ResponseStreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """include_obfuscation: lengths are hidden anyway."""

    include_obfuscation: bool | None = None


class ResponseRequest(msgspec.Struct, kw_only=True):
    """POST /v1/responses. include: of what there is here, only probabilities; there is no reasoning to encrypt."""

    model: str
    input: str | Annotated[list[InputItem], Meta(min_length=1, max_length=MAX_MESSAGES)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    text: TextConfig | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None


@dataclass(frozen=True)
class Responses:
    """The endpoint over one engine."""

    serving: Serving

    async def create(self, request: Request) -> Response:
        """The next turn of a conversation."""
        asked = await read(request, ResponseRequest)
        require_model(self.serving, asked.model)
        if asked.store:
            raise RequestRefused("`store` is not offered here, where nothing is kept; leave it out.", "store")
        fields = SamplingFields(max_tokens=asked.max_output_tokens, temperature=asked.temperature, top_p=asked.top_p)
        shows = _LOGPROBS in (asked.include or ())
        if asked.top_logprobs and not shows:
            raise RequestRefused(f"`top_logprobs` goes with `{_LOGPROBS}` in `include`; ask for both.", "top_logprobs")
        wanted = Wanted(logprobs=(asked.top_logprobs or 0) if shows else None, limit="max_output_tokens")
        shape = ResponseShape(asked, logprobs=shows)
        return await respond(self.serving, request, _turns(asked), fields, wanted, shape, stream=bool(asked.stream))


def _turns(asked: ResponseRequest) -> list[Message]:
    turns = [Message("system", asked.instructions)] if asked.instructions else []
    if isinstance(asked.input, str):
        return [*turns, Message("user", asked.input)]
    said = [Message("system" if item.role == "developer" else item.role, item.text) for item in asked.input]
    return turns + said


class ResponseShape(Shape):
    """Of /v1/responses: one message of one part, whose text comes in deltas. Events are numbered."""

    def __init__(self, asked: ResponseRequest, *, logprobs: bool) -> None:
        self._logprobs = logprobs
        self._item_id = f"msg_{secrets.token_hex(24)}"
        self._number = 0
        self._text: list[str] = []
        self._chosen: list[Chosen] = []
        self._finish: FinishReason | None = None
        self._head = {
            "id": f"resp_{secrets.token_hex(24)}",
            "object": "response",
            "created_at": int(time.time()),
            "model": asked.model,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "temperature": 1.0 if asked.temperature is None else asked.temperature,
            "top_p": 1.0 if asked.top_p is None else asked.top_p,
            "top_logprobs": asked.top_logprobs or 0,
            "text": {"format": {"type": "text"}, "verbosity": "medium"},
            "tools": [],
            "tool_choice": "auto",
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "truncation": "disabled",
            "background": False,
            "store": False,
            "metadata": {},
        }

    def whole(self, choices: Sequence[Choice], usage: Object) -> Object:
        """As `Shape.whole`."""
        [choice] = choices
        self._text, self._chosen, self._finish = [choice.text], list(choice.chosen), choice.finish
        return self._ended(usage)

    def opening(self, usage: Object) -> Iterable[bytes]:
        """As `Shape.opening`."""
        begun = self._response("in_progress", [])
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        yield self._event("response.output_item.added", output_index=0, item=self._item("in_progress", []))
        yield self._event("response.content_part.added", **self._place, part=self._part("", ()))

    def part(self, index: int, piece: Piece) -> Iterable[bytes]:
        """As `Shape.part`."""
        self._text.append(piece.text)
        self._chosen += piece.chosen
        self._finish = piece.finish
        shown = told(piece.chosen) if self._logprobs else []
        yield self._event("response.output_text.delta", **self._place, delta=piece.text, logprobs=shown)

    def closing(self, usage: Object) -> Iterable[bytes]:
        """As `Shape.closing`."""
        ended = self._ended(usage)
        [item] = ended["output"]
        [part] = item["content"]
        yield self._event("response.output_text.done", **self._place, text=part["text"], logprobs=part["logprobs"])
        yield self._event("response.content_part.done", **self._place, part=part)
        yield self._event("response.output_item.done", output_index=0, item=item)
        yield self._event(f"response.{ended['status']}", response=ended)

    def failed(self, error: ConfideError) -> Iterable[bytes]:
        """As `Shape.failed`."""
        why = {"code": "server_error", "message": problem(error)["error"]["message"]}
        output = [self._item("incomplete", [self._part("".join(self._text), self._chosen)])]
        yield self._event("response.failed", response=self._response("failed", output) | {"error": why})

    @property
    def _place(self) -> Object:
        return {"item_id": self._item_id, "output_index": 0, "content_index": 0}

    def _event(self, kind: str, **content: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return event({"type": kind, "sequence_number": number} | content, kind)

    def _ended(self, usage: Object) -> Object:
        reason = _INCOMPLETE.get(self._finish)
        status = "completed" if reason is None else "incomplete"
        output = [self._item(status, [self._part("".join(self._text), self._chosen)])]
        details = None if reason is None else {"reason": reason}
        return self._response(status, output) | {"incomplete_details": details, "usage": _usage(usage)}

    def _response(self, status: str, output: list[Object]) -> Object:
        ended = {"status": status, "output": output, "error": None, "incomplete_details": None, "usage": None}
        return self._head | ended

    def _item(self, status: str, content: list[Object]) -> Object:
        return {"id": self._item_id, "type": "message", "status": status, "role": "assistant", "content": content}

    def _part(self, text: str, chosen: Sequence[Chosen]) -> Object:
        shown = told(chosen) if self._logprobs else []
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": shown}


def _usage(usage: Object) -> Object:
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {
            "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
            "cache_write_tokens": 0,
        },
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }

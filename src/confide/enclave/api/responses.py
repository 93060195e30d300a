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
from confide.enclave.api.openai import grounded, offer_of, require_model, respond, tool_of
from confide.enclave.api.problems import problem
from confide.enclave.api.schemas import (
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_TOOLS,
    CallId,
    Function,
    FunctionName,
    JsonFormat,
    JsonSchema,
    MadeFunction,
    PlainFormat,
    SamplingFields,
)
from confide.enclave.api.shapes import BlockShape, Object, told
from confide.enclave.api.sources import MostSources, Rag, Sources, StoreId
from confide.enclave.engines.engine import Chosen, FinishReason, Message
from confide.enclave.engines.forms import Form
from confide.enclave.engines.tools import CallPart, Offer, ToolCall
from confide.errors import ConfideError, RequestRefused

_ID_BYTES: Final = 12
"""Short, so that a delta has room for any token's text before its event becomes longer than others."""
_RESULTS: Final = "file_search_call.results"
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


_Content = str | Annotated[list[InputPart], Meta(max_length=MAX_PARTS)]


class InputItem(msgspec.Struct, forbid_unknown_fields=True):
    """A turn of the conversation, a call in an earlier answer, or its result. id, status and phase have no effect.

    Nor has a search in an earlier answer, with its queries and results: each answer has its own.
    """

    type: Literal["message", "function_call", "function_call_output", "file_search_call"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: _Content | None = None
    call_id: CallId | None = None
    name: FunctionName | None = None
    arguments: str | None = None
    output: _Content | None = None
    id: str | None = None
    status: str | None = None
    phase: str | None = None
    queries: Any = None
    results: Any = None
    caller: None = None
    namespace: None = None

    def __post_init__(self) -> None:
        given = {name for name in _ITEM_FIELDS if getattr(self, name) is not None}
        if given != _FIELDS_OF[self.type]:
            raise ValueError(f"Expected the fields of a {self.type} and no others")
        if self.name is not None and self.arguments is not None:
            MadeFunction(self.name, self.arguments)  # whose arguments are a JSON object, or it raises

    def turn(self) -> Message:
        """As engines take it."""
        if self.type == "function_call":
            return Message("assistant", "", (ToolCall(self.call_id or "", self.name or "", self.arguments or ""),))
        if self.type == "function_call_output":
            return Message("tool", _joined(self.output), call_id=self.call_id or "")
        role = "user" if self.role is None else self.role
        return Message("system" if role == "developer" else role, _joined(self.content))


_ITEM_FIELDS: Final = ("role", "content", "call_id", "name", "arguments", "output")
_FIELDS_OF: Final[Mapping[str, set[str]]] = {
    "message": {"role", "content"},
    "function_call": {"call_id", "name", "arguments"},
    "function_call_output": {"call_id", "output"},
    "file_search_call": set(),
}


def _joined(content: _Content | None) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content or ())


class ResponseTool(Function, kw_only=True, tag_field="type", tag="function", forbid_unknown_fields=True):
    """A function that may be called."""


class FileSearch(msgspec.Struct, tag_field="type", tag="file_search", forbid_unknown_fields=True):
    """A search of the corpus behind the model. It is made before the model answers, whether it would ask for it or not.

    vector_store_ids: there is one.
    """

    vector_store_ids: Annotated[list[StoreId], Meta(min_length=1, max_length=1)]
    max_num_results: MostSources | None = None

    def asked(self) -> Rag:
        """The same as the older endpoint has it."""
        [store] = self.vector_store_ids
        return Rag(store) if self.max_num_results is None else Rag(store, self.max_num_results)


class ResponseToolChoice(msgspec.Struct, forbid_unknown_fields=True):
    """The function that is to be called."""

    type: Literal["function"]
    name: FunctionName


class ResponseSchema(JsonSchema, tag_field="type", tag="json_schema", forbid_unknown_fields=True):
    """JSON by a schema."""

    def __post_init__(self) -> None:
        if self.schema is None:
            raise ValueError("Expected `schema`, the form that the text must have")


class TextConfig(msgspec.Struct, forbid_unknown_fields=True):
    """What the text is like. verbosity: the usual one alone."""

    format: PlainFormat | JsonFormat | ResponseSchema | None = None
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
    include: (
        list[Literal["message.output_text.logprobs", "reasoning.encrypted_content", "file_search_call.results"]] | None
    ) = None
    text: TextConfig | None = None
    tools: Annotated[list[ResponseTool | FileSearch], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponseToolChoice | None = None
    parallel_tool_calls: bool | None = None
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
        form, offer = _form(asked.text), _offer(asked)
        if form is not None and "response_format" in self.serving.engine.facts.cannot:
            raise RequestRefused("`text.format` is not offered with this model; leave it out.", "text")
        wanted = Wanted(1, 1, (asked.top_logprobs or 0) if shows else None, form, offer, "max_output_tokens")
        turns, sources, search = _turns(asked), None, _file_search(asked)
        if search is None and _RESULTS in (asked.include or ()):
            raise RequestRefused(f"`{_RESULTS}` in `include` goes with the tool file_search; ask for both.", "include")
        if search is not None:
            turns, sources = await grounded(self.serving, request, search.asked(), turns, "tools")
        shape = ResponseShape(asked, logprobs=shows, calls=offer is not None, sources=sources)
        return await respond(self.serving, request, turns, fields, wanted, shape, stream=bool(asked.stream))


def _file_search(asked: ResponseRequest) -> FileSearch | None:
    searches = [tool for tool in asked.tools or () if isinstance(tool, FileSearch)]
    if len(searches) > 1:
        raise RequestRefused("`tools` has file_search twice; there is one vector store.", "tools")
    return searches[0] if searches and asked.tool_choice != "none" else None


def _turns(asked: ResponseRequest) -> list[Message]:
    """The conversation. Calls of one answer are one turn of the assistant's."""
    turns = [Message("system", asked.instructions)] if asked.instructions else []
    if isinstance(asked.input, str):
        return [*turns, Message("user", asked.input)]
    for item in asked.input:
        if item.type == "file_search_call":
            continue
        turn = item.turn()
        if turn.calls and turns and turns[-1].role == "assistant":
            before = turns.pop()
            turn = Message("assistant", before.content, before.calls + turn.calls)
        turns.append(turn)
    return turns


def _form(text: TextConfig | None) -> Form | None:
    if text is None or text.format is None or isinstance(text.format, PlainFormat):
        return None
    schema = text.format.schema if isinstance(text.format, ResponseSchema) else None
    return Form.of_schema({"type": "object"} if schema is None else schema, "text")


def _offer(asked: ResponseRequest) -> Offer | None:
    choice = asked.tool_choice
    functions = [one for one in asked.tools or () if isinstance(one, ResponseTool)]
    tools = [tool_of(one.name, one.description, one.parameters, strict=one.strict) for one in functions]
    named = choice.name if isinstance(choice, ResponseToolChoice) else None
    # A search is a call of a tool, too, and always made.
    must = choice not in (None, "none", "auto") and not (choice == "required" and _file_search(asked))
    return offer_of(tools, off=choice == "none", must=must, named=named, several=asked.parallel_tool_calls is not False)


class ResponseShape(BlockShape):
    """Of /v1/responses: its items are a message of one part and calls, which come in deltas. Events are numbered.

    Before them stands the search for the sources that the model was given, if any; the message cites each of them.
    """

    def __init__(self, asked: ResponseRequest, *, logprobs: bool, calls: bool, sources: Sources | None = None) -> None:
        super().__init__(calls=calls)
        self._logprobs = logprobs
        self._search = None if sources is None else _searched(sources, shown=_RESULTS in (asked.include or ()))
        self._cited = () if sources is None else _citations(sources)
        self._number = 0
        self._items: list[Object] = []
        self._said: list[str] = []
        self._chosen: list[Chosen] = []
        self._reason: FinishReason | None = None
        self._head = {
            "id": f"resp_{secrets.token_hex(_ID_BYTES)}",
            "object": "response",
            "created_at": int(time.time()),
            "model": asked.model,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "temperature": 1.0 if asked.temperature is None else asked.temperature,
            "top_p": 1.0 if asked.top_p is None else asked.top_p,
            "top_logprobs": asked.top_logprobs or 0,
            "text": {"format": _told_format(asked.text), "verbosity": "medium"},
            "tools": msgspec.to_builtins(asked.tools or []),
            "tool_choice": msgspec.to_builtins(asked.tool_choice or "auto"),
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "truncation": "disabled",
            "background": False,
            "store": False,
            "metadata": {},
        }
        if sources is not None:
            self._head["confide"] = sources.cited()

    def whole(self, choices: Sequence[Choice], usage: Object) -> Object:
        """As `Shape.whole`."""
        [choice] = choices
        self._reason = choice.finish
        if self._search is not None:
            self._items.append(self._search)
        if choice.text or not choice.calls:
            self._items.append(self._message(choice.text, choice.chosen, self._status))
        self._items += [
            _call(call.id, call.name, call.arguments, self._status) | {"id": _item_id("fc")} for call in choice.calls
        ]
        return self._ended(usage)

    def failed(self, error: ConfideError) -> Iterable[bytes]:
        """As `Shape.failed`."""
        if self._open:
            self._items[-1] = self._current("incomplete")
        why = {"code": "server_error", "message": problem(error)["error"]["message"]}
        yield self._event("response.failed", response=self._response("failed") | {"error": why})

    def _begin(self, usage: Object) -> Iterable[bytes]:
        yield self._event("response.created", response=self._response("in_progress"))
        yield self._event("response.in_progress", response=self._response("in_progress"))
        if self._search is not None:
            yield from self._add({**self._search, "results": None})
            for step in ("in_progress", "searching", "completed"):
                yield self._event(f"response.file_search_call.{step}", **self._item_place)
            self._items[-1] = self._search
            yield self._event("response.output_item.done", output_index=len(self._items) - 1, item=self._search)

    def _open_text(self) -> Iterable[bytes]:
        yield from self._add({"id": _item_id("msg"), "type": "message", "role": "assistant", "content": []})
        yield self._event("response.content_part.added", **self._place, part=self._part("", ()))

    def _text(self, text: str, chosen: Sequence[Chosen]) -> Iterable[bytes]:
        self._said.append(text)
        self._chosen += chosen
        shown = told(chosen) if self._logprobs else []
        yield self._event("response.output_text.delta", **self._place, delta=text, logprobs=shown)

    def _open_call(self, call: CallPart) -> Iterable[bytes]:
        yield from self._add(_call(call.id, call.name, "", "in_progress") | {"id": _item_id("fc")})

    def _arguments(self, text: str) -> Iterable[bytes]:
        self._said.append(text)
        yield self._event("response.function_call_arguments.delta", **self._item_place, delta=text)

    def _close(self) -> Iterable[bytes]:
        # Whether an item is whole is known at the end of the answer, of which it is the last one then.
        item = self._items[-1] = self._current(self._status)
        if self._open == "text":
            [part] = item["content"]
            for number, cited in enumerate(part["annotations"]):
                place = {**self._place, "annotation_index": number}
                yield self._event("response.output_text.annotation.added", **place, annotation=cited)
            yield self._event("response.output_text.done", **self._place, text=part["text"], logprobs=part["logprobs"])
            yield self._event("response.content_part.done", **self._place, part=part)
        else:
            named = {"name": item["name"], "arguments": item["arguments"]}
            yield self._event("response.function_call_arguments.done", **self._item_place, **named)
        yield self._event("response.output_item.done", output_index=len(self._items) - 1, item=item)

    def _finish(self, reason: FinishReason, stop: str | None) -> None:
        self._reason = reason

    def _end(self, usage: Object) -> Iterable[bytes]:
        ended = self._ended(usage)
        yield self._event(f"response.{ended['status']}", response=ended)

    def _add(self, item: Object) -> Iterable[bytes]:
        self._said, self._chosen = [], []
        self._items.append(item | {"status": "in_progress"})
        yield self._event("response.output_item.added", output_index=len(self._items) - 1, item=self._items[-1])

    def _current(self, status: str) -> Object:
        """The open item as far as it is made."""
        item, said = self._items[-1], "".join(self._said)
        made = {"content": [self._part(said, self._chosen)]} if self._open == "text" else {"arguments": said}
        return item | made | {"status": status}

    @property
    def _status(self) -> str:
        return "incomplete" if self._reason in _INCOMPLETE else "completed"

    @property
    def _item_place(self) -> Object:
        return {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}

    @property
    def _place(self) -> Object:
        return self._item_place | {"content_index": 0}

    def _event(self, kind: str, **content: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return event({"type": kind, "sequence_number": number} | content, kind)

    def _ended(self, usage: Object) -> Object:
        reason = _INCOMPLETE.get(self._reason)
        details = None if reason is None else {"reason": reason}
        return self._response(self._status) | {"incomplete_details": details, "usage": _usage(usage)}

    def _response(self, status: str) -> Object:
        ended = {"status": status, "output": list(self._items), "error": None, "incomplete_details": None}
        return self._head | ended | {"usage": None}

    def _message(self, text: str, chosen: Sequence[Chosen], status: str) -> Object:
        content = [self._part(text, chosen)]
        return {"id": _item_id("msg"), "type": "message", "role": "assistant", "content": content, "status": status}

    def _part(self, text: str, chosen: Sequence[Chosen]) -> Object:
        shown = told(chosen) if self._logprobs else []
        cited = list(self._cited) if text else []
        return {"type": "output_text", "text": text, "annotations": cited, "logprobs": shown}


def _item_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(_ID_BYTES)}"


def _searched(sources: Sources, *, shown: bool) -> Object:
    """The item of a search. shown: its results too."""
    results = [
        {
            "file_id": source.file_id,
            "filename": source.chunk.source,
            "score": source.score,
            "text": source.chunk.text,
            "attributes": source.attributes,
        }
        for source in sources.found
    ]
    return {
        "id": _item_id("fs"),
        "type": "file_search_call",
        "status": "completed",
        "queries": [sources.question],
        "results": results if shown else None,
    }


def _citations(sources: Sources) -> tuple[Object, ...]:
    """One for each document. index: of the file among them."""
    files = {source.file_id: source.chunk.source for source in sources.found}
    return tuple(
        {"type": "file_citation", "index": index, "file_id": file_id, "filename": name}
        for index, (file_id, name) in enumerate(files.items())
    )


def _call(call_id: str, name: str, arguments: str, status: str) -> Object:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments, "status": status}


def _told_format(text: TextConfig | None) -> Object:
    form = None if text is None else text.format
    found: Object = msgspec.to_builtins(PlainFormat() if form is None else form)
    return found


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

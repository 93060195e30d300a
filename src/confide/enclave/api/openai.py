"""OpenAI's older endpoints: /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/models.

Each turns a request into a prompt and its sampling; what all endpoints do with these is `respond`.
"""

import base64
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from confide.enclave.api.answer import Serving, Wanted, begin, read, while_connected
from confide.enclave.api.events import EventStream
from confide.enclave.api.own import key_of
from confide.enclave.api.receipts import note
from confide.enclave.api.schemas import (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    Function,
    JsonFormat,
    MadeCall,
    NamedTool,
    PlainFormat,
    SamplingFields,
    SchemaFormat,
    StreamFields,
)
from confide.enclave.api.shapes import ChatShape, Shape, TextShape, events
from confide.enclave.api.sources import Rag, Sources, require_search
from confide.enclave.api.users import user_of
from confide.enclave.engines.engine import Message
from confide.enclave.engines.forms import Form
from confide.enclave.engines.tools import Offer, Tool, ToolCall
from confide.errors import PromptTooLong, RequestRefused, UnknownModel
from confide.ledger.store import INPUT
from confide.net.body import Bodies


@dataclass(frozen=True)
class OpenAi:
    """The endpoints over one engine."""

    serving: Serving
    started: int = field(default_factory=lambda: int(time.time()))

    async def models(self, _request: Request) -> Response:
        """The one model there is."""
        return json_response({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """The same by its name."""
        require_model(self.serving, request.path_params["name"])
        return json_response(self._model())

    def _model(self) -> dict[str, Any]:
        name = self.serving.engine.facts.model
        return {"id": name, "object": "model", "created": self.started, "owned_by": "confide"}

    async def usage(self, request: Request) -> Response:
        """What a user's licence has used. It takes no turn, costs nothing, and has a receipt as every answer has."""
        users, limits = self.serving.users, self.serving.limits
        if users is None:
            raise RequestRefused("Users have no licences here, and nothing is counted for them.")
        user = await users.identify(request)
        async with Bodies(limits.body_bytes, limits.body_seconds, limits.body_bytes).read(request, user.id):
            return json_response({"object": "confide.usage"} | user.usage())

    async def chat(self, request: Request) -> Response:
        """The next turn of a conversation."""
        asked = await read(request, ChatRequest)
        require_model(self.serving, asked.model)
        limit = "max_tokens"
        if asked.max_completion_tokens is not None:
            limit, asked.max_tokens = "max_completion_tokens", asked.max_completion_tokens
        if asked.top_logprobs and not asked.logprobs:
            raise RequestRefused("`top_logprobs` goes with `logprobs`; ask for both.", "top_logprobs")
        choices, told = asked.n or 1, (asked.top_logprobs or 0) if asked.logprobs else None
        wanted = Wanted(choices, choices, told, _form(asked.response_format), _offer(asked), limit)
        turns, sources = as_turns(asked.messages), None
        if asked.confide is not None and asked.confide.rag is not None:
            turns, sources = await grounded(self.serving, request, asked.confide.rag, turns, "confide.rag")
        shape = ChatShape(asked.model, logprobs=told is not None, with_usage=_with_usage(asked), sources=sources)
        return await respond(self.serving, request, turns, asked, wanted, shape, stream=bool(asked.stream))

    async def completions(self, request: Request) -> Response:
        """A text, continued."""
        asked = await read(request, CompletionRequest)
        require_model(self.serving, asked.model)
        prompt = asked.prompt if isinstance(asked.prompt, str) else asked.prompt[0]
        choices = asked.n or 1
        candidates = asked.best_of or choices
        if candidates < choices:
            raise RequestRefused("`best_of` is less than `n`; ask for as many candidates as choices.", "best_of")
        if candidates > choices and asked.stream:
            raise RequestRefused("`best_of` is known at the end, so it is not streamed; leave it out.", "best_of")
        if asked.echo and asked.logprobs is not None:
            raise RequestRefused("`echo` gives no logprobs of a prompt here; ask for one of the two.", "echo")
        shape = TextShape(
            asked.model,
            logprobs=asked.logprobs is not None,
            with_usage=_with_usage(asked),
            echo=prompt if asked.echo else "",
        )
        wanted = Wanted(choices, candidates, asked.logprobs)
        return await respond(self.serving, request, prompt, asked, wanted, shape, stream=bool(asked.stream))

    async def embeddings(self, request: Request) -> Response:
        """One vector for each text."""
        asked = await read(request, EmbeddingRequest)
        require_model(self.serving, asked.model)
        engine = self.serving.engine
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        prompts, total = [], 0
        for text in texts:
            prompt = await while_connected(request, engine.read(text))
            if len(prompt.tokens) > engine.facts.context:
                raise PromptTooLong(
                    f"A text has {len(prompt.tokens)} tokens, and {engine.facts.context} are taken; shorten it."
                )
            prompts.append(prompt)
            total += len(prompt.tokens)
        user = user_of(request)
        with self.serving.engine_at_work(), user.holding(total) if user else nullcontext():
            vectors = await while_connected(request, engine.embed(prompts))
        if user:
            await user.charge(INPUT, total)
        encode: Callable[[list[float]], Any] = _base64 if asked.encoding_format == "base64" else list
        data = [
            {"object": "embedding", "index": index, "embedding": encode(vector)} for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": total, "total_tokens": total}
        return json_response({"object": "list", "model": asked.model, "data": data, "usage": usage})


def require_model(serving: Serving, name: str) -> None:
    """UnknownModel, unless it is the one that is served."""
    if name != serving.engine.facts.model:
        raise UnknownModel("This model is not served here; /v1/models says which one is.", "model")


async def grounded(
    serving: Serving, request: Request, asked: Rag, turns: Sequence[Message], field: str
) -> tuple[list[Message], Sources]:
    """A conversation with sources for its last question, which its receipt will name. field: that asks for them.

    RequestRefused where no corpus is behind the model, and what `Search.find` raises.
    """
    search = require_search(serving.search, field)
    sources = await while_connected(request, search.find(asked, turns, key_of(request)))
    given = sources.ground(turns)
    note(request, sources.events(given))
    return given, sources


async def respond(
    serving: Serving,
    request: Request,
    asked: str | Sequence[Message],
    fields: SamplingFields,
    wanted: Wanted,
    shape: Shape,
    *,
    stream: bool,
) -> Response:
    """The answer to a prompt or a conversation, in the form of its endpoint, whole or as a stream."""
    answer = await begin(serving, request, asked, fields, wanted)
    if stream:
        return EventStream(events(answer, shape), answer)
    async with aclosing(answer):
        choices = await while_connected(request, answer.whole())
    return json_response(shape.whole(choices, answer.usage()))


def _form(format: PlainFormat | JsonFormat | SchemaFormat | None) -> Form | None:
    if format is None or isinstance(format, PlainFormat):
        return None
    schema = format.json_schema.schema if isinstance(format, SchemaFormat) else None
    return Form.of_schema({"type": "object"} if schema is None else schema, "response_format")


def _offer(asked: ChatRequest) -> Offer | None:
    choice = asked.tool_choice
    tools = [_tool(one.function) for one in asked.tools or ()]
    named = choice.function.name if isinstance(choice, NamedTool) else None
    must = choice not in (None, "none", "auto")
    return offer_of(tools, off=choice == "none", must=must, named=named, several=asked.parallel_tool_calls is not False)


def offer_of(tools: Sequence[Tool], *, off: bool, must: bool, named: str | None, several: bool) -> Offer | None:
    """What tools may be called. off: none of them. must: one at least, and `named` alone where it is given.

    RequestRefused for two of one name, and where a call is required of what is not there.
    """
    if len({tool.name for tool in tools}) < len(tools):
        raise RequestRefused("`tools` has two functions of one name; rename one.", "tools")
    if named is not None:
        tools = [tool for tool in tools if tool.name == named]
    if must and not tools:
        raise RequestRefused(
            "`tool_choice` requires a call of what `tools` does not have; add it there.", "tool_choice"
        )
    return None if off or not tools else Offer(tuple(tools), must=must, several=several)


_NO_PARAMETERS: Final[Mapping[str, Any]] = {"type": "object", "properties": {}, "additionalProperties": False}


def _tool(function: Function) -> Tool:
    return tool_of(function.name, function.description, function.parameters, strict=function.strict)


def tool_of(name: str, description: str | None, parameters: Mapping[str, Any] | None, *, strict: bool | None) -> Tool:
    """A function as requests describe it."""
    schema = _NO_PARAMETERS if parameters is None else {"type": "object", **parameters}
    return Tool(name, description or "", schema, strict=bool(strict))


def _with_usage(asked: StreamFields) -> bool:
    return asked.stream_options is not None and asked.stream_options.include_usage


def as_turns(messages: list[ChatMessage]) -> list[Message]:
    """A conversation as engines take it."""
    return [
        Message(
            _role(message), _content(message), tuple(map(_call, message.tool_calls or ())), message.tool_call_id or ""
        )
        for message in messages
    ]


def _call(made: MadeCall) -> ToolCall:
    return ToolCall(made.id, made.function.name, made.function.arguments)


def _role(message: ChatMessage) -> Literal["system", "user", "assistant", "tool"]:
    return "system" if message.role == "developer" else message.role


def _content(message: ChatMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    return "".join(part.text for part in message.content or ())


def json_response(
    content: dict[str, Any], status: int = 200, headers: Mapping[str, str] = MappingProxyType({})
) -> Response:
    """An answer that nobody may keep."""
    headers = {"cache-control": "no-store", **headers}
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")


def _base64(vector: list[float]) -> str:
    """32-bit floats, little-endian: what OpenAI's own clients ask for."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()

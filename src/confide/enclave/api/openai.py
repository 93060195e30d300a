"""OpenAI's endpoints: /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/models."""

import base64
import secrets
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from confide.enclave.api.answer import Answer, Serving, begin, read, while_connected
from confide.enclave.api.events import EventStream, event
from confide.enclave.api.problems import problem
from confide.enclave.api.schemas import (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    StreamFields,
)
from confide.enclave.engines.engine import FinishReason, Message, Piece
from confide.errors import ConfideError, PromptTooLong, UnknownModel

_DONE: Final = b"data: [DONE]\n\n"


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
        self._require_model(request.path_params["name"])
        return json_response(self._model())

    def _model(self) -> dict[str, Any]:
        name = self.serving.engine.facts.model
        return {"id": name, "object": "model", "created": self.started, "owned_by": "confide"}

    async def chat(self, request: Request) -> Response:
        """The next turn of a conversation."""
        asked = await read(request, ChatRequest)
        self._require_model(asked.model)
        if asked.max_completion_tokens is not None:
            asked.max_tokens = asked.max_completion_tokens
        return await self._answer(request, as_turns(asked.messages), asked, _Chat(asked.model))

    async def completions(self, request: Request) -> Response:
        """A text, continued."""
        asked = await read(request, CompletionRequest)
        self._require_model(asked.model)
        prompt = asked.prompt if isinstance(asked.prompt, str) else asked.prompt[0]
        return await self._answer(request, prompt, asked, _Text(asked.model))

    async def embeddings(self, request: Request) -> Response:
        """One vector for each text."""
        asked = await read(request, EmbeddingRequest)
        self._require_model(asked.model)
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
        with self.serving.engine_at_work():
            vectors = await while_connected(request, engine.embed(prompts))
        encode: Callable[[list[float]], Any] = _base64 if asked.encoding_format == "base64" else list
        data = [
            {"object": "embedding", "index": index, "embedding": encode(vector)} for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": total, "total_tokens": total}
        return json_response({"object": "list", "model": asked.model, "data": data, "usage": usage})

    def _require_model(self, name: str) -> None:
        if name != self.serving.engine.facts.model:
            raise UnknownModel("This model is not served here; /v1/models says which one is.", "model")

    async def _answer(
        self, request: Request, prompt: str | list[Message], asked: StreamFields, shape: "_Shape"
    ) -> Response:
        answer = await begin(self.serving, request, prompt, asked)
        if asked.stream:
            with_usage = asked.stream_options is not None and asked.stream_options.include_usage
            return EventStream(_events(answer, shape, with_usage=with_usage), answer)
        async with aclosing(answer):
            text, finish = await while_connected(request, answer.whole())
        return json_response(shape.whole(text, finish) | {"usage": answer.usage()})


@dataclass(frozen=True)
class _Shape(ABC):
    """The JSON of one answer, in its endpoint's form."""

    model: str
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    @abstractmethod
    def whole(self, text: str, finish: FinishReason | None) -> dict[str, Any]:
        """All of it at once."""

    @abstractmethod
    def part(self, piece: Piece, *, first: bool) -> dict[str, Any]:
        """A piece of it, in a stream."""

    def end(self) -> dict[str, Any]:
        """The frame of a part without text, for the count of tokens."""
        return self.part(Piece("", 0), first=False) | {"choices": []}

    def _object(self, prefix: str, name: str, **choice: Any) -> dict[str, Any]:
        choices = [{"index": 0, "logprobs": None, **choice}]
        created, model = self.created, self.model
        return {"id": f"{prefix}-{self.id}", "object": name, "created": created, "model": model, "choices": choices}


class _Chat(_Shape):
    def whole(self, text: str, finish: FinishReason | None) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return self._object("chatcmpl", "chat.completion", message=message, finish_reason=finish)

    def part(self, piece: Piece, *, first: bool) -> dict[str, Any]:
        role = {"role": "assistant"} if first else {}
        delta = role | ({"content": piece.text} if piece.text or first else {})
        return self._object("chatcmpl", "chat.completion.chunk", delta=delta, finish_reason=piece.finish)


class _Text(_Shape):
    def whole(self, text: str, finish: FinishReason | None) -> dict[str, Any]:
        return self._object("cmpl", "text_completion", text=text, finish_reason=finish)

    def part(self, piece: Piece, *, first: bool) -> dict[str, Any]:
        return self._object("cmpl", "text_completion", text=piece.text, finish_reason=piece.finish)


async def _events(answer: Answer, shape: _Shape, *, with_usage: bool) -> AsyncGenerator[bytes, None]:
    first = True
    try:
        async for piece in answer:
            yield event(shape.part(piece, first=first))
            first = False
    except ConfideError as error:
        yield event(problem(error))
        return
    if with_usage:
        yield event(shape.end() | {"usage": answer.usage()})
    yield _DONE


def as_turns(messages: list[ChatMessage]) -> list[Message]:
    """A conversation as engines take it."""
    return [Message(_role(message), _content(message)) for message in messages]


def _role(message: ChatMessage) -> Literal["system", "user", "assistant"]:
    return "system" if message.role == "developer" else message.role


def _content(message: ChatMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    return "".join(part.text for part in message.content or ())


def json_response(content: dict[str, Any], status: int = 200) -> Response:
    """An answer that nobody may keep."""
    return Response(msgspec.json.encode(content), status, {"cache-control": "no-store"}, media_type="application/json")


def _base64(vector: list[float]) -> str:
    """32-bit floats, little-endian: what OpenAI's own clients ask for."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()

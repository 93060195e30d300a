"""Answers in the JSON of endpoints, whole and as the events of a stream; here those of OpenAI's older ones."""

import codecs
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any, Final, Literal

from confide.enclave.api.answer import Answer, Choice
from confide.enclave.api.events import KEEP_ALIVE, event
from confide.enclave.api.problems import problem
from confide.enclave.api.sources import Sources
from confide.enclave.engines.engine import Chance, Chosen, FinishReason, Piece
from confide.enclave.engines.tools import CallPart
from confide.errors import ConfideError

_DONE: Final = b"data: [DONE]\n\n"
Object = dict[str, Any]


class Shape(ABC):
    """The form of one request's answers. It may count along, and so serves one request."""

    @abstractmethod
    def whole(self, choices: Sequence[Choice], usage: Object) -> Object:
        """All of it at once. usage: see `Answer.usage`."""

    def opening(self, usage: Object) -> Iterable[bytes]:
        """Events before the first part."""
        return ()

    @abstractmethod
    def part(self, index: int, piece: Piece) -> Iterable[bytes]:
        """Events for a piece of the answer of this index: one at least, so that nobody sees which ones are empty."""

    @abstractmethod
    def closing(self, usage: Object) -> Iterable[bytes]:
        """Events after the last part."""

    def failed(self, error: ConfideError) -> Iterable[bytes]:
        """Events of an answer that breaks off."""
        return (event(problem(error)),)


async def events(answer: Answer, shape: Shape) -> AsyncGenerator[bytes, None]:
    """The events of an answer as it is made."""
    try:
        for made in shape.opening(answer.usage()):
            yield made
        async for index, piece in answer:
            for made in shape.part(index, piece):
                yield made
    except ConfideError as error:
        for made in shape.failed(error):
            yield made
        return
    for made in shape.closing(answer.usage()):
        yield made


class BlockShape(Shape):
    """An answer of blocks, texts and calls of tools, one open at a time, as the newer APIs have it.

    Without calls to come its one text is open from the beginning, so that all that is seen of it are its deltas.
    """

    def __init__(self, *, calls: bool) -> None:
        """calls: whether there may be calls of tools."""
        self._may_call = calls
        self._open: Literal["", "text", "call"] = ""

    def opening(self, usage: Object) -> Iterable[bytes]:
        """As `Shape.opening`."""
        yield from self._begin(usage)
        if not self._may_call:
            yield from self._to_text()

    def part(self, index: int, piece: Piece) -> Iterable[bytes]:
        """As `Shape.part`."""
        made: list[bytes] = []
        if piece.text or (piece.chosen and self._open == "text"):
            made += self._to_text()
            made += self._text(piece.text, piece.chosen)
        for call in piece.calls:
            if call.id:
                made += self._shut()
                self._open = "call"
                made += self._open_call(call)
            if call.arguments:
                made += self._arguments(call.arguments)
        if piece.finish:
            self._finish(piece.finish, piece.stop)
        return made or self._nothing()

    def closing(self, usage: Object) -> Iterable[bytes]:
        """As `Shape.closing`."""
        yield from self._shut()
        yield from self._end(usage)

    def _to_text(self) -> Iterable[bytes]:
        if self._open != "text":
            yield from self._shut()
            self._open = "text"
            yield from self._open_text()

    def _shut(self) -> Iterable[bytes]:
        if self._open:
            yield from self._close()
            self._open = ""

    def _nothing(self) -> Iterable[bytes]:
        """An event that adds nothing, for a piece that does not."""
        if self._open == "text":
            return self._text("", ())
        return self._arguments("") if self._open == "call" else (KEEP_ALIVE,)

    @abstractmethod
    def _begin(self, usage: Object) -> Iterable[bytes]:
        """Before the first block."""

    @abstractmethod
    def _open_text(self) -> Iterable[bytes]: ...

    @abstractmethod
    def _text(self, text: str, chosen: Sequence[Chosen]) -> Iterable[bytes]: ...

    @abstractmethod
    def _open_call(self, call: CallPart) -> Iterable[bytes]: ...

    @abstractmethod
    def _arguments(self, text: str) -> Iterable[bytes]: ...

    @abstractmethod
    def _close(self) -> Iterable[bytes]:
        """The end of the open block."""

    @abstractmethod
    def _finish(self, reason: FinishReason, stop: str | None) -> None:
        """Why the answer is over; stop as in `Piece`."""

    @abstractmethod
    def _end(self, usage: Object) -> Iterable[bytes]:
        """After the last block."""


class _OpenAi(Shape):
    """What chat and completions have in common. prefix: of ids. name: the object's; chunk: in a stream."""

    prefix: str
    name: str
    chunk: str

    def __init__(self, model: str, *, logprobs: bool, with_usage: bool) -> None:
        """logprobs: whether they are shown. with_usage: whether a stream ends with a count of tokens."""
        self._logprobs = logprobs
        self._with_usage = with_usage
        self._head = {"id": f"{self.prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}

    def whole(self, choices: Sequence[Choice], usage: Object) -> Object:
        """As `Shape.whole`."""
        listed = [{"index": index} | self._choice(index, choice) for index, choice in enumerate(choices)]
        return self._head | {"object": self.name, "choices": listed, "usage": usage}

    def part(self, index: int, piece: Piece) -> Iterable[bytes]:
        """As `Shape.part`."""
        return (event(self._chunk(index, piece)),)

    def _chunk(self, index: int, piece: Piece) -> Object:
        choice = {"index": index} | self._delta(index, piece) | {"finish_reason": piece.finish}
        return self._head | {"object": self.chunk, "choices": [choice]}

    def closing(self, usage: Object) -> Iterable[bytes]:
        """As `Shape.closing`."""
        if self._with_usage:
            yield event(self._head | {"object": self.chunk, "choices": [], "usage": usage})
        yield _DONE

    @abstractmethod
    def _choice(self, index: int, choice: Choice) -> Object:
        """One whole answer."""

    @abstractmethod
    def _delta(self, index: int, piece: Piece) -> Object:
        """A part of one."""


class ChatShape(_OpenAi):
    """Of /v1/chat/completions."""

    prefix, name, chunk = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, model: str, *, logprobs: bool, with_usage: bool, sources: Sources | None = None) -> None:
        """sources: that the model was given; they are cited in a whole answer, and with the first part of a stream."""
        super().__init__(model, logprobs=logprobs, with_usage=with_usage)
        self._begun: set[int] = set()
        self._cited: Object = {} if sources is None else {"confide": sources.cited()}

    def whole(self, choices: Sequence[Choice], usage: Object) -> Object:
        """As `Shape.whole`."""
        return super().whole(choices, usage) | self._cited

    def part(self, index: int, piece: Piece) -> Iterable[bytes]:
        """As `Shape.part`."""
        cited, self._cited = self._cited, {}
        return (event(self._chunk(index, piece) | cited),)

    def _choice(self, index: int, choice: Choice) -> Object:
        message: Object = {"role": "assistant", "content": choice.text, "refusal": None}
        if choice.calls:
            message["content"] = choice.text or None
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in choice.calls
            ]
        return {"message": message, "logprobs": self._told(choice.chosen), "finish_reason": choice.finish}

    def _delta(self, index: int, piece: Piece) -> Object:
        first = index not in self._begun
        self._begun.add(index)
        delta: Object = {"role": "assistant"} if first else {}
        if piece.text or (first and not piece.calls):
            delta["content"] = piece.text
        if piece.calls:
            delta["tool_calls"] = [_part(part) for part in piece.calls]
        return {"delta": delta, "logprobs": self._told(piece.chosen)}

    def _told(self, chosen: Sequence[Chosen]) -> Object | None:
        if not self._logprobs:
            return None
        return {"content": told(chosen), "refusal": None}


def told(chosen: Sequence[Chosen]) -> list[Object]:
    """The probabilities of tokens, as OpenAI's conversations have them."""
    return [_chance(one.token) | {"top_logprobs": [_chance(top) for top in one.top]} for one in chosen]


def _part(part: CallPart) -> Object:
    if not part.id:
        return {"index": part.index, "function": {"arguments": part.arguments}}
    function = {"name": part.name, "arguments": part.arguments}
    return {"index": part.index, "id": part.id, "type": "function", "function": function}


def _chance(chance: Chance) -> Object:
    data = None if chance.raw is None else list(chance.raw)
    return {"token": chance.text, "logprob": chance.logprob, "bytes": data}


class TextShape(_OpenAi):
    """Of /v1/completions. echo: a text that each answer begins with."""

    prefix, name, chunk = "cmpl", "text_completion", "text_completion"

    def __init__(self, model: str, *, logprobs: bool, with_usage: bool, echo: str = "") -> None:
        super().__init__(model, logprobs=logprobs, with_usage=with_usage)
        self._echo = echo
        self._texts: dict[int, _Counted] = {}

    def _choice(self, index: int, choice: Choice) -> Object:
        told = self._told(index, choice.chosen)
        return {"text": self._echo + choice.text, "logprobs": told, "finish_reason": choice.finish}

    def _delta(self, index: int, piece: Piece) -> Object:
        text = piece.text if index in self._texts else self._echo + piece.text
        return {"text": text, "logprobs": self._told(index, piece.chosen)}

    def _told(self, index: int, chosen: Sequence[Chosen]) -> Object | None:
        """text_offset: where in the answer's text a token begins, in characters."""
        counted = self._texts.setdefault(index, _Counted(len(self._echo)))
        if not self._logprobs:
            return None
        offsets = [counted.add(one.token) for one in chosen]
        return {
            "tokens": [one.token.text for one in chosen],
            "token_logprobs": [one.token.logprob for one in chosen],
            "top_logprobs": [{top.text: top.logprob for top in one.top} for one in chosen],
            "text_offset": offsets,
        }


class _Counted:
    """The length of a text that comes by tokens, in characters."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: Chance) -> int:
        """Where a token begins."""
        begins = self._length
        self._length += len(token.text if token.raw is None else self._characters.decode(token.raw))
        return begins

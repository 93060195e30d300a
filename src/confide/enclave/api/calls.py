"""Calls of tools: how models of different families write them, told by their chat templates, and read from their text.

What is no call of an offered tool stays text: nothing is repaired, and nothing guessed. A call that must be made is
written in Confide's own form, to which any model is held: a JSON array of {"name": ..., "arguments": {...}}.
"""

import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from confide.enclave.engines.engine import Engine, Message, Piece, Prompt
from confide.enclave.engines.forms import Form, schema_text
from confide.enclave.engines.tools import CallPart, Offer, Tool, ToolCall
from confide.errors import RequestRefused

MAX_CALLS: Final = 16
"""In one answer; what else a model calls stays text."""
_ID_LETTERS: Final = 9
"""Mistral's templates take call ids of exactly so many letters and digits."""


@dataclass(frozen=True)
class Style:
    """How a family writes calls. begin: before them, where text may come first; empty where nothing tells. end: after.

    between: characters beside spaces that may stand between them. named: before an object of arguments, its function's
    name ends so. markers: special tokens that an engine has to show as text.
    """

    begin: str = ""
    end: str = ""
    between: str = ""
    named: str = ""

    @property
    def markers(self) -> tuple[str, ...]:
        """Special tokens of some models that are needed as text."""
        return tuple(filter(None, (self.begin, self.end, self.named)))


TAGGED: Final = Style("<tool_call>", "</tool_call>")
"""Hermes and Qwen."""
LISTED: Final = Style("[TOOL_CALLS]", between="[],")
"""Mistral."""
NAMED: Final = Style("[TOOL_CALLS]", named="[ARGS]")
"""Mistral's newer models: [TOOL_CALLS]name[ARGS]{...}."""
BARE: Final = Style("<|python_tag|>", between=";")
"""Llama 3: the whole answer is calls, after <|python_tag|> or without."""
OWN: Final = Style(between="[],")
"""Confide's: [{"name": ..., "arguments": {...}}]."""
_NONE: Final = Style()
_FOREIGN: Final = ("<function=", "<arg_key>", "[CALL_ID]", "<tool_call>call", "<parameter=")
"""Words of templates whose models write calls in ways that are not read here."""
_LLAMA: Final = re.compile(r'\{"name": function name, "parameters": dictionary of argument name and its value\}')


def style_of(template: str) -> Style | None:
    """How a model writes calls, by its chat template; None where that is not known."""
    if any(word in template for word in _FOREIGN):
        return None
    for style in (NAMED, TAGGED, LISTED):
        if all(marker in template for marker in style.markers):
            return style
    return BARE if _LLAMA.search(template.replace('\\"', '"')) else None


class CallReader:
    """Reads one answer's text, as it comes, into text and calls; the same wherever its parts are cut."""

    def __init__(self, style: Style, offer: Offer) -> None:
        self._style = style
        self._offer = offer
        self._names = {tool.name for tool in offer.tools}
        self._held = ""
        self._at = 0
        self._begun = -1  # where in `held` an object began that is not over
        self._levels = 0
        self._quoted = self._escaped = False
        self._function = ""
        self._behind = False  # a call, with nothing but spaces since
        self._state = self._calls if style is OWN else self._start if style is BARE else self._text
        self.called = 0

    def read(self, text: str) -> tuple[str, tuple[CallPart, ...]]:
        """What of the answer is text by now, and what are calls."""
        self._held += text
        shown: list[str] = []
        parts: list[CallPart] = []
        while self._state(shown, parts):
            pass
        return self._visible("".join(shown)), tuple(parts)

    def rest(self) -> str:
        """What was held back, at the end of the answer."""
        held, self._held = self._held, ""
        return self._visible("" if self._behind and not held.strip(self._style.between + _SPACES) else held)

    def with_calls(self, piece: Piece) -> Iterator[Piece]:
        """A piece of the engine's with what it adds to text and calls. The end is a piece of its own, called or not."""
        text, parts = self.read(piece.text)
        if not piece.finish:
            yield replace(piece, text=text, calls=parts)
            return
        yield replace(piece, text=text + self.rest(), calls=parts, finish=None, stop=None)
        called = self.called and piece.finish == "stop"
        yield Piece("", 0, "tool_calls" if called else piece.finish, stop=piece.stop)

    def _visible(self, text: str) -> str:
        """Behind the one call that there may be, nothing."""
        return "" if self.called and not self._offer.several else text

    def _start(self, shown: list[str], parts: list[CallPart]) -> bool:
        """At the beginning of an answer that is calls from there, or none at all."""
        said = self._held.lstrip()
        if self._style.begin.startswith(said):
            return False
        is_call = said.startswith(("{", self._style.begin))
        self._state = self._calls if is_call else self._plain
        return True

    def _plain(self, shown: list[str], parts: list[CallPart]) -> bool:
        """Text, with no calls behind it."""
        shown.append(self._take(len(self._held)))
        return False

    def _text(self, shown: list[str], parts: list[CallPart]) -> bool:
        """Text up to where calls begin."""
        begin = self._style.begin
        place = self._held.find(begin)
        end = place if place >= 0 else len(self._held) - _overlap(self._held, begin)
        if self._behind and not self._held[:end].strip():
            if place >= 0:
                self._take(end)  # spaces between two calls
        else:
            shown.append(self._take(end))
            self._behind = False
        if place < 0:
            return False
        self._state = self._calls
        return True

    def _calls(self, shown: list[str], parts: list[CallPart]) -> bool:
        """Between calls, and within them."""
        while self._at < len(self._held):
            if self._begun >= 0:
                self._within(self._held[self._at])
                if self._levels:
                    continue
                said, self._begun = self._held[self._begun : self._at], -1
                if not self._call(said, parts):
                    return self._is_text(shown)
                self._take(self._at)
                continue
            belongs = self._between()
            if belongs is None:
                return False
            if not belongs:
                self._at += 1
                return self._is_text(shown)
            if self._state == self._text:
                return True
        return False

    def _between(self) -> bool | None:
        """Step over one thing between calls; False where it does not belong there, None where that is not yet known."""
        style, letter, said = self._style, self._held[self._at], self._held[self._at : self._at + _LONGEST]
        for marker in filter(None, (style.end, style.begin)):
            if said.startswith(marker):
                if marker == style.end and not self._behind:
                    return False
                self._at += len(marker)
                if marker == style.end:
                    self._take(self._at)
                    self._state = self._text
                else:
                    self._behind = False
                return True
            if marker.startswith(said):
                return None
        if letter == "{" and (not style.named or self._function):
            self._begun, self._levels = self._at, 1
            self._quoted = self._escaped = False
        if self._begun >= 0 or letter in style.between + _SPACES:
            self._at += 1
            return True
        if style.named and (found := _NAME.match(said)):
            after = said[found.end() :]
            if after.startswith(style.named):
                self._function = found.group()
                self._at += found.end() + len(style.named)
                return True
            if style.named.startswith(after):
                return None
        return False

    def _within(self, letter: str) -> None:
        """One letter of an object."""
        self._at += 1
        if self._escaped:
            self._escaped = False
        elif self._quoted:
            self._escaped = letter == "\\"
            self._quoted = letter != '"'
        elif letter == '"':
            self._quoted = True
        elif letter in "{[":
            self._levels += 1
        elif letter in "}]":
            self._levels -= 1

    def _call(self, said: str, parts: list[CallPart]) -> bool:
        """Take a call; whether it is one."""
        name, arguments = (self._function, said) if self._style.named else _taken_apart(said)
        self._function = ""
        if name not in self._names or self.called >= MAX_CALLS or not _is_object(arguments):
            return False
        if not self.called or self._offer.several:
            parts.append(CallPart(self.called, "", secrets.token_hex(_ID_LETTERS)[:_ID_LETTERS], name))
            parts.append(CallPart(self.called, arguments))
        self.called += 1
        self._behind = True
        return True

    def _is_text(self, shown: list[str]) -> bool:
        """What was taken for a call is text, as far as it has been read."""
        shown.append(self._take(self._at))
        self._behind, self._function = False, ""
        self._state = self._text if self._style in (TAGGED, LISTED, NAMED) else self._plain
        return True

    def _take(self, length: int) -> str:
        taken, self._held = self._held[:length], self._held[length:]
        self._at = 0
        return taken


_SPACES: Final = " \n\r\t"
_NAME: Final = re.compile(r"[\w-]{1,64}")
_LONGEST: Final = 80
"""Letters of a function's name and a marker behind it, or more."""


class _Said(msgspec.Struct):
    """A call as models write it. parameters: Llama's word for the arguments."""

    name: str
    arguments: msgspec.Raw = msgspec.Raw()
    parameters: msgspec.Raw = msgspec.Raw()


def whole_calls(parts: Iterable[CallPart]) -> tuple[ToolCall, ...]:
    """The calls of one answer from all their parts."""
    calls: dict[int, ToolCall] = {}
    for part in parts:
        if part.id:
            calls[part.index] = ToolCall(part.id, part.name, part.arguments)
        else:
            call = calls[part.index]
            calls[part.index] = replace(call, arguments=call.arguments + part.arguments)
    return tuple(calls[index] for index in sorted(calls))


@dataclass(frozen=True)
class CallPlan:
    """How one request's tools are told to a model and its calls are read. form: that its answers must have."""

    offer: Offer | None
    style: Style
    form: Form | None = None
    aware: bool = True

    @classmethod
    def of(cls, offer: Offer | None, template: str, *, free: bool) -> "CallPlan":
        """template: the model's. free: whether the engine holds answers to forms. RequestRefused for what cannot be."""
        aware = "tool" in template
        if offer is None:
            return cls(None, _NONE, None, aware)
        if offer.must:
            if not free:
                raise RequestRefused(
                    "`tool_choice` can only be `none` or `auto` with this model; choose one.", "tool_choice"
                )
            return cls(offer, OWN, form_of(offer, OWN, "tools"), aware)
        style = style_of(template)
        if style is None:
            raise RequestRefused(
                "`tools` are not offered with this model, whose chat template does not say how it calls them; leave "
                "them out, or require a call by `tool_choice`.",
                "tools",
            )
        if any(tool.strict for tool in offer.tools):
            return cls(offer, style, form_of(offer, style if free else _NONE, "tools"))
        return cls(offer, style)

    async def read(self, engine: Engine, asked: str | Sequence[Message]) -> Prompt:
        """The prompt, with the tools in it."""
        if isinstance(asked, str):
            return await engine.read(asked)
        if self.offer is None:
            return await engine.read(asked if self.aware else list(map(_plain, asked)))
        try:
            return await engine.read(asked, self.offer.tools)
        except RequestRefused as refusal:
            if not self.offer.must or refusal.field != "tools":
                raise
            return await engine.read(told_plainly(asked, self.offer))

    def reader(self) -> CallReader | None:
        """For one answer; None where there is nothing to call."""
        return None if self.offer is None else CallReader(self.style, self.offer)


def _taken_apart(said: str) -> tuple[str, str]:
    """Name and arguments of a call; an empty name where it is none."""
    try:
        call = msgspec.json.decode(said, type=_Said)
        return call.name, (bytes(call.arguments) or bytes(call.parameters)).decode()
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return "", ""


def _is_object(text: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return False


def _overlap(text: str, marker: str) -> int:
    """Length of the longest end of a text with which a marker begins, less than all of it."""
    ends = range(min(len(text), len(marker) - 1), 0, -1)
    return next((end for end in ends if marker.startswith(text[-end:])), 0)


def form_of(offer: Offer, style: Style, field: str) -> Form:
    """An answer whose calls keep to the schemas of their functions, as a grammar: calls alone, or text and calls.

    RequestRefused for parameters that answers cannot be held to, and for a style in which these cannot be written down.
    """
    if style not in _ANSWERS:
        raise RequestRefused(
            "This model keeps to `strict` functions where a call is required; leave `strict` out, or require a call by "
            "`tool_choice`.",
            field,
        )
    names = [f"call_{index}" for index in range(len(offer.tools))]
    lines = ["%llguidance {}", *_ANSWERS[style](offer.several), f"call: {' | '.join(names)}"]
    word = "parameters" if style is BARE else "arguments"
    for name, tool in zip(names, offer.tools, strict=True):
        head = ' " "? '.join(_literal(part) for part in ('{"name":', f'"{tool.name}",', f'"{word}":'))
        lines.append(f'{name}: {head} " "? %json {schema_text(tool.parameters, field)} "}}"')
    return Form("\n".join(lines), field)


def _literal(text: str) -> str:
    return msgspec.json.encode(text).decode()


def _own_answer(several: bool) -> list[str]:
    more = f'("," call){{0,{MAX_CALLS - 1}}}' if several else ""
    return [f'start: "[" call {more} "]"']


def _tagged_answer(several: bool) -> list[str]:
    times = f"{{0,{MAX_CALLS}}}" if several else "?"
    return [
        f'start: (begin "\\n"? call "\\n"? {_literal(TAGGED.end)}){times} text',
        f"begin[lazy]: TEXT {_literal(TAGGED.begin)}",
        "text: TEXT",
        "TEXT: /(.|\\n)*/",
    ]


def _bare_answer(several: bool) -> list[str]:
    more = f'(";" " "? call){{0,{MAX_CALLS - 1}}}' if several else ""
    return [f"start: text | call {more}", "text: TEXT?", "TEXT: /[^{ \\n\\r\\t](.|\\n)*/"]


_ANSWERS: Final[Mapping[Style, Callable[[bool], list[str]]]] = {
    OWN: _own_answer,
    TAGGED: _tagged_answer,
    BARE: _bare_answer,
}


def told_plainly(messages: Sequence[Message], offer: Offer) -> list[Message]:
    """A conversation that tells of the tools itself, for a model whose template does not.

    They stand in the system's turn, in front. Earlier calls and results become turns of the assistant and the user.
    """
    told = [_TOLD, *(msgspec.json.encode(described(tool)).decode() for tool in offer.tools)]
    turns = [_plain(message) for message in messages]
    if turns and turns[0].role == "system":
        return [replace(turns[0], content="\n".join([turns[0].content, "", *told])), *turns[1:]]
    return [Message("system", "\n".join(told)), *turns]


_TOLD: Final = (
    'Answer by calling functions: a JSON array of objects like {"name": "...", "arguments": {...}}, and nothing else. '
    "These are the functions:"
)


def described(tool: Tool) -> Mapping[str, Any]:
    """A function as the plain form tells of it."""
    return {"name": tool.name, "description": tool.description, "parameters": tool.parameters}


def _plain(message: Message) -> Message:
    if message.role == "tool":
        return Message("user", f"Result of call {message.call_id}: {message.content}")
    if not message.calls:
        return message
    calls = [
        {"id": call.id, "name": call.name, "arguments": msgspec.Raw(call.arguments.encode())} for call in message.calls
    ]
    return Message(message.role, "\n".join(filter(None, (message.content, msgspec.json.encode(calls).decode()))))

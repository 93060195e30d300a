"""Forms that an answer must have: JSON by a schema, as a grammar of llguidance (`confide.enclave.engines.guides`).

A schema is somebody's input, and grammars can take for ever to make. So it is bounded before anything else reads it,
above all where it asks for several things at once: llguidance multiplies what is in conjunctions.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from confide.errors import RequestRefused

MAX_BYTES: Final = 32 << 10
MAX_DEPTH: Final = 32
MAX_NODES: Final = 4096
"""Values in a schema: objects, arrays, texts, numbers."""
MAX_COUNT: Final = 1 << 16
"""Of minLength and the like; no answer is longer."""
MAX_PATTERN: Final = 4096
"""Characters of one pattern, and of what it is with its repetitions written out."""
MAX_PATTERNS: Final = 64
MAX_JOINED: Final = 8
"""Patterns and conjunctions, where there are both: each one more may double the work."""
_MAX_NUMBER: Final = 10**15
_COUNTS: Final = frozenset({"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"})
_JOINING: Final = frozenset({"allOf", "anyOf", "oneOf", "$ref"})
_TELLING: Final = frozenset(
    {"title", "description", "default", "examples", "$defs", "definitions", "$schema", "$id", "$comment", "deprecated"}
)
"""Words of a schema that ask for nothing."""
_PIECES: Final = re.compile(
    r"\\.|\[\^?\]?(?:[^\]\\]|\\.)*(?:\]|\Z)|\((?:\?(?:P?<\w+>|:|.?))?|\{(?P<times>\d{1,9}),?(?P<most>\d{0,9})\}|.",
    re.DOTALL,
)
"""An escaped character, a class, the beginning of a group, a repetition, or any character."""
_OWN: Final = "x-guidance"
_COMPACT: Final[Mapping[str, Any]] = {"whitespace_flexible": False}
"""Without it a model may go on with spaces for ever; and llguidance's older versions know no better choice."""


@dataclass(frozen=True)
class Form:
    """A form. grammar: llguidance's. field: of the request, where it is to blame."""

    grammar: str = field(repr=False)
    field: str

    @classmethod
    def of_schema(cls, schema: Mapping[str, Any], field: str) -> "Form":
        """JSON by a JSON schema, without spaces. RequestRefused for one that is too large.

        The order of an object's properties is the schema's.
        """
        return cls("%llguidance {}\nstart: %json " + schema_text(schema, field), field)

    def refused(self) -> RequestRefused:
        """The error for a form that cannot be kept. What the library says may quote the schema, so it is left out."""
        return RequestRefused(
            f"The schema of `{self.field}` is none, or asks for what answers cannot be held to here (such as oneOf, "
            "not, uniqueItems, formats of one's own, or too much at once); make it simpler.",
            self.field,
        )


def schema_text(schema: Mapping[str, Any], field: str) -> str:
    """A schema as it stands in a grammar. field: of the request, named by RequestRefused for one beyond the bounds."""
    if _OWN in schema:
        raise _beyond(f"the word `{_OWN}`", field)
    _require_small(schema, field)
    content = msgspec.json.encode(schema)
    if len(content) > MAX_BYTES:
        raise _beyond(f"more than {MAX_BYTES} bytes", field)
    return msgspec.json.encode({**schema, _OWN: _COMPACT}).decode()


def _require_small(schema: Mapping[str, Any], field: str) -> None:
    nodes = patterns = joined = 0
    for value in _values(schema, field):
        nodes += 1
        if nodes > MAX_NODES:
            raise _beyond(f"more than {MAX_NODES} values", field)
        if isinstance(value, int | float) and abs(value) > _MAX_NUMBER:
            raise _beyond(f"a number above {_MAX_NUMBER}", field)
        if not isinstance(value, dict):
            continue
        for name in _COUNTS & value.keys():
            _require_count(name, value[name], field)
        found = _patterns(value)
        if any(_written_out(pattern, field) > MAX_PATTERN for pattern in found):
            raise _beyond(f"a pattern of more than {MAX_PATTERN} characters, its repetitions written out", field)
        patterns += len(found)
        joined += _joined(value)
    if patterns > MAX_PATTERNS or (joined and patterns and patterns + joined > MAX_JOINED):
        raise _beyond(
            f"more than {MAX_PATTERNS} patterns and formats, or {MAX_JOINED} where it has allOf and other things that "
            "must hold at once",
            field,
        )


def _values(schema: Mapping[str, Any], field: str) -> Iterator[object]:
    """All values of a schema, from the top down. RequestRefused for too many levels."""
    level: list[object] = [schema]
    for _ in range(MAX_DEPTH):
        yield from level
        inner: list[object] = []
        for value in level:
            if isinstance(value, dict):
                inner += value.values()
            elif isinstance(value, list):
                inner += value
        if not inner:
            return
        level = inner
    raise _beyond(f"more than {MAX_DEPTH} levels", field)


def _require_count(name: str, value: object, field: str) -> None:
    """RequestRefused for a count that no answer has, or that an answer might miss."""
    if not isinstance(value, int | float):
        return  # a property of this name, or no schema
    if value > MAX_COUNT:
        raise _beyond(f"a `{name}` above {MAX_COUNT}", field)
    if name == "minProperties" and value > 1:  # a property may come twice, and then counts once
        raise _beyond("a `minProperties` above 1, for which properties are named in `required`", field)


def _patterns(value: Mapping[str, object]) -> list[str]:
    found = [text for name in ("pattern", "format") if isinstance(text := value.get(name), str)]
    named = value.get("patternProperties")
    return found + (list(named) if isinstance(named, dict) else [])


def _written_out(pattern: str, field: str) -> int:
    """How many characters a pattern has with its repetitions written out, or more.

    RequestRefused for groups with flags, by which a pattern could be read differently than here.
    """
    if len(pattern) > MAX_PATTERN:
        return len(pattern)
    total = last = 0
    begins: list[int] = []
    for piece in _PIECES.finditer(pattern):
        text = piece.group()
        if text.startswith("("):
            if text != "(" and text[-1] not in ":>":
                raise _beyond("a pattern with look-around or flags", field)
            begins.append(total)
        elif text == ")" and begins:
            last = total - begins.pop()
        elif piece["times"]:
            more = last * (max(1, int(piece["most"] or piece["times"])) - 1)
            total, last = total + more, last + more
        elif text not in "*+?|^$":
            total, last = total + 1, 1
        if total > MAX_PATTERN:
            break
    return total


def _joined(value: Mapping[str, object]) -> int:
    """How many things this object asks for at once, beyond one."""
    groups = _JOINING & value.keys()
    if not groups:
        return 0
    every = value.get("allOf")
    beside = any(name not in _JOINING and name not in _TELLING for name in value)
    return len(groups) - 1 + beside + (len(every) - 1 if isinstance(every, list) and every else 0)


def _beyond(what: str, field: str) -> RequestRefused:
    return RequestRefused(f"The schema of `{field}` has {what}, which is not offered here; make it simpler.", field)

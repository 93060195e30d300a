"""Tools: functions that a model may call, and what it has called. Whoever asks runs them; nothing here does."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Tool:
    """A function. parameters: a JSON Schema of the object that its arguments are. strict: arguments always keep to it.

    Without `strict` arguments are an object, and keep to the schema where the call is required.
    """

    name: str
    description: str = field(default="", repr=False)
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object"}, repr=False)
    strict: bool = False


@dataclass(frozen=True)
class Offer:
    """Tools for one answer. must: it is calls, and no text. several: it may have more than one of them.

    Where one function alone is to be called, it is the only one offered.
    """

    tools: tuple[Tool, ...]
    must: bool = False
    several: bool = True


@dataclass(frozen=True)
class ToolCall:
    """A call that a model made. id: by which its result names it. arguments: a JSON object, as text."""

    id: str
    name: str
    arguments: str = field(repr=False)


@dataclass(frozen=True)
class CallPart:
    """The next part of a call. index: among the calls of its answer. id, name: in its first part, empty after it.

    arguments: the next part of their text.
    """

    index: int
    arguments: str = field(repr=False)
    id: str = ""
    name: str = ""

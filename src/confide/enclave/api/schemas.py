"""What requests look like. Bounds are part of the types. What could change an answer and is not offered is refused."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from confide.enclave.api.sources import Extensions
from confide.errors import RequestRefused
from confide.printable import printable

MAX_MESSAGES: Final = 1024
MAX_PARTS: Final = 64
MAX_STOPS: Final = 16
"""OpenAI's own API takes 4; editors send more where an answer is to end with a line, a block or a file."""
_MAX_BIASES: Final = 1024
MAX_CHOICES: Final = 16
MAX_TOOLS: Final = 128

Stop = Annotated[str, Meta(min_length=1, max_length=256)]


class TextPart(msgspec.Struct, forbid_unknown_fields=True):
    """A part of a message; texts are the only kind here. What else may stand in it has no effect."""

    type: Literal["text"]
    text: str
    annotations: Any = None
    cache_control: Any = None


CallId = Annotated[str, Meta(min_length=1, max_length=128)]
FunctionName = Annotated[str, Meta(pattern=r"\A[\w-]{1,64}\Z")]


class MadeFunction(msgspec.Struct, forbid_unknown_fields=True):
    """What an assistant called. arguments: a JSON object, as text."""

    name: FunctionName
    arguments: str

    def __post_init__(self) -> None:
        try:
            whole = isinstance(msgspec.json.decode(self.arguments), dict)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            whole = False
        if not whole:
            raise ValueError("Expected `arguments` to be a JSON object as text")


class MadeCall(msgspec.Struct, forbid_unknown_fields=True):
    """A call in an earlier answer. index: what streams number it by; no effect."""

    id: CallId
    type: Literal["function"]
    function: MadeFunction
    index: int | None = None


class ChatMessage(msgspec.Struct, forbid_unknown_fields=True):
    """A turn of a conversation. developer: what newer clients call the system.

    content: None for an assistant's turn without text. tool_calls: an assistant's, tool_call_id: in a tool's turn, of
    the call whose result it is. What follows these is what clients keep of earlier answers, and has no effect.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Meta(max_length=MAX_PARTS)] | None = None
    tool_calls: Annotated[list[MadeCall], Meta(max_length=MAX_TOOLS)] | None = None
    tool_call_id: CallId | None = None
    function_call: None = None
    audio: None = None
    name: str | None = None
    refusal: str | None = None
    annotations: Any = None
    reasoning: str | None = None
    reasoning_content: str | None = None

    def __post_init__(self) -> None:
        if self.content is None and self.role != "assistant":
            raise ValueError("Expected `content`, which an assistant's turn alone may lack")
        if self.tool_calls and self.role != "assistant":
            raise ValueError("Expected `tool_calls` in an assistant's turn alone")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("Expected `tool_call_id` in a tool's turn, and there alone")


Messages = Annotated[list[ChatMessage], Meta(max_length=MAX_MESSAGES)]


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """include_usage: the stream ends with a count of its tokens. include_obfuscation: lengths are hidden anyway."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_Bias = Annotated[float, Meta(ge=-100, le=100)]
_TokenId = Annotated[str, Meta(pattern=r"\A[0-9]{1,7}\Z")]
_Count = Annotated[int, Meta(ge=1, le=MAX_CHOICES)]


class SamplingFields(msgspec.Struct, kw_only=True):
    """How to answer, in the fields that all endpoints share. logit_bias: by the token's number."""

    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=1 << 20)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    logit_bias: Annotated[dict[_TokenId, _Bias], Meta(max_length=_MAX_BIASES)] | None = None
    seed: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=MAX_STOPS)] | None = None


class StreamFields(SamplingFields, kw_only=True):
    """What both of OpenAI's endpoints for text have in common."""

    model: str
    n: _Count | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class PlainFormat(msgspec.Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    """Any text."""


class JsonFormat(msgspec.Struct, tag_field="type", tag="json_object", forbid_unknown_fields=True):
    """Any JSON object."""


class JsonSchema(msgspec.Struct, forbid_unknown_fields=True):
    """A schema by its name. strict: answers keep to it in any case."""

    name: Annotated[str, Meta(pattern=r"\A[\w-]{1,64}\Z")]
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class SchemaFormat(msgspec.Struct, tag_field="type", tag="json_schema", forbid_unknown_fields=True):
    """JSON by a schema."""

    json_schema: JsonSchema


class Function(msgspec.Struct, forbid_unknown_fields=True):
    """A function that may be called. parameters: a JSON Schema; none for a function without any."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def __post_init__(self) -> None:
        if self.parameters is not None and self.parameters.get("type", "object") != "object":
            raise ValueError("Expected `parameters` to be the schema of an object")


class FunctionTool(msgspec.Struct, forbid_unknown_fields=True):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: Function


class NamedFunction(msgspec.Struct, forbid_unknown_fields=True):
    """One by its name."""

    name: FunctionName


class NamedTool(msgspec.Struct, forbid_unknown_fields=True):
    """The tool that is to be called."""

    type: Literal["function"]
    function: NamedFunction


class ChatRequest(StreamFields, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    response_format: PlainFormat | JsonFormat | SchemaFormat | None = None
    tools: Annotated[list[FunctionTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    confide: Extensions | None = None


class CompletionRequest(StreamFields, kw_only=True):
    """POST /v1/completions. logprobs: a number in this endpoint, where 0 asks for something too."""

    prompt: str | Annotated[list[str], Meta(min_length=1, max_length=1)]
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    best_of: _Count | None = None
    echo: bool | None = None


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """POST /v1/embeddings."""

    model: str
    input: str | Annotated[list[str], Meta(min_length=1, max_length=256)]
    encoding_format: Literal["float", "base64"] | None = None


class GenerateRequest(SamplingFields, kw_only=True):
    """POST /generate. query: goes to the model as it is."""

    query: Annotated[str, Meta(min_length=1)]


class PromptRequest(SamplingFields, kw_only=True):
    """/chat, and GET /generate. prompt: base64 of UTF-8 text. history: earlier turns, of /chat alone."""

    prompt: Annotated[str, Meta(min_length=1)]
    history: Messages | None = None


Fields = TypeVar("Fields", bound=msgspec.Struct)

_NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = {
    "n": (1,),
    "best_of": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "min_p": (0,),
    "echo": (False,),
    "repetition_penalty": (1,),
    "repeat_penalty": (1,),
    "typical_p": (1,),
    "min_tokens": (0,),
    "stop_token_ids": ([],),
    "ignore_eos": (False,),
    "use_beam_search": (False,),
    "tools": ([],),
    "tool_choice": ("none", "auto", {"type": "none"}, {"type": "auto"}),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "suffix": ("",),
    "stream": (False,),
    "background": (False,),
    "truncation": ("disabled",),
    "reasoning": ({}, {"effort": None}, {"effort": None, "summary": None}),
    "thinking": ({"type": "disabled"},),
    "speed": ("standard",),
    "output_config": ({},),
    "mcp_servers": ([],),
}
"""Fields that clients send along, and the values at which they change no answer."""
_WITHOUT_EFFECT: Final = frozenset(
    {
        "user",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prompt_cache_options",
        "cache_control",
        "metadata",
        "store",
        "service_tier",
        "prediction",
        "max_tool_calls",
    }
)
"""Fields that change no answer, whatever is in them: they are for a service's books or its speed, and none is kept."""

_KINDS: Final = frozenset(
    {
        "image_url",
        "input_audio",
        "file",
        "refusal",
        "input_image",
        "input_file",
        "item_reference",
        "reasoning",
        "function_call",
        "function_call_output",
        "image",
        "document",
        "search_result",
        "thinking",
        "redacted_thinking",
        "tool_use",
        "tool_result",
        "json_object",
        "json_schema",
    }
)
"""What stands in requests to services, and may be named in an error: no other value of a request is."""
_STEP: Final = re.compile(r"\w+")

_PLACE: Final = re.compile(r" - at (?:`key` in )?`\$\.?([\w.\[\]]+?)(?:\[\.\.\.\])?`\Z")


def parse(body: bytes, kind: type[Fields]) -> Fields:
    """A request from its JSON; RequestRefused names the field to blame."""
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise RequestRefused("The body is not JSON; send a JSON object, in UTF-8.") from None
    return convert(fields, kind)


def convert(fields: Any, kind: type[Fields]) -> Fields:
    """A request from decoded JSON; RequestRefused names the field to blame."""
    if isinstance(fields, dict):
        offered = {field.encode_name for field in msgspec.structs.fields(kind)}
        for name, value in fields.items():
            if name not in offered and not _changes_nothing(name, value):
                raise RequestRefused(f"`{_shown(name)}` is not offered here; leave it out.", _shown(name))
    try:
        return msgspec.convert(fields, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise _refused(str(error), fields) from None


def _changes_nothing(name: str, value: Any) -> bool:
    """Whether a field that is not offered may be let pass: what nobody here knows could change an answer."""
    return value is None or name in _WITHOUT_EFFECT or any(_same(value, one) for one in _NEUTRAL.get(name, ()))


def _same(value: Any, other: Any) -> bool:
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _shown(name: str) -> str:
    """A field's name in an error: no more of the request than that, and none of its values."""
    return printable(name[:64])


def _refused(reason: str, fields: Any) -> RequestRefused:
    place = _PLACE.search(reason)
    field = place.group(1) if place else None
    reason = reason[: place.start()] if place else reason
    if field and field.endswith(".type") and (kind := _at(fields, field)) in _KINDS:
        return RequestRefused(f"`{kind}` at `{field}` is not offered here; send text.", field)
    if reason.startswith(("Invalid enum value", "Invalid value")):
        reason = "Invalid value"  # and not which
    return RequestRefused(f"{reason}{f' at `{field}`' if field else ''}; correct the request and send it again.", field)


def _at(fields: Any, place: str) -> Any:
    """What stands at a place in a request; None for no text."""
    for step in _STEP.findall(place):
        if isinstance(fields, list) and step.isdecimal() and int(step) < len(fields):
            fields = fields[int(step)]
        elif isinstance(fields, dict):
            fields = fields.get(step)
    return fields if isinstance(fields, str) else None

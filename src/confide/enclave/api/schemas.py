"""What requests look like. Bounds are part of the types; what would change an answer and is not offered is refused."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from confide.errors import RequestRefused

MAX_MESSAGES: Final = 1024
_MAX_PARTS: Final = 64
_MAX_STOPS: Final = 4

Stop = Annotated[str, Meta(min_length=1, max_length=256)]


class TextPart(msgspec.Struct):
    """A part of a message; texts are the only kind here."""

    type: Literal["text"]
    text: str


class ChatMessage(msgspec.Struct):
    """A turn of a conversation. developer: what newer clients call the system."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Meta(max_length=_MAX_PARTS)]
    tool_calls: None = None


Messages = Annotated[list[ChatMessage], Meta(max_length=MAX_MESSAGES)]


class StreamOptions(msgspec.Struct):
    """include_usage: the stream ends with a count of its tokens."""

    include_usage: bool = False


class SamplingFields(msgspec.Struct, kw_only=True):
    """How to answer, in the fields that all endpoints share."""

    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=1 << 20)] | None = None
    seed: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=_MAX_STOPS)] | None = None


class StreamFields(SamplingFields, kw_only=True):
    """What both of OpenAI's endpoints for text have in common."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class ChatRequest(StreamFields, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None


class CompletionRequest(StreamFields, kw_only=True):
    """POST /v1/completions. logprobs: a number in this endpoint, where 0 asks for something too."""

    prompt: str | Annotated[list[str], Meta(min_length=1, max_length=1)]
    logprobs: None = None


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


Fields = TypeVar("Fields", ChatRequest, CompletionRequest, EmbeddingRequest, GenerateRequest, PromptRequest)

_NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "min_p": (None, 0),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "web_search_options": (None,),
    "echo": (None, False),
    "suffix": (None, ""),
    "dimensions": (None,),
}
"""Fields that would change the answer, and the values at which they do not. Other unknown fields are let pass."""

_PLACE: Final = re.compile(r" - at `\$\.?([\w.\[\]]+)`\Z")


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
        for name, neutral in _NEUTRAL.items():
            if name in fields and fields[name] not in neutral:
                raise RequestRefused(f"`{name}` is not offered here; leave it out.", name)
    try:
        return msgspec.convert(fields, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise _refused(str(error)) from None


def _refused(reason: str) -> RequestRefused:
    place = _PLACE.search(reason)
    field = place.group(1) if place else None
    reason = reason[: place.start()] if place else reason
    if reason.startswith("Invalid enum value"):
        reason = "Invalid value"  # and not which
    return RequestRefused(f"{reason}{f' at `{field}`' if field else ''}; correct the request and send it again.", field)

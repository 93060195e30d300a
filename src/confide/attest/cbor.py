"""CBOR (RFC 8949) of unknown origin: one plain value, without the tags that a decoder would act on."""

import io
from collections.abc import Callable
from typing import Any, Final, NoReturn

import cbor2

from confide.errors import MalformedEvidence

MAX_DEPTH: Final = 8


def decode(content: bytes, what: str, *, any_keys: bool = False) -> Any:
    """Exactly one value of definite length, and nothing after it; MalformedEvidence, naming `what`, otherwise.

    Tags come as cbor2.CBORTag. No key of a map may repeat. Keys are texts and bytes alone: others can be chosen so that
    their hashes collide. any_keys: allow others, as for maps by number; the caller bounds the content to some 32 KiB.
    """
    stream = io.BytesIO(content)
    try:
        value = cbor2.load(
            stream,
            semantic_decoders=_NO_SEMANTICS,
            max_depth=MAX_DEPTH,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=not any_keys,
        )
    except (cbor2.CBORDecodeError, ValueError, TypeError, OverflowError, RecursionError, MemoryError):
        raise MalformedEvidence(f"The {what} is not CBOR; ask for it again.") from None
    if stream.tell() != len(content):
        raise MalformedEvidence(f"The {what} has something behind it; ask for it again.")
    return value


def _refuse(_value: Any, _immutable: bool) -> NoReturn:
    raise ValueError("a tag that evidence has no use for")


# Tags that a decoder would otherwise act on: dates, big numbers, shared values, regular expressions and such.
_ACTIVE_TAGS: Final = (*range(6), 25, 28, 29, 30, 35, 36, 37, 52, 54, 100, 256, 258, 260, 261, 1004, 43000, 55799)
_NO_SEMANTICS: Final[dict[int, Callable[[Any, bool], Any]]] = dict.fromkeys(_ACTIVE_TAGS, _refuse)

"""JSON that is hashed and signed in its canonical form (RFC 8785), from bytes that anybody may have made."""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Final, TypeVar

import msgspec
import rfc8785

from confide.errors import MalformedReceipt

Document = Mapping[str, Any]
Digest = Annotated[str, msgspec.Meta(pattern=r"\Asha256:[0-9a-f]{64}\Z")]
"""SHA-256 as ACI writes it (appendix A): its name, a colon, lower-case hexadecimal."""
Word = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Instant = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
"""Seconds since 1970, UTC."""

API_VERSION: Final = "aci/1"
_DEEPEST: Final = 32
_Fields = TypeVar("_Fields")


def read_document(data: bytes, what: str, most: int) -> Document:
    """The JSON object in these bytes, which has a canonical form. what: its name, for errors. most: bytes.

    MalformedReceipt for anything else.
    """
    document = read_json(data, what, most)
    canonical(document, what)
    return document


def read_json(data: bytes, what: str, most: int) -> Document:
    """The same for a document that is not hashed whole.

    I-JSON (RFC 7493) has no name twice, so that two readers never see two documents.
    """
    if len(data) > most:
        raise MalformedReceipt(f"A {what} has at most {most >> 10} KiB; this is none, get the file again.")
    try:
        document = json.loads(data, object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise _malformed(what) from None
    if not isinstance(document, dict) or not _shallow(document):
        raise _malformed(what)
    return document


def read_fields(document: Document, what: str, kind: type[_Fields]) -> _Fields:
    """The members that have a meaning here, of the types that they must have. MalformedReceipt."""
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError:
        raise _malformed(what) from None


def canonical(document: Document, what: str = "document") -> bytes:
    """As RFC 8785 writes it. MalformedReceipt for what it cannot: integers beyond 2^53, halves of characters."""
    try:
        return rfc8785.dumps(dict(document))
    except (ValueError, RecursionError):
        raise _malformed(what) from None


def digest_of(data: bytes) -> str:
    """SHA-256 of bytes, as ACI writes digests."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _malformed(what: str) -> MalformedReceipt:
    return MalformedReceipt(f"This is no {what} of the version {API_VERSION}, or it was damaged; get it again.")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _shallow(value: object) -> bool:
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return True
    return False

"""What stands in the audit log, and in the signed documents beside it. All of it may be read by an adversary's hand."""

import re
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

import msgspec
import rfc8785

from confide.disk.files import read_bounded
from confide.receipts.client_key import ClientKey, signed_by

PURPOSE: Final = b"confide client audit log 1\0"
"""Before what is hashed of every line."""
MAX_LINE_BYTES: Final = 1 << 14
MAX_STATEMENT_BYTES: Final = 1 << 16
MAX_PEER: Final = 512
MAX_CODES: Final = 64
_LAST_SEGMENT: Final = 999_999
_SEGMENT: Final = re.compile(r"segment-([0-9]{6})\.jsonl")

Hex32 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Hex32OrNone = Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64})?\Z")]
Hex64OrNone = Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{128})?\Z")]
DigestOrNone = Annotated[str, msgspec.Meta(pattern=r"\A(sha256:[0-9a-f]{64})?\Z")]
Code = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9-]{0,64}\Z")]
Name = Annotated[str, msgspec.Meta(max_length=MAX_PEER)]
Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 53) - 1)]
SegmentNumber = Annotated[int, msgspec.Meta(ge=1, le=_LAST_SEGMENT)]
Instant = Annotated[datetime, msgspec.Meta(tz=True)]
Event = Literal[
    "started", "connected", "refused", "receipt", "distrusted", "forgiven", "recovered", "rotated", "retired"
]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Nothing in the log is without a meaning."""


class Entry(_Strict, frozen=True):
    """One event. What does not belong to it is empty.

    mode: enclave or hybrid. peer: the address that was asked for, as the user has it. model: the digest of the model.
    policy, evidence, statement: digests of what a verdict was over. simulated: it proves nothing. failed: codes of what
    did not pass, or of the error. made_by: of a receipt, workload or client; receipt: its digest, and empty where there
    is none that could be read. recovered: bytes of a torn last line that were cut off. log: the log's own name, in its
    first entry. segment: that this line begins, or the last that was retired.
    """

    at: Instant
    event: Event
    mode: Literal["", "enclave", "hybrid"] = ""
    peer: Name = ""
    model: Hex32OrNone = ""
    policy: Hex32OrNone = ""
    evidence: Hex32OrNone = ""
    statement: Hex64OrNone = ""
    simulated: bool = False
    failed: Annotated[tuple[Code, ...], msgspec.Meta(max_length=MAX_CODES)] = ()
    made_by: Literal["", "workload", "client"] = ""
    receipt: DigestOrNone = ""
    recovered: Count = 0
    log: Hex32OrNone = ""
    segment: Annotated[int, msgspec.Meta(ge=0, le=_LAST_SEGMENT)] = 0

    def write(self) -> bytes:
        """As it is hashed and kept: RFC 8785."""
        return rfc8785.dumps(msgspec.to_builtins(self))


class _Signed(_Strict, frozen=True, kw_only=True):
    """A statement of the client's, signed by its key. entries, head: of all lines up to there."""

    log: Hex32
    entries: Count
    head: Hex32
    at: Instant
    public_key: Hex32
    signature: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{128})?\Z")] = ""


class Checkpoint(_Signed, frozen=True, kw_only=True, tag_field="kind", tag="confide-audit-checkpoint/1"):
    """How far the log had come: to a place in a segment, in bytes from its beginning."""

    segment: SegmentNumber
    bytes: Count


class Retired(_Signed, frozen=True, kw_only=True, tag_field="kind", tag="confide-audit-retired/1"):
    """What is gone, by the owner's own will: all segments up to one. The head holds fast what stood in them."""

    segment: SegmentNumber


_Statement = TypeVar("_Statement", bound=_Signed)


def read_entry(data: bytes) -> Entry | None:
    """The entry of a line; None for what is none."""
    try:
        return msgspec.json.decode(data, type=Entry)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def read_statement(data: bytes, kind: type[_Statement]) -> _Statement | None:
    """A signed statement, and nothing about its signature; None for what is none."""
    try:
        return msgspec.json.decode(data, type=kind) if len(data) <= MAX_STATEMENT_BYTES else None
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def read_statement_file(path: Path, kind: type[_Statement]) -> _Statement | None:
    """The same from a file; None also for one that is too large or cannot be read."""
    try:
        return read_statement(read_bounded(path, MAX_STATEMENT_BYTES), kind)
    except OSError:
        return None


def sign(statement: _Statement, key: ClientKey) -> _Statement:
    """The same with the key, and its signature."""
    unsigned = msgspec.structs.replace(statement, public_key=key.public, signature="")
    return msgspec.structs.replace(unsigned, signature=key.sign(_label(unsigned), _signed(unsigned)))


def is_signed(statement: _Signed) -> bool:
    """Whether the signature is by the key that it names."""
    return signed_by(statement.public_key, _label(statement), _signed(statement), statement.signature)


def write_statement(statement: _Signed) -> bytes:
    """As a file for people to read, too."""
    return msgspec.json.format(rfc8785.dumps(msgspec.to_builtins(statement))) + b"\n"


def _signed(statement: _Signed) -> bytes:
    said = msgspec.to_builtins(statement)
    return rfc8785.dumps({name: value for name, value in said.items() if name != "signature"})


def _label(statement: _Signed) -> bytes:
    return str(statement.__struct_config__.tag).encode()


def segment_name(number: int) -> str:
    """The file of a segment, counted from 1."""
    return f"segment-{number:06d}.jsonl"


def segments(folder: Path) -> list[int]:
    """The numbers of those that lie in a folder, in order. OSError."""
    found = (_SEGMENT.fullmatch(path.name) for path in folder.iterdir())
    return sorted(number for match in found if match and (number := int(match[1])))

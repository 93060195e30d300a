"""The messages of the hybrid protocol: one binary WebSocket frame each, MessagePack arrays with a numeric tag.

Decoding is typed and bounded: whatever arrives is either a message whose every field is within its limits, or one
MalformedMessage. Payloads are little-endian arrays; their sizes are checked against the layer table by the receiver.
"""

from typing import Annotated, Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.errors import WIRE_CODES, ConfideError, MalformedMessage, ProtocolError, WrongShape, error_class
from confide.hybrid.groups import MAX_RANGES
from confide.ledger.keys import MAX_KEY
from confide.printable import quoted

PROTOCOL_VERSION: Final = 3
SCHEME: Final = "rlwe-3"
"""The encryption that both sides name in the greeting."""
PATH: Final = "/v1/layers"
MAX_FRAME: Final = 8 << 20
"""Largest payload of a message either side sends, in bytes; where a message has two, of both together."""
MAX_GREETING: Final = 1 << 12
"""Largest frame of a client that has not been greeted, in bytes."""
FRAME_OVERHEAD: Final = 1 << 12
"""Room for a frame's other fields."""
MAX_BLOCK_TOKENS: Final = 256
"""Most tokens of one `Ahead`."""
MAX_REQUEST_TOKENS: Final = 1 << 12
"""Most tokens of one `Online`."""

Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
PublicKey = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Signature = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
Version = Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
GroupIndex = Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
GroupRange = tuple[GroupIndex, GroupIndex]
BlockIndex = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
TokenIndex = Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
TokenCount = Annotated[int, msgspec.Meta(ge=1, le=MAX_REQUEST_TOKENS)]
Amount = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
LicenceKey = Annotated[str, msgspec.Meta(max_length=MAX_KEY)]
Name = Annotated[str, msgspec.Meta(max_length=64)]
Sentence = Annotated[str, msgspec.Meta(max_length=1000)]
Payload = Annotated[memoryview, msgspec.Meta(max_length=MAX_FRAME)]

NOTHING: Final = memoryview(b"")


class _Message(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    pass


class Hello(_Message, tag=1):
    """The client's first message. licence: a bearer key, or nothing."""

    version: Version
    scheme: Name
    model_digest: Digest
    table_digest: Digest
    licence: LicenceKey = ""

    def __repr__(self) -> str:
        # Without the key, which must not end up in a log line or a traceback.
        return f"Hello(version={self.version}, scheme={self.scheme!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("version", self.version), ("scheme", self.scheme)]


class Allowance(_Message):
    """What the client's licence allows from here on, as the server says. None is without a limit.

    tokens_left: of its budget. answers_left: tokens until what it discloses ends it. disclosed: of what solves the most
    disclosed layer group, the share that it has seen; 1.0 is all of it, and disclosure the most that it may see.
    bits_disclosed: of all layer groups together. expires: seconds since 1970.
    """

    tokens_left: Amount | None = None
    answers_left: Amount | None = None
    disclosed: Share = 0.0
    disclosure: Share | None = None
    bits_disclosed: Amount = 0
    expires: Amount | None = None
    tokens_per_minute: Amount | None = None

    @property
    def tokens(self) -> int | None:
        """That may be asked for before one of the limits ends the licence."""
        return min((left for left in (self.tokens_left, self.answers_left) if left is not None), default=None)


class Welcome(_Message, tag=2):
    """The server's answer to Hello.

    owner, release: the public key and the signature of the model's owner; see packages.signing.Release.
    bytes_in_flight: payload bytes of online requests and their answers that the client may have sent and not have an
    answer to; beyond, the server stops reading. ahead_tokens: tokens of all blocks together whose p0 the server keeps;
    older blocks make room. groups: first and last of each range of the layer groups that the server has, ascending and
    apart; what `Groups` refuses is malformed.
    """

    version: Version
    allowance: Allowance
    owner: PublicKey
    release: Signature
    bytes_in_flight: Amount
    ahead_tokens: Amount
    groups: Annotated[tuple[GroupRange, ...], msgspec.Meta(min_length=1, max_length=MAX_RANGES)]


class Ahead(_Message, tag=3):
    """Public halves p0 of a block of tokens, before they are needed: int8 digit planes (tokens, 6, N). No reply.

    block: any number the client has not used on this connection; it names the tokens 0.. of the block in `Online`.
    """

    block: BlockIndex
    p0: Payload


class Online(_Message, tag=4):
    """Masked activations of the block's tokens first..first + count for one layer group.

    planes: int8 digit planes (planes, count, columns). p0: int8 (count, 6, N), or nothing where the server is asked to
    use what it made ahead; it answers unknown-block if it has not, and the client sends the same bytes with p0.
    """

    group: GroupIndex
    block: BlockIndex
    first: TokenIndex
    count: TokenCount
    planes: Payload
    p0: Payload = NOTHING


class Answer(_Message, tag=5):
    """The online answer: int32 (count, rows). Answers come in the order of their requests."""

    values: Payload


class Failure(_Message, tag=6):
    """What went wrong, as a code of `errors` and a sentence. Takes the place of an answer."""

    code: Name
    message: Sentence


FromClient = Hello | Ahead | Online
FromServer = Welcome | Answer | Failure

_encoder = msgspec.msgpack.Encoder()
_from_client: msgspec.msgpack.Decoder[FromClient] = msgspec.msgpack.Decoder(FromClient)
_from_server: msgspec.msgpack.Decoder[FromServer] = msgspec.msgpack.Decoder(FromServer)


def encode(message: FromClient | FromServer) -> bytes:
    """One frame."""
    return _encoder.encode(message)


def decode_from_client(frame: bytes) -> FromClient:
    """The message in a client's frame; MalformedMessage for anything else."""
    try:
        return _from_client.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed() from error


def decode_from_server(frame: bytes) -> FromServer:
    """The message in a server's frame; MalformedMessage for anything else."""
    try:
        return _from_server.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed() from error


def _malformed() -> MalformedMessage:
    # The decoder's own words could quote what it read, so they stay out of the message.
    return MalformedMessage(
        f"A frame is not a message of protocol version {PROTOCOL_VERSION}; "
        "use the same version of Confide on both sides."
    )


def payload(array: NDArray[np.generic]) -> memoryview:
    """An array's bytes, without a copy where it is contiguous."""
    return memoryview(np.ascontiguousarray(array).data).cast("B")


def failure(error: ConfideError) -> Failure:
    """The frame that reports an error to the client."""
    return Failure(error.code, str(error)[:1000])


def raise_failure(reported: Failure) -> None:
    """Raise what the server reported, as the error it is.

    Its words are quoted as a peer's. ProtocolError for a code that no server has to report.
    """
    words = quoted(reported.message)
    kind = error_class(reported.code, WIRE_CODES)
    if kind is None:
        raise ProtocolError(
            f"The server reported {quoted(reported.code)}, which no server has to: {words}; "
            "ask its operator which version of Confide it runs."
        )
    raise kind(f"The layer server says: {words}")


def require_bytes(payload: bytes | memoryview, expected: int) -> None:
    """WrongShape unless the payload has this many bytes."""
    if len(payload) != expected:
        raise WrongShape(
            f"A payload has {len(payload)} bytes where its layer group needs {expected}; "
            "use a client and a server folder that were written together."
        )

"""The messages of the hybrid protocol: one binary WebSocket frame each, MessagePack arrays with a numeric tag.

Decoding is typed and bounded: whatever arrives is either a message whose every field is within its limits, or one
MalformedMessage. Payloads are little-endian arrays; their sizes are checked against the layer table by the receiver.
"""

import hashlib
from typing import Annotated, Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.errors import ConfideError, MalformedMessage, WrongShape, error_class

PROTOCOL_VERSION: Final = 2
PATH: Final = "/v1/layers"
MAX_FRAME: Final = 8 << 20
"""Largest payload of a frame either side sends, in bytes."""
MAX_OWED: Final = 2 << 20
"""Bytes of answers that a client may have asked for and not read yet. A server keeps as many before it stops reading,
so that no client can wait for it to read while it waits for the client to."""
FRAME_OVERHEAD: Final = 1 << 12
"""Room for a frame's other fields; public keys travel in frames of their own."""

Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
PublicKey = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Signature = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
PackId = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
GroupIndex = Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
RowIndex = Annotated[int, msgspec.Meta(ge=0, lt=1 << 24)]
TokenIndex = Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
TokenCount = Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]
LicenceKey = Annotated[str, msgspec.Meta(max_length=128)]
Name = Annotated[str, msgspec.Meta(max_length=64)]
Sentence = Annotated[str, msgspec.Meta(max_length=1000)]
Payload = Annotated[memoryview, msgspec.Meta(max_length=MAX_FRAME)]


class _Message(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    pass


class Hello(_Message, tag=1):
    """The client's first message. licence: a bearer key, or nothing."""

    version: Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
    scheme: Name
    model_digest: Digest
    table_digest: Digest
    licence: LicenceKey = ""

    def __repr__(self) -> str:
        # Without the key, which must not end up in a log line or a traceback.
        return f"Hello(version={self.version}, scheme={self.scheme!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("version", self.version), ("scheme", self.scheme)]


class Welcome(_Message, tag=2):
    """The server's answer to Hello.

    server_seed: public, the server's part of every p1 seed. tokens_left: what the licence still allows, if it limits.
    owner, release: the public key and the signature of the model's owner; see models.seal.Release.
    """

    version: Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
    server_seed: Digest
    tokens_left: Annotated[int, msgspec.Meta(ge=0)] | None
    owner: PublicKey
    release: Signature


class OpenPack(_Message, tag=3):
    """Ask what the server has on record of a pack."""

    pack: PackId


class PackState(_Message, tag=4):
    """mark: indexes below it are used or burned at the server. groups: prepared layer groups."""

    pack: PackId
    mark: Annotated[int, msgspec.Meta(ge=0, le=1 << 16)]
    groups: Annotated[int, msgspec.Meta(ge=0, le=1 << 16)]


class OfflineBegin(_Message, tag=5):
    """Begin the offline request of one layer group; its rows follow.

    client_nonce: the client's part of the p1 seed. mask_seed: the seed of the a halves. public_key: p0, int32 digit
    words (words, N).
    """

    pack: PackId
    group: GroupIndex
    client_nonce: Digest
    mask_seed: Digest
    public_key: Annotated[bytes, msgspec.Meta(max_length=1 << 20)]


class OfflineRows(_Message, tag=6):
    """The b halves of inputs first_row..: int32 digit words (rows, words, N). Rows come in order."""

    first_row: RowIndex
    words: Payload


class OfflineBlock(_Message, tag=7):
    """The answer's outputs first_row..: int32 (2, rows, N) and uint8 (2, rows, N), see rlwe.evaluation."""

    first_row: RowIndex
    high: Payload
    low: Payload


class Online(_Message, tag=8):
    """Masked activations d of consecutive mask indexes: int32 (count, columns)."""

    pack: PackId
    group: GroupIndex
    first: TokenIndex
    count: TokenCount
    masked: Payload


class Answer(_Message, tag=9):
    """The online answer: int32 (count, rows)."""

    values: Payload


class Failure(_Message, tag=10):
    """What went wrong, as a code of `errors` and a sentence."""

    code: Name
    message: Sentence


FromClient = Hello | OpenPack | OfflineBegin | OfflineRows | Online
FromServer = Welcome | PackState | OfflineBlock | Answer | Failure

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
    """The frame that reports an error to the other side."""
    return Failure(error.code, str(error)[:1000])


def raise_failure(reported: Failure) -> None:
    """Raise what the other side reported, as the error it is."""
    raise error_class(reported.code)(reported.message)


def p1_seed(server_seed: bytes, client_nonce: bytes, pack: bytes) -> bytes:
    """The seed of the public key's p1: neither side can choose it alone, and nobody ever sends p1 itself."""
    return hashlib.sha256(b"confide/1 p1 seed" + server_seed + client_nonce + pack).digest()


class RequestDigest:
    """SHA-256 of a whole offline request, absorbed as it arrives: what all of the server's randomness is bound to."""

    def __init__(
        self, model_digest: bytes, table_digest: bytes, licence: bytes, server_seed: bytes, begin: OfflineBegin
    ) -> None:
        self._hash = hashlib.sha256()
        fields = (
            b"confide request",
            PROTOCOL_VERSION.to_bytes(2, "big"),
            model_digest,
            table_digest,
            licence,
            begin.pack,
            begin.group.to_bytes(4, "big"),
            p1_seed(server_seed, begin.client_nonce, begin.pack),
            begin.public_key,
            begin.mask_seed,
        )
        for field in fields:
            self._hash.update(len(field).to_bytes(8, "big") + field)

    def add_rows(self, words: memoryview) -> None:
        """Absorb the next rows' b halves."""
        self._hash.update(words)

    def digest(self) -> bytes:
        """The digest; call it once all rows are absorbed."""
        return self._hash.digest()


def require_bytes(payload: bytes | memoryview, expected: int) -> None:
    """WrongShape unless the payload has this many bytes."""
    if len(payload) != expected:
        raise WrongShape(
            f"A payload has {len(payload)} bytes where its layer group needs {expected}; "
            "use a client and a server folder that were written together."
        )

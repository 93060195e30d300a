"""Requests and answers as they travel: encrypted to the workload's key, in frames that cannot be cut, moved, repeated.

A request carries a fresh secret, by HPKE to the attested key together with the time; the two directions derive
their own AES-256-GCM keys from it (HKDF-SHA256). Each direction is a sequence of frames, length (4 bytes, big-endian)
and ciphertext, under nonces that count them and mark the last one (the STREAM construction of Hoang, Reyhanitabar,
Rogaway and Vizar, CRYPTO 2015). The first frame is the head, the others are the body. Knows no socket and no HTTP.
"""

import hashlib
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Final, TypeVar

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from confide.channel.keys import ChannelKey, ChannelPublicKey
from confide.errors import ChannelBroken, ChannelRefused, KeyChanged

MEDIA_TYPE: Final = "application/vnd.confide.encrypted"
PATH: Final = "/encrypted"
CACHE_SALT: Final = "confide-cache-salt"
"""Header of the request inside, or of one in TLS that ends inside: 32 random bytes in hexadecimal, a secret of whoever
asks. What the workload has read of a prompt serves later ones with the same salt, and no others."""
COLLECTION_KEY: Final = "confide-collection-key"
"""Header of the same request: the key of a collection of the user's own, 32 bytes in hexadecimal."""
MAX_FRAME: Final = 64 << 10
"""Plaintext in one frame."""
_MAGIC: Final = b"CFD1"
_OPENING: Final = struct.Struct(">4s32sQH")
"""Magic, key id, milliseconds since 1970, length of the encrypted secret."""
_LENGTH: Final = struct.Struct(">I")
_TAG: Final = 16
_SECRET: Final = 32

Headers = Annotated[
    tuple[tuple[Annotated[str, msgspec.Meta(max_length=64)], Annotated[str, msgspec.Meta(max_length=8192)]], ...],
    msgspec.Meta(max_length=32),
]


class RequestHead(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The request line and headers that the workload gets. path: with its query."""

    method: Annotated[str, msgspec.Meta(pattern=r"\A[A-Z]{1,16}\Z")]
    path: Annotated[str, msgspec.Meta(pattern=r"\A/[\x21-\x7e]{0,32767}\Z")]
    headers: Headers = ()


class ResponseHead(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The status and headers that the caller gets."""

    status: Annotated[int, msgspec.Meta(ge=100, le=599)]
    headers: Headers = ()


_Head = TypeVar("_Head", RequestHead, ResponseHead)


class FrameWriter:
    """Encrypts one direction, frame by frame."""

    def __init__(self, key: bytes) -> None:
        """key: 32 bytes, for this direction alone."""
        self._cipher = AESGCM(key)
        self._count = 0
        self._ended = False

    def write(self, plaintext: bytes, *, last: bool = False) -> bytes:
        """Frames with this content; the last one ends the direction, and may be empty."""
        if self._ended:
            raise RuntimeError("This direction has ended.")
        parts = [plaintext[at : at + MAX_FRAME] for at in range(0, len(plaintext), MAX_FRAME)] or [b""]
        return b"".join(self._frame(part, last and index == len(parts) - 1) for index, part in enumerate(parts))

    def _frame(self, part: bytes, last: bool) -> bytes:
        encrypted = self._cipher.encrypt(_nonce(self._count, last), part, None)
        self._count += 1
        self._ended = last
        return _LENGTH.pack(len(encrypted)) + encrypted


class FrameReader:
    """Decrypts one direction from bytes that come in any portions. ended: whether the last frame has come."""

    def __init__(self, key: bytes) -> None:
        """key: 32 bytes, for this direction alone."""
        self._cipher = AESGCM(key)
        self._buffer = bytearray()
        self._count = 0
        self.ended = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The plaintexts of the frames that are whole by now. ChannelBroken for any that does not belong here."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if self.ended or not _TAG <= length <= MAX_FRAME + _TAG:
                raise _broken()
            if len(self._buffer) < _LENGTH.size + length:
                return
            encrypted = bytes(self._buffer[_LENGTH.size : _LENGTH.size + length])
            del self._buffer[: _LENGTH.size + length]
            yield self._open(encrypted)
        if self.ended and self._buffer:
            raise _broken()

    def _open(self, encrypted: bytes) -> bytes:
        for last in (False, True):
            try:
                plaintext = self._cipher.decrypt(_nonce(self._count, last), encrypted, None)
            except InvalidTag:
                continue
            self._count += 1
            self.ended = last
            return plaintext
        raise _broken()

    def require_end(self) -> None:
        """ChannelBroken unless the last frame has come and nothing after it."""
        if not self.ended or self._buffer:
            raise _broken()


class EncryptedExchange:
    """One request and its answer, at the caller's side."""

    def __init__(self, key: ChannelPublicKey, now: float | None = None) -> None:
        """now: seconds since 1970, the present by default."""
        issued = int((time.time() if now is None else now) * 1000)
        secret = os.urandom(_SECRET)
        encrypted = key.encrypt(secret, _info(key.id, issued))
        self._opening = _OPENING.pack(_MAGIC, key.id, issued, len(encrypted)) + encrypted
        self._writer = FrameWriter(_derive(secret, b"request"))
        self._reader = FrameReader(_derive(secret, b"response"))

    def request(self, head: RequestHead, body: bytes = b"") -> bytes:
        """The whole request as it travels."""
        first = self._writer.write(msgspec.msgpack.encode(head), last=not body)
        return self._opening + first + (self._writer.write(body, last=True) if body else b"")

    @property
    def reader(self) -> FrameReader:
        """For the answer: its first frame is a ResponseHead, see `decode_head`."""
        return self._reader


@dataclass(frozen=True)
class OpenedRequest:
    """A request at the workload's side. id: unique to it, for telling repetitions. issued: seconds since 1970."""

    id: bytes
    issued: float
    head: RequestHead
    body: bytes = field(repr=False)
    writer: FrameWriter = field(repr=False)


def open_request(key: ChannelKey, data: bytes) -> OpenedRequest:
    """Take a request apart. KeyChanged where it is meant for another key, ChannelRefused or ChannelBroken if damaged.

    Whether it came before is for `ReplayGuard` to say.
    """
    if len(data) < _OPENING.size:
        raise ChannelRefused("This is no encrypted request; send what `confide.connect` makes.")
    magic, key_id, issued, length = _OPENING.unpack_from(data)
    if magic != _MAGIC:
        raise ChannelRefused("This is no encrypted request; send what `confide.connect` makes.")
    if key_id != key.public.id:
        raise KeyChanged(
            "The workload has another key than the one this was encrypted to; verify it again.", key.public.id
        )
    start = _OPENING.size + length
    encrypted = data[_OPENING.size : start]
    secret = key.decrypt(encrypted, _info(key_id, issued))
    reader = FrameReader(_derive(secret, b"request"))
    frames = list(reader.feed(data[start:]))
    reader.require_end()
    head = decode_head(frames[0], RequestHead)
    identity = hashlib.sha256(encrypted).digest()
    return OpenedRequest(identity, issued / 1000, head, b"".join(frames[1:]), FrameWriter(_derive(secret, b"response")))


def decode_head(frame: bytes, kind: type[_Head]) -> _Head:
    """A direction's first frame. ChannelBroken for anything else."""
    try:
        return msgspec.msgpack.decode(frame, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _broken() from error


def encode_head(head: ResponseHead) -> bytes:
    """What to write first."""
    return msgspec.msgpack.encode(head)


def _info(key_id: bytes, issued: int) -> bytes:
    return b"confide channel 1\0" + key_id + struct.pack(">Q", issued)


def _derive(secret: bytes, direction: bytes) -> bytes:
    return HKDF(SHA256(), 32, salt=None, info=b"confide channel 1 " + direction).derive(secret)


def _nonce(count: int, last: bool) -> bytes:
    return count.to_bytes(11, "big") + bytes([last])


def _broken() -> ChannelBroken:
    return ChannelBroken(
        "The encrypted channel was cut, or what came through it was changed or moved; nothing after that was used. "
        "Send the request again, and find out what is in between if it recurs."
    )

"""A user's own collection: documents of theirs, sealed under a key that they alone keep.

A service reads, cuts and searches them in memory, and what it leaves on its machine's disk opens with that key only.
Whoever has the key made it: nobody signs it, and the numbers of its heads are what tells an older one from the newest.
"""

import hashlib
import os
from typing import Annotated, Final, Literal

import msgspec

from confide.errors import CollectionDamaged, CollectionFull, DamagedFile
from confide.packages.sealed.corpus import Chunk, Head, Source, chunks_root
from confide.packages.sealed.key import ModelKey
from confide.packages.sealed.stream import ChunkCipher, chunk_count, sealed_size

MAX_DOCUMENTS: Final = 1000
MAX_CHUNKS: Final = 1 << 16
MAX_BYTES: Final = 64 << 20
"""Of all that is sealed: texts, and their embeddings."""
MAX_NAME: Final = 256
_MAGIC: Final = b"confide collection 1\0"
_SALT_BYTES: Final = 32
HEADER_BYTES: Final = len(_MAGIC) + _SALT_BYTES + 8
MAX_SEALED_BYTES: Final = HEADER_BYTES + sealed_size(MAX_BYTES)
_FILE: Final = "collection"
"""What the key of its file is derived for; see `ModelKey.file_key`."""
_ID_LABEL: Final = b"confide collection id 1\0"
_HEAD_LABEL: Final = b"confide collection head 1\0"

DocumentId = Annotated[str, msgspec.Meta(pattern=r"\Afile-[0-9a-f]{32}\Z")]
_Seconds = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A document's text. size: bytes of the file that it was. created: in Unix time.

    attached: whether it is searched. embedder: the digest of the model that made the vectors, empty for none. vectors:
    as in `confide.packages.sealed.corpus.Embedded`, of these chunks.
    """

    id: DocumentId
    name: Source
    size: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
    created: _Seconds
    attached: bool
    chunks: Annotated[tuple[Chunk, ...], msgspec.Meta(min_length=1, max_length=MAX_CHUNKS)]
    embedder: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64})?\Z")]
    vectors: bytes


class Collection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a collection is at one head.

    id: which, see `collection_id`. head: counts from 1. previous: the digest of the head before, empty for the first.
    name: None as long as there are documents and no vector store. created: in Unix time.
    """

    format: Literal[1]
    id: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    head: Head
    previous: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64})?\Z")]
    name: Annotated[str, msgspec.Meta(max_length=MAX_NAME)] | None
    created: _Seconds
    documents: Annotated[tuple[Document, ...], msgspec.Meta(max_length=MAX_DOCUMENTS)]

    @property
    def attached(self) -> tuple[Document, ...]:
        """Those that are searched, in the order in which they came."""
        return tuple(document for document in self.documents if document.attached)

    @property
    def digest(self) -> str:
        """Of this head, in hexadecimal: SHA-256 over a label and the JSON list of id, head, previous, name, and of each
        document [id, name, attached, root of the Merkle tree over its chunks].
        """
        documents = [[one.id, one.name, one.attached, chunks_root(one.chunks)] for one in self.documents]
        said = [self.id, self.head, self.previous, self.name, documents]
        return hashlib.sha256(_HEAD_LABEL + msgspec.json.encode(said)).hexdigest()


def collection_id(key: ModelKey) -> str:
    """Which collection a key is of: 64 hexadecimal digits of a labelled SHA-256, which say nothing else about it."""
    return hashlib.sha256(_ID_LABEL + key.raw).hexdigest()


def seal_collection(collection: Collection, key: ModelKey) -> bytes:
    """The collection, encrypted and authenticated under its key and a salt of its own. CollectionFull."""
    plaintext = msgspec.msgpack.encode(collection)
    if len(plaintext) > MAX_BYTES or sum(len(one.chunks) for one in collection.documents) > MAX_CHUNKS:
        raise CollectionFull(
            f"A collection has at most {MAX_BYTES >> 20} MiB of text and {MAX_CHUNKS:,} chunks; remove documents, or "
            "begin another with another key."
        )
    salt, size = os.urandom(_SALT_BYTES), len(plaintext)
    cipher = ChunkCipher(key.file_key(salt, 0, _FILE), size)
    parts = [cipher.seal(index, plaintext[_span(cipher, index)]) for index in range(chunk_count(size))]
    return b"".join((_MAGIC, salt, size.to_bytes(8, "big"), *parts))


def open_collection(sealed: bytes, key: ModelKey) -> Collection:
    """What `seal_collection` made with this key. CollectionDamaged for anything else."""
    size = int.from_bytes(sealed[HEADER_BYTES - 8 : HEADER_BYTES], "big")
    whole = len(sealed) >= HEADER_BYTES and size <= MAX_BYTES and len(sealed) == HEADER_BYTES + sealed_size(size)
    if not (whole and sealed.startswith(_MAGIC)):
        raise CollectionDamaged.changed()
    cipher = ChunkCipher(key.file_key(salt_of(sealed), 0, _FILE), size)
    plaintext, body = bytearray(size), memoryview(sealed)[HEADER_BYTES:]
    try:
        for index in range(chunk_count(size)):
            span = cipher.span(index)
            part = body[span.sealed_start : span.sealed_start + span.sealed_length]
            cipher.open_into(index, part, memoryview(plaintext)[span.start : span.end])
    except DamagedFile:
        raise CollectionDamaged.changed() from None
    collection = parse_collection(plaintext)
    if collection.id != collection_id(key):
        raise CollectionDamaged.changed()
    return collection


def parse_collection(content: bytes | bytearray) -> Collection:
    """What is in one. CollectionDamaged for anything else."""
    try:
        return msgspec.msgpack.decode(content, type=Collection)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise CollectionDamaged.changed() from None


def salt_of(sealed: bytes) -> bytes:
    """32 bytes near the beginning of what is sealed: no two heads share them."""
    return sealed[len(_MAGIC) : len(_MAGIC) + _SALT_BYTES]


def _span(cipher: ChunkCipher, index: int) -> slice:
    span = cipher.span(index)
    return slice(span.start, span.end)

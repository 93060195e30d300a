"""A sealed corpus: chunks of an owner's documents, encrypted for a key of theirs and signed, one head after the other.

Its manifest is public. It says how many documents and chunks there are and the Merkle root over the chunks in the
clear, by which whoever guesses all of them can tell that they did. Needs neither torch nor transformers.
"""

import hashlib
import io
import os
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, Self

import msgspec

from confide.errors import ConfideError, InvalidPackage, SubstitutedContent, SurplusFile
from confide.packages.manifest import Digest, Name, Record
from confide.packages.owner import OwnerKey, OwnerPublicKey
from confide.packages.sealed.draft import draft_folder, seal_file
from confide.packages.sealed.key import ModelKey
from confide.packages.sealed.manifest import SUFFIX, KeyId, SealedFile, read_signed_manifest, write_signed_manifest
from confide.packages.sealed.merkle import leaf_hash, root_hash
from confide.packages.sealed.reader import SealedReader, open_ciphertext
from confide.packages.sealed.stream import chunk_count
from confide.packages.signing import package_files

MAX_CHUNKS: Final = 1 << 20
MAX_CHUNK_CHARACTERS: Final = 1 << 14
MAX_CORPUS_BYTES: Final = 4 << 30
_FILE: Final = "chunks.jsonl"
SIGNED_LABEL: Final = b"confide sealed corpus 1\0"
_HEAD_LABEL: Final = b"confide corpus head 1\0"

Head = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
Source = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
PageNumber = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]


class Chunk(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A part of a document. source: the document's path in its folder. page: from 1; None where there are no pages."""

    source: Source
    page: PageNumber | None
    text: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_CHUNK_CHARACTERS)]

    def encode(self) -> bytes:
        """JSON, [source, page, text], on one line: a leaf of the corpus's Merkle tree."""
        return msgspec.json.encode(self)

    @property
    def digest(self) -> str:
        """The leaf's hash, SHA-256(0x00 || encoded), in hexadecimal: whoever has the chunk can compute it."""
        return leaf_hash(self.encode()).hex()


class CorpusManifest(Record, frozen=True):
    """What a corpus is at one head.

    corpus: which corpus, 32 random bytes that all its heads share. head: counts from 1. previous: the digest of the
    head before, empty for the first. key: the id of its key. root: of the Merkle tree over its chunks, see `Chunk`.
    """

    format: Literal[1]
    kind: Literal["sealed-corpus"]
    name: Name
    corpus: Digest
    head: Head
    previous: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64})?\Z")]
    key: KeyId
    salt: Digest
    documents: Annotated[int, msgspec.Meta(ge=1, le=MAX_CHUNKS)]
    chunks: Annotated[int, msgspec.Meta(ge=1, le=MAX_CHUNKS)]
    root: Digest
    file: SealedFile

    @property
    def digest(self) -> str:
        """Of this head, in hexadecimal: the same whoever sealed it, when, and with which key.

        SHA-256 over a label and the JSON list of name, corpus, head, previous, documents, chunks and root.
        """
        head = [self.name, self.corpus, self.head, self.previous, self.documents, self.chunks, self.root]
        return hashlib.sha256(_HEAD_LABEL + msgspec.json.encode(head)).hexdigest()


@dataclass(frozen=True)
class SealedCorpus:
    """A sealed corpus whose manifest its owner signed."""

    folder: Path
    manifest: CorpusManifest
    owner: OwnerPublicKey

    @classmethod
    def open(cls, folder: Path | str, trusted: Container[OwnerPublicKey] | None = None) -> Self:
        """Read the manifest, check who signed it and that its file lies there whole, and no other.

        trusted: None for whoever signed it. Raises UntrustedOwner, SurplusFile, TruncatedFile, and InvalidPackage for
        whatever else is wrong.
        """
        folder = Path(folder)
        content, owner = read_signed_manifest(folder, SIGNED_LABEL, trusted)
        manifest = parse_corpus_manifest(content)
        if surplus := sorted(set(package_files(folder)) - {_FILE + SUFFIX}):
            raise SurplusFile(f"{folder / surplus[0]} is not part of the corpus that its owner sealed; remove it.")
        corpus = cls(folder, manifest, owner)
        open_ciphertext(corpus.path, manifest.file).close()
        return corpus

    @property
    def path(self) -> Path:
        """Where its ciphertext lies."""
        return self.folder / (_FILE + SUFFIX)

    def read(self, key: ModelKey) -> tuple[Chunk, ...]:
        """Its chunks, in memory. WrongModelKey; TruncatedFile, DamagedFile, SubstitutedContent for what was changed."""
        manifest = self.manifest
        key.require(manifest.key, self.folder)
        file_key = key.file_key(bytes.fromhex(manifest.salt), 0, _FILE)
        content = bytes(SealedReader(self.path, manifest.file, file_key).read())
        chunks = parse_chunks(content)
        said = (manifest.documents, manifest.chunks, manifest.root)
        if (_documents(chunks), len(chunks), chunks_root(chunks)) != said:
            raise SubstitutedContent(f"{self.folder} holds other chunks than its manifest says; build it again.")
        return chunks


def parse_corpus_manifest(content: bytes) -> CorpusManifest:
    """The manifest in a file's bytes. InvalidPackage for anything else, and for one that contradicts itself."""
    try:
        manifest = msgspec.json.decode(content, type=CorpusManifest)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise InvalidPackage("This is no manifest of a sealed corpus; make one with `confide rag build`.") from None
    file = manifest.file
    consistent = (
        file.name == _FILE
        and file.chunks == chunk_count(file.size)
        and file.size <= MAX_CORPUS_BYTES
        and (manifest.head == 1) == (not manifest.previous)
        and manifest.documents <= manifest.chunks
    )
    if not consistent:
        raise InvalidPackage("The manifest of the corpus contradicts itself; build the corpus again.")
    return manifest


def parse_chunks(content: bytes) -> tuple[Chunk, ...]:
    """The chunks of a file's bytes, one on each line. InvalidPackage for anything else, and for other spellings."""
    if content.count(b"\n") >= MAX_CHUNKS:
        raise _no_chunks()
    decoder = msgspec.json.Decoder(Chunk)
    try:
        chunks = tuple(decoder.decode(line) for line in content.split(b"\n"))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise _no_chunks() from None
    if encode_chunks(chunks) != content:
        raise _no_chunks()
    return chunks


def encode_chunks(chunks: Iterable[Chunk]) -> bytes:
    """What `parse_chunks` reads."""
    return b"\n".join(chunk.encode() for chunk in chunks)


def chunks_root(chunks: Iterable[Chunk]) -> str:
    """The root of the Merkle tree over chunks, of which there is at least one, in hexadecimal."""
    return root_hash([leaf_hash(chunk.encode()) for chunk in chunks]).hex()


def seal_corpus(
    chunks: Sequence[Chunk],
    out: Path | str,
    *,
    name: str,
    key: ModelKey,
    owner: OwnerKey,
    after: SealedCorpus | None = None,
) -> CorpusManifest:
    """Encrypt chunks into the folder `out` and sign them, as the first head of a new corpus, or as the one after.

    name: what people call a new corpus; the next head keeps it. after: opened with this owner's keys trusted alone.
    ConfideError where the folder exists, or there is nothing or too much to seal.
    """
    if not 1 <= len(chunks) <= MAX_CHUNKS:
        raise ConfideError(f"A corpus has 1 to {MAX_CHUNKS:,} chunks, and this has {len(chunks):,}; divide it.")
    content, out, salt = encode_chunks(chunks), Path(out), os.urandom(32)
    if len(content) > MAX_CORPUS_BYTES:
        raise ConfideError(f"A corpus has at most {MAX_CORPUS_BYTES >> 30} GiB of text; divide it.")
    before = after.manifest if after else None
    with draft_folder(out) as draft:
        file_key = key.file_key(salt, 0, _FILE)
        manifest = CorpusManifest(
            1,
            "sealed-corpus",
            before.name if before else name,
            before.corpus if before else os.urandom(32).hex(),
            before.head + 1 if before else 1,
            before.digest if before else "",
            key.id,
            salt.hex(),
            _documents(chunks),
            len(chunks),
            chunks_root(chunks),
            seal_file(io.BytesIO(content), len(content), Path(_FILE), draft, _FILE, file_key),
        )
        write_signed_manifest(draft, manifest, SIGNED_LABEL, owner)
        draft.rename(out)
    return manifest


def _documents(chunks: Iterable[Chunk]) -> int:
    return len({chunk.source for chunk in chunks})


def _no_chunks() -> InvalidPackage:
    return InvalidPackage("The corpus was sealed with something else than chunks in it; build it again.")

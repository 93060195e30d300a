"""A sealed corpus: chunks of an owner's documents, encrypted for a key of theirs and signed, one head after the other.

With them lie, where their owner gave such models, the chunks' embeddings and what made them, and a re-ranker. Its
manifest is public. It says how many documents and chunks there are and the Merkle roots over all of it in the clear, by
which whoever guesses all of a file can tell that they did. Needs neither torch nor transformers.
"""

import hashlib
import io
import os
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final, Literal, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.errors import ConfideError, InvalidPackage, SubstitutedContent, SurplusFile
from confide.packages.manifest import Digest, Name, Record
from confide.packages.owner import OwnerKey, OwnerPublicKey
from confide.packages.sealed.draft import draft_folder, seal_file
from confide.packages.sealed.key import ModelKey
from confide.packages.sealed.manifest import (
    MAX_FILES,
    SUFFIX,
    KeyId,
    SealedFile,
    model_digest,
    read_signed_manifest,
    write_signed_manifest,
)
from confide.packages.sealed.merkle import leaf_hash, root_hash
from confide.packages.sealed.reader import SealedReader, open_ciphertext
from confide.packages.sealed.stream import chunk_count
from confide.packages.signing import package_files

MAX_CHUNKS: Final = 1 << 20
MAX_CHUNK_CHARACTERS: Final = 1 << 14
MAX_CORPUS_BYTES: Final = 4 << 30
MAX_DIMENSIONS: Final = 1 << 13
_FILE: Final = "chunks.jsonl"
_VECTORS: Final = "vectors.f32"
EMBEDDER: Final = "embedder/"
RERANKER: Final = "reranker/"
"""What the names of these models' files begin with."""
FLOAT: Final = np.dtype("<f4")
_UNIT: Final = 1e-3
"""By how much a vector's length may differ from 1: float32 rounds by less."""
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


ModelFiles = Annotated[tuple[SealedFile, ...], msgspec.Meta(min_length=1, max_length=MAX_FILES)]


class Embedded(Record, frozen=True):
    """The chunks' embeddings. model: the files of what made them, and makes those of questions.

    vectors: little-endian float32, shape [chunks, dimensions], each of Euclidean length 1, in the order of the chunks.
    """

    model: ModelFiles
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=MAX_DIMENSIONS)]
    vectors: SealedFile

    @property
    def model_digest(self) -> str:
        """Of the embedding model's plaintext, in hexadecimal: see `packages.sealed.manifest.model_digest`."""
        return model_digest(self.model)


class Reranker(Record, frozen=True):
    """A model that scores a chunk for a question. model: its files."""

    model: ModelFiles

    @property
    def model_digest(self) -> str:
        """Of its plaintext, in hexadecimal."""
        return model_digest(self.model)


class CorpusManifest(Record, frozen=True):
    """What a corpus is at one head.

    corpus: which corpus, 32 random bytes that all its heads share. head: counts from 1. previous: the digest of the
    head before, empty for the first. key: the id of its key. root: of the Merkle tree over its chunks, see `Chunk`.
    embedded, reranker: None for a corpus that is searched by words alone, and for one that is not re-ranked.
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
    embedded: Embedded | None = None
    reranker: Reranker | None = None

    @property
    def has_models(self) -> bool:
        """Whether a model is run for a question."""
        return self.embedded is not None or self.reranker is not None

    @property
    def all_files(self) -> tuple[SealedFile, ...]:
        """Those of the chunks, the embeddings, and the models. The place of each is part of its key."""
        embedded = () if self.embedded is None else (self.embedded.vectors, *self.embedded.model)
        return (self.file, *embedded, *(() if self.reranker is None else self.reranker.model))

    @property
    def digest(self) -> str:
        """Of this head, in hexadecimal: the same whoever sealed it, when, and with which key.

        SHA-256 over a label and the JSON list of name, corpus, head, previous, documents, chunks and root; after these,
        where there are such, of ["embedded", digest of the model, dimensions, root of the vectors' file] and of
        ["reranker", digest of the model].
        """
        head: list[Any] = [self.name, self.corpus, self.head, self.previous, self.documents, self.chunks, self.root]
        if (one := self.embedded) is not None:
            head.append(["embedded", one.model_digest, one.dimensions, one.vectors.root])
        if self.reranker is not None:
            head.append(["reranker", self.reranker.model_digest])
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
        if surplus := sorted(set(package_files(folder)) - {file.name + SUFFIX for file in manifest.all_files}):
            raise SurplusFile(f"{folder / surplus[0]} is not part of the corpus that its owner sealed; remove it.")
        corpus = cls(folder, manifest, owner)
        for file in manifest.all_files:
            open_ciphertext(corpus.path(file), file).close()
        return corpus

    def path(self, file: SealedFile) -> Path:
        """Where a file's ciphertext lies."""
        return self.folder / (file.name + SUFFIX)

    def unlock(self, key: ModelKey) -> "UnlockedCorpus":
        """The corpus with its key. WrongModelKey for another one."""
        key.require(self.manifest.key, self.folder)
        return UnlockedCorpus(self, key)


@dataclass(frozen=True)
class UnlockedCorpus:
    """A sealed corpus and the key to it. Decrypts into memory only, and only what its owner signed.

    Methods raise TruncatedFile, DamagedFile and SubstitutedContent.
    """

    corpus: SealedCorpus
    _key: ModelKey = field(repr=False)

    @property
    def manifest(self) -> CorpusManifest:
        """What the corpus is."""
        return self.corpus.manifest

    def chunks(self) -> tuple[Chunk, ...]:
        """All of them, in order."""
        manifest = self.manifest
        chunks = parse_chunks(bytes(self._reader(manifest.file).read()))
        said = (manifest.documents, manifest.chunks, manifest.root)
        if (_documents(chunks), len(chunks), chunks_root(chunks)) != said:
            raise SubstitutedContent(f"{self.corpus.folder} holds other chunks than its manifest says; build it again.")
        return chunks

    def vectors(self, embedded: Embedded) -> NDArray[np.float32]:
        """The chunks' embeddings, float32 of shape [chunks, dimensions]: see `Embedded`. InvalidPackage for others."""
        return parse_vectors(self._reader(embedded.vectors).read(), embedded.dimensions)

    def model(self, part: Embedded | Reranker) -> dict[str, SealedReader]:
        """The files of a model by the names that they had in its folder."""
        return {file.name.partition("/")[2]: self._reader(file) for file in part.model}

    def verify_models(self) -> None:
        """Decrypt and check the embeddings and the models, and keep nothing."""
        manifest = self.manifest
        if manifest.embedded is not None:
            self.vectors(manifest.embedded)
        parts = (manifest.embedded, manifest.reranker)
        for reader in (reader for part in parts if part is not None for reader in self.model(part).values()):
            reader.verify()

    def _reader(self, file: SealedFile) -> SealedReader:
        manifest = self.manifest
        key = self._key.file_key(bytes.fromhex(manifest.salt), manifest.all_files.index(file), file.name)
        return SealedReader(self.corpus.path(file), file, key)


def parse_corpus_manifest(content: bytes) -> CorpusManifest:
    """The manifest in a file's bytes. InvalidPackage for anything else, and for one that contradicts itself."""
    try:
        manifest = msgspec.json.decode(content, type=CorpusManifest)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise InvalidPackage("This is no manifest of a sealed corpus; make one with `confide rag build`.") from None
    files, embedded, reranker = manifest.all_files, manifest.embedded, manifest.reranker
    consistent = (
        manifest.file.name == _FILE
        and manifest.file.size <= MAX_CORPUS_BYTES
        and all(file.chunks == chunk_count(file.size) for file in files)
        and len({file.name for file in files}) == len(files)
        and (manifest.head == 1) == (not manifest.previous)
        and manifest.documents <= manifest.chunks
        and (embedded is None or _fits(embedded, manifest.chunks))
        and (reranker is None or _of_model(reranker.model, RERANKER))
    )
    if not consistent:
        raise InvalidPackage("The manifest of the corpus contradicts itself; build the corpus again.")
    return manifest


def _fits(embedded: Embedded, chunks: int) -> bool:
    vectors = embedded.vectors
    return (
        vectors.name == _VECTORS
        and vectors.size == chunks * embedded.dimensions * FLOAT.itemsize
        and _of_model(embedded.model, EMBEDDER)
    )


def _of_model(files: Sequence[SealedFile], prefix: str) -> bool:
    return all(file.name.startswith(prefix) for file in files)


def parse_vectors(content: bytes | bytearray, dimensions: int) -> NDArray[np.float32]:
    """Embeddings of a file's bytes, shape [rows, dimensions]. InvalidPackage where one is no vector of length 1."""
    if len(content) % (dimensions * FLOAT.itemsize):
        raise _no_vectors()
    vectors = np.frombuffer(content, FLOAT).reshape(-1, dimensions)
    with np.errstate(all="ignore"):  # whatever is no number is no length either
        lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        if not (np.abs(lengths - 1) <= _UNIT).all():
            raise _no_vectors()
    return vectors


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


@dataclass(frozen=True)
class Embeddings:
    """What chunks are sealed with. model: its files, by their names in its folder. vectors: as in `Embedded`."""

    model: Mapping[str, Path]
    vectors: NDArray[np.float32]


def seal_corpus(
    chunks: Sequence[Chunk],
    out: Path | str,
    *,
    name: str,
    key: ModelKey,
    owner: OwnerKey,
    after: SealedCorpus | None = None,
    embeddings: Embeddings | None = None,
    reranker: Mapping[str, Path] | None = None,
) -> CorpusManifest:
    """Encrypt chunks into the folder `out` and sign them, as the first head of a new corpus, or as the one after.

    name: what people call a new corpus; the next head keeps it. after: opened with this owner's keys trusted alone.
    embeddings: of these chunks, in their order. reranker: the files of a model, by their names in its folder.
    ConfideError where the folder exists, or there is nothing or too much to seal.
    """
    if not 1 <= len(chunks) <= MAX_CHUNKS:
        raise ConfideError(f"A corpus has 1 to {MAX_CHUNKS:,} chunks, and this has {len(chunks):,}; divide it.")
    content, out, salt = encode_chunks(chunks), Path(out), os.urandom(32)
    if len(content) > MAX_CORPUS_BYTES:
        raise ConfideError(f"A corpus has at most {MAX_CORPUS_BYTES >> 30} GiB of text; divide it.")
    before = after.manifest if after else None
    with draft_folder(out) as draft:
        drafted = _Draft(draft, key, salt)
        file = drafted.seal(_FILE, content)
        embedded = None
        if embeddings is not None:
            vectors = drafted.seal(_VECTORS, embeddings.vectors.astype(FLOAT).tobytes())
            model = drafted.seal_model(EMBEDDER, embeddings.model)
            embedded = Embedded(model, embeddings.vectors.shape[1], vectors)
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
            file,
            embedded,
            Reranker(drafted.seal_model(RERANKER, reranker)) if reranker else None,
        )
        write_signed_manifest(draft, manifest, SIGNED_LABEL, owner)
        draft.rename(out)
    return manifest


class _Draft:
    """Files on their way into a corpus, in the order of `CorpusManifest.all_files`."""

    def __init__(self, folder: Path, key: ModelKey, salt: bytes) -> None:
        self._folder, self._key, self._salt = folder, key, salt
        self._count = 0

    def seal(self, name: str, content: bytes) -> SealedFile:
        return self._seal(io.BytesIO(content), len(content), Path(name), name)

    def seal_model(self, prefix: str, files: Mapping[str, Path]) -> tuple[SealedFile, ...]:
        sealed = []
        for name, path in files.items():
            (self._folder / prefix / name).parent.mkdir(parents=True, exist_ok=True)
            with path.open("rb") as source:
                sealed.append(self._seal(source, os.fstat(source.fileno()).st_size, path, prefix + name))
        return tuple(sealed)

    def _seal(self, source: BinaryIO, size: int, path: Path, name: str) -> SealedFile:
        key = self._key.file_key(self._salt, self._count, name)
        self._count += 1
        return seal_file(source, size, path, self._folder, name, key)


def _documents(chunks: Iterable[Chunk]) -> int:
    return len({chunk.source for chunk in chunks})


def _no_chunks() -> InvalidPackage:
    return InvalidPackage("The corpus was sealed with something else than chunks in it; build it again.")


def _no_vectors() -> InvalidPackage:
    return InvalidPackage("The corpus was sealed with something else than embeddings in it; build it again.")

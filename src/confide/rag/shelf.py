"""Users' collections: sealed in a folder of the service's machine, and in memory those that were asked last."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Final

import msgspec

from confide.disk.files import FileTooLarge, lock_file, read_bounded, replace_file, sync_folder
from confide.errors import CollectionDamaged, CollectionFull, EngineUnavailable
from confide.packages.sealed.corpus import FLOAT, Chunk, parse_vectors
from confide.packages.sealed.key import ModelKey
from confide.rag.collection import (
    HEADER_BYTES,
    MAX_SEALED_BYTES,
    Collection,
    collection_id,
    open_collection,
    salt_of,
    seal_collection,
)
from confide.rag.index import Hit, Index

_SUFFIX: Final = ".sealed"
_CACHED_BYTES: Final = 256 << 20
"""Of sealed collections, of which as many are kept open."""
_LOCK_SECONDS: Final = 30.0


class Opened:
    """A collection at one head, ready to be asked. Safe for several threads."""

    def __init__(self, collection: Collection, served: Index) -> None:
        """served: what else is served here, whose models read questions."""
        self.collection = collection
        self._served = served
        self._indexing = Lock()

    @cached_property
    def digest(self) -> str:
        """See `Collection.digest`."""
        return self.collection.digest

    def search(self, question: str, most: int) -> list[tuple[str, Hit]]:
        """As `Index.search`, over what is attached; each with the id of its document."""
        with self._indexing:
            found = self._indexed
        if found is None:
            return []
        index, ids = found
        return [(ids[hit.place], hit) for hit in index.search(question, most)]

    @cached_property
    def _indexed(self) -> tuple[Index, list[str]] | None:
        documents = self.collection.attached
        if not documents:
            return None
        chunks = [chunk for document in documents for chunk in document.chunks]
        ids = [document.id for document in documents for _ in document.chunks]
        meaning = self._served.meaning
        if meaning is not None:
            vectors = bytearray().join(document.vectors for document in documents)  # torch wants what can be written
            meaning = replace(meaning, vectors=parse_vectors(vectors, meaning.embedder.dimensions))
        return Index(chunks, meaning, self._served.reranker), ids


class Shelf:
    """Collections by their keys, none of which it keeps. Safe for several threads, and for several processes.

    Methods raise CollectionDamaged for what this machine's disk gives in place of what was written, and
    EngineUnavailable where the folder cannot be used.
    """

    def __init__(self, folder: Path, served: Index, most_bytes: int, cached_bytes: int = _CACHED_BYTES) -> None:
        """folder: made if it is not there. served: see `Opened`. most_bytes: of all that is sealed."""
        with _usable():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder, self._served, self._most, self._cached = folder, served, most_bytes, cached_bytes
        self._open: OrderedDict[str, tuple[bytes, int, Opened]] = OrderedDict()
        self._turn, self._writing = Lock(), Lock()

    @property
    def embedder(self) -> str:
        """The digest of the model that makes vectors of documents here; empty for none."""
        meaning = self._served.meaning
        return "" if meaning is None else meaning.digest

    def vectors(self, chunks: Sequence[Chunk]) -> bytes:
        """What `Document.vectors` are, by the model that is served; empty where there is none."""
        meaning = self._served.meaning
        if meaning is None:
            return b""
        return meaning.embedder.of_documents([chunk.text for chunk in chunks]).astype(FLOAT).tobytes()

    def find(self, key: ModelKey) -> Opened | None:
        """What there is under a key, as it is now; None for nothing."""
        name = collection_id(key)
        with _usable():
            try:
                return self._read(name, key)
            except FileNotFoundError:
                self._forget(name)
                return None

    def change(self, key: ModelKey, edit: Callable[[Collection | None], Collection]) -> Opened:
        """Write the next head. edit: makes it of the one that there is; its number is set here. CollectionFull."""
        name = collection_id(key)
        with self._alone():
            found = self.find(key)
            after = edit(None if found is None else found.collection)
            head, previous = (1, "") if found is None else (found.collection.head + 1, found.digest)
            after = msgspec.structs.replace(after, id=name, head=head, previous=previous)
            sealed = seal_collection(after, key)
            self._require_room(name, len(sealed))
            replace_file(self._path(name), sealed, mode=0o600)
            opened = Opened(after, self._served)
            self._keep(name, salt_of(sealed), len(sealed), opened)
        return opened

    def delete(self, key: ModelKey) -> None:
        """Remove what there is under a key, damaged or not, and forget it. Where there is nothing, nothing is done."""
        name = collection_id(key)
        with self._alone():
            self._path(name).unlink(missing_ok=True)
            sync_folder(self._folder)
            self._forget(name)  # after that, for whoever is reading it looks once more

    def _embedded(self, collection: Collection) -> Collection:
        """With vectors by the model that is served now, which may have been another one when a document came."""
        digest = self.embedder
        documents = tuple(
            one
            if one.embedder == digest
            else msgspec.structs.replace(one, embedder=digest, vectors=self.vectors(one.chunks))
            for one in collection.documents
        )
        return msgspec.structs.replace(collection, documents=documents)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{_SUFFIX}"

    def _read(self, name: str, key: ModelKey) -> Opened:
        """From memory, if the disk still has the same head; FileNotFoundError."""
        path = self._path(name)
        with path.open("rb") as file:
            salt = salt_of(file.read(HEADER_BYTES))
        with self._turn:
            known = self._open.get(name)
            if known is not None and known[0] == salt:
                self._open.move_to_end(name)
                return known[2]
        try:
            sealed = read_bounded(path, MAX_SEALED_BYTES)
        except FileTooLarge:
            raise CollectionDamaged.changed() from None
        opened = Opened(self._embedded(open_collection(sealed, key)), self._served)
        self._keep(name, salt_of(sealed), len(sealed), opened)
        if not path.exists():  # it was deleted meanwhile, and is not to stay in memory
            self._forget(name)
        return opened

    def _keep(self, name: str, salt: bytes, size: int, opened: Opened) -> None:
        with self._turn:
            self._open[name] = salt, size, opened
            self._open.move_to_end(name)
            while len(self._open) > 1 and sum(size for _, size, _ in self._open.values()) > self._cached:
                self._open.popitem(last=False)

    def _forget(self, name: str) -> None:
        with self._turn:
            self._open.pop(name, None)

    def _require_room(self, name: str, size: int) -> None:
        own = f"{name}{_SUFFIX}"
        others = sum(path.stat().st_size for path in self._folder.glob(f"*{_SUFFIX}") if path.name != own)
        if others + size > self._most:
            raise CollectionFull(
                "The service has no room for more documents; delete what you don't need, or ask its operator for more."
            )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else writes, in this process or in another one."""
        with self._writing, _usable(), (self._folder / "lock").open("w") as lock:
            if not lock_file(lock.fileno(), _LOCK_SECONDS):
                raise TimeoutError
            yield


@contextmanager
def _usable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EngineUnavailable(
            "What users keep here cannot be reached at the moment; try again later, or tell the operator."
        ) from error

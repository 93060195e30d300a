"""Users' own documents, in the shape of OpenAI's files and vector stores.

A request that shows the key of a collection is about that collection; who has no key of one cannot tell whether there
is any. A key has one collection, with one vector store. The key came inside the channel, and stays for as long as the
request takes; what was decrypted with it may stay in memory for longer.
"""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from confide.attest.configuration import CorpusServed
from confide.enclave.api.answer import read
from confide.enclave.api.openai import json_response
from confide.enclave.api.own import Head, key_of, require_key
from confide.enclave.api.receipts import note
from confide.enclave.api.upload import uploaded
from confide.enclave.confinement import close_off
from confide.errors import CollectionFull, RequestRefused, UnknownCorpus, UnknownDocument
from confide.packages.sealed.key import ModelKey
from confide.rag.collection import (
    MAX_CHUNKS,
    MAX_DOCUMENTS,
    MAX_NAME,
    Collection,
    Document,
    DocumentId,
    collection_id,
)
from confide.rag.index import Hit
from confide.rag.reader import DocumentReader
from confide.rag.reading import chunks_of
from confide.rag.shelf import Opened, Shelf


class StoreRequest(msgspec.Struct, kw_only=True):
    """POST /v1/vector_stores. file_ids: of documents that are to be searched from the beginning."""

    name: Annotated[str, Meta(max_length=MAX_NAME)] | None = None
    file_ids: Annotated[list[DocumentId], Meta(max_length=MAX_DOCUMENTS)] | None = None


class AttachRequest(msgspec.Struct, kw_only=True):
    """POST /v1/vector_stores/{id}/files."""

    file_id: DocumentId


@dataclass(frozen=True)
class Collections:
    """The endpoints that are about a user's own documents."""

    shelf: Shelf

    # -- files ---------------------------------------------------------------------------------------------------------

    async def upload(self, request: Request) -> Response:
        """POST /v1/files: read, cut and embed a document. It is searched once it is attached to the vector store."""
        key, kind, body = require_key(request), request.headers.get("content-type", ""), await request.body()
        opened = await run_in_threadpool(self._add, key, kind, body)
        return _answered(request, opened, _file(opened.collection.documents[-1]))

    async def files(self, request: Request) -> Response:
        """GET /v1/files: all of them."""
        opened = await self._found(require_key(request))
        documents = () if opened is None else opened.collection.documents
        return _answered(request, opened, page([_file(one) for one in documents]))

    async def file(self, request: Request) -> Response:
        """GET or DELETE /v1/files/{file_id}."""
        key, wanted = require_key(request), request.path_params["file_id"]
        if request.method == "GET":
            opened = await self._found(key)
            return _answered(request, opened, _file(_document(opened, wanted)))
        opened = await self._change(key, lambda before: _without(before, wanted))
        return _answered(request, opened, {"id": wanted, "object": "file", "deleted": True})

    # -- the vector store ----------------------------------------------------------------------------------------------

    async def create(self, request: Request) -> Response:
        """POST /v1/vector_stores."""
        key, asked = require_key(request), await read(request, StoreRequest)

        def edit(before: Collection | None) -> Collection:
            collection = before or _empty(key)
            if collection.name is not None:
                raise RequestRefused(
                    "This collection has its vector store already; use it, or show the key of another collection."
                )
            collection = msgspec.structs.replace(collection, name=asked.name or "")
            for wanted in asked.file_ids or ():
                collection = _attached(collection, wanted, attached=True)
            return collection

        opened = await self._change(key, edit)
        return _answered(request, opened, _store(opened))

    async def stores(self, request: Request) -> Sequence[dict[str, Any]]:
        """The vector store of whoever shows a key, if there is one."""
        key = key_of(request)
        opened = None if key is None else await self._found(key)
        return [] if opened is None or opened.collection.name is None else [_store(opened)]

    async def store(self, request: Request) -> Response:
        """GET or DELETE /v1/vector_stores/{id}. The latter removes documents and all, damaged or not.

        It succeeds where there is nothing, too: who has the key gets a receipt that nothing is kept under it.
        """
        key = self._own(request)
        if request.method == "GET":
            opened = await self._named(key)
            return _answered(request, opened, _store(opened))
        await run_in_threadpool(self.shelf.delete, key)
        head = Head(collection_id(key), None)
        note(request, [head.event])
        deleted = {"id": store_id_of(head.collection), "object": "vector_store.deleted", "deleted": True}
        return json_response(deleted, headers=head.headers)

    async def attach(self, request: Request) -> Response:
        """POST /v1/vector_stores/{id}/files."""
        key, asked = self._own(request), await read(request, AttachRequest)
        opened = await self._change(key, lambda before: _attached(_require_named(before), asked.file_id, attached=True))
        return _answered(request, opened, _store_file(_document(opened, asked.file_id), opened))

    async def attachments(self, request: Request) -> Response:
        """GET /v1/vector_stores/{id}/files."""
        opened = await self._named(self._own(request))
        return _answered(request, opened, page([_store_file(one, opened) for one in opened.collection.attached]))

    async def attachment(self, request: Request) -> Response:
        """GET or DELETE /v1/vector_stores/{id}/files/{file_id}. What is detached is kept, and not searched."""
        key, wanted = self._own(request), request.path_params["file_id"]
        if request.method == "GET":
            opened = await self._named(key)
            document = _document(opened, wanted)
            if not document.attached:
                raise _no_document()
            return _answered(request, opened, _store_file(document, opened))
        opened = await self._change(key, lambda before: _attached(_require_named(before), wanted, attached=False))
        return _answered(request, opened, {"id": wanted, "object": "vector_store.file.deleted", "deleted": True})

    async def search(
        self, request: Request, question: str, most: int
    ) -> tuple[list[tuple[str, Hit]], Mapping[str, str]]:
        """What fits a question, each with its document's id, and headers for the answer."""
        opened = await self._named(self._own(request))
        found = await run_in_threadpool(opened.search, question, most)
        return found, _noted(request, opened)

    # -- under a key ---------------------------------------------------------------------------------------------------

    def _own(self, request: Request) -> ModelKey:
        """The key that a request shows, if it is that of the collection it asks for. UnknownCorpus."""
        key = key_of(request)
        if key is None or request.path_params["id"] != store_id_of(collection_id(key)):
            raise _nothing()
        return key

    async def _found(self, key: ModelKey) -> Opened | None:
        return await run_in_threadpool(self.shelf.find, key)

    async def _named(self, key: ModelKey) -> Opened:
        opened = await self._found(key)
        _require_named(None if opened is None else opened.collection)
        assert opened is not None  # noqa: S101 - for the type
        return opened

    async def _change(self, key: ModelKey, edit: Callable[[Collection | None], Collection]) -> Opened:
        return await run_in_threadpool(self.shelf.change, key, edit)

    def _add(self, key: ModelKey, kind: str, body: bytes) -> Opened:
        """Read a document in a process of its own, which may see nothing of another user's. kind: of the body."""
        name, content = uploaded(kind, body)
        with closing(DocumentReader(first=close_off)) as reader:
            chunks = tuple(chunks_of(reader, name, content))
        if len(chunks) > MAX_CHUNKS:
            raise CollectionFull(f"A collection has at most {MAX_CHUNKS:,} chunks, and this document {len(chunks):,}.")
        document = Document(
            f"file-{secrets.token_hex(16)}",
            name,
            len(content),
            int(time.time()),
            attached=False,
            chunks=chunks,
            embedder=self.shelf.embedder,
            vectors=self.shelf.vectors(chunks),
        )

        def edit(before: Collection | None) -> Collection:
            collection = before or _empty(key)
            if len(collection.documents) == MAX_DOCUMENTS:
                raise CollectionFull(f"A collection has at most {MAX_DOCUMENTS:,} documents; remove some.")
            return msgspec.structs.replace(collection, documents=(*collection.documents, document))

        return self.shelf.change(key, edit)


def store_id_of(collection: str) -> str:
    """A collection as the API calls it, by its id."""
    return f"vs_{collection}"


def _noted(request: Request, opened: Opened) -> Mapping[str, str]:
    """Headers that name the head that an answer is by; its receipt, if it gets one, will too."""
    collection = opened.collection
    head = Head(collection.id, CorpusServed(collection.id, collection.head, opened.digest, collection.id))
    note(request, [head.event])
    return head.headers


def _answered(request: Request, opened: Opened | None, content: dict[str, Any]) -> Response:
    return json_response(content, headers={} if opened is None else _noted(request, opened))


def _empty(key: ModelKey) -> Collection:
    return Collection(1, collection_id(key), 1, "", None, int(time.time()), ())


def _document(opened: Opened | None, wanted: str) -> Document:
    for document in () if opened is None else opened.collection.documents:
        if document.id == wanted:
            return document
    raise _no_document()


def _without(before: Collection | None, wanted: str) -> Collection:
    kept = tuple(one for one in before.documents if one.id != wanted) if before else ()
    if before is None or len(kept) == len(before.documents):
        raise _no_document()
    return msgspec.structs.replace(before, documents=kept)


def _attached(collection: Collection, wanted: str, *, attached: bool) -> Collection:
    """With one document that is searched, or is not any more."""
    documents = [
        msgspec.structs.replace(one, attached=attached) if one.id == wanted else one for one in collection.documents
    ]
    if wanted not in {one.id for one in documents}:
        raise _no_document()
    return msgspec.structs.replace(collection, documents=tuple(documents))


def _require_named(collection: Collection | None) -> Collection:
    if collection is None or collection.name is None:
        raise _nothing()
    return collection


# -- as OpenAI's API shows them ----------------------------------------------------------------------------------------


def _file(document: Document) -> dict[str, Any]:
    return {
        "id": document.id,
        "object": "file",
        "bytes": document.size,
        "created_at": document.created,
        "filename": document.name,
        "purpose": "assistants",
        "status": "processed",
    }


def _store(opened: Opened) -> dict[str, Any]:
    collection, searched = opened.collection, len(opened.collection.attached)
    counts = dict.fromkeys(("in_progress", "failed", "cancelled"), 0)
    return {
        "id": store_id_of(collection.id),
        "object": "vector_store",
        "created_at": collection.created,
        "name": collection.name,
        "usage_bytes": sum(one.size for one in collection.attached),
        "file_counts": counts | dict.fromkeys(("completed", "total"), searched),
        "status": "completed",
        "metadata": {"head": str(collection.head), "digest": opened.digest},
    }


def _store_file(document: Document, opened: Opened) -> dict[str, Any]:
    return {
        "id": document.id,
        "object": "vector_store.file",
        "created_at": document.created,
        "usage_bytes": document.size,
        "vector_store_id": store_id_of(opened.collection.id),
        "status": "completed",
        "last_error": None,
        "attributes": {},
    }


def page(listed: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A whole list: nothing comes after it."""
    ends = {"first_id": listed[0]["id"], "last_id": listed[-1]["id"]} if listed else {}
    return {"object": "list", "data": list(listed), "has_more": False, **ends}


def _nothing() -> UnknownCorpus:
    return UnknownCorpus(
        "There is no vector store with this id for whoever shows this key, or none; make one, or show the key of it."
    )


def _no_document() -> UnknownDocument:
    return UnknownDocument("There is no such document in this collection; GET /v1/files lists those that there are.")

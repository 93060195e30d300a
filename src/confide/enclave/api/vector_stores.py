"""Retrieval in the shape of OpenAI's vector stores: GET /v1/vector_stores, POST /v1/vector_stores/{id}/search.

A workload serves one corpus, which is one store, and nothing here changes it. Beside it users may have stores of their
own: see `confide.enclave.api.collections`. What is answered is quoted from documents, and nobody vouches for what they
say.
"""

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from confide.enclave.api.admission import Admission
from confide.enclave.api.answer import read
from confide.enclave.api.app import health_routes
from confide.enclave.api.collections import Collections, page
from confide.enclave.api.graph import Shown
from confide.enclave.api.line import Line
from confide.enclave.api.neighbours import Neighbours
from confide.enclave.api.openai import json_response
from confide.enclave.api.own import FILES, STORES
from confide.enclave.api.problems import HANDLERS
from confide.enclave.api.public import workload_app
from confide.enclave.api.service import Engineless
from confide.enclave.workload import Workload
from confide.errors import UnknownCorpus
from confide.net.body import Bodies
from confide.packages.sealed.corpus import Chunk, CorpusManifest
from confide.rag.index import Hit, Index
from confide.rag.shelf import Shelf

MAX_RESULTS: Final = 50
MAX_QUESTION_CHARACTERS: Final = 4096
_RESULTS: Final = 10
_PARALLEL: Final = 2
"""Searches at once: they compute, and wait for nothing."""
_QUESTIONS: Final = 4
_ONE: Final = f"{STORES}/{{id}}"
Endpoint = Callable[[Request], Awaitable[Response]]

_Question = Annotated[str, Meta(min_length=1, max_length=MAX_QUESTION_CHARACTERS)]


class Ranking(msgspec.Struct, forbid_unknown_fields=True):
    """ranker: without effect, for there is one. score_threshold: the least score of a result."""

    ranker: Literal["none", "auto", "default-2024-11-15"] | None = None
    score_threshold: Annotated[float, Meta(ge=0, le=1)] = 0.0


class SearchRequest(msgspec.Struct, kw_only=True):
    """POST /v1/vector_stores/{id}/search. query: several are one question with the words of all."""

    query: _Question | Annotated[list[_Question], Meta(min_length=1, max_length=_QUESTIONS)]
    max_num_results: Annotated[int, Meta(ge=1, le=MAX_RESULTS)] = _RESULTS
    ranking_options: Ranking | None = None
    rewrite_query: Literal[False] | None = None


@dataclass(frozen=True)
class Retrieval(Engineless):
    """A corpus that is served, ready to be asked. shelf: of users' own collections; None where they have none."""

    manifest: CorpusManifest
    index: Index
    shelf: Shelf | None = None


def retrieval_app(
    workload: Workload,
    retrieval: Retrieval,
    *,
    tls_ends_here: bool = False,
    neighbours: Neighbours | None = None,
    graph: Shown | None = None,
) -> Starlette:
    """The application to serve to the world: as `public_app` is for a model."""
    name, api = store_id(retrieval.manifest), vector_stores_app(retrieval)
    return workload_app(
        workload, retrieval, name, api, ("/v1",), tls_ends_here=tls_ends_here, neighbours=neighbours, graph=graph
    )


def vector_stores_app(retrieval: Retrieval) -> Starlette:
    """An ASGI application with the endpoints over a corpus, and over collections. It knows of no channel."""
    collections = None if retrieval.shelf is None else Collections(retrieval.shelf)
    stores, limits = _VectorStores(retrieval, collections), retrieval.limits
    line = Line(_PARALLEL, limits.waiting, limits.waiting_seconds)
    bodies = Bodies(limits.body_bytes, limits.body_seconds, limits.bodies_bytes)
    uploads = Bodies(limits.upload_bytes, limits.body_seconds, limits.bodies_bytes)

    def gated(path: str, endpoint: Endpoint, methods: Sequence[str] = ("POST",), taken: Bodies = bodies) -> Route:
        """In its turn. What is only looked at has none, as it computes nothing."""
        gate = Middleware(Admission, service=retrieval, line=line, bodies=taken, endpoint=path)
        return Route(path, endpoint, methods=methods, middleware=[gate])

    own = () if collections is None else (
        gated(FILES, collections.upload, taken=uploads),
        gated(FILES, collections.files, ["GET"]),
        gated(f"{FILES}/{{file_id}}", collections.file, ["GET", "DELETE"]),
        gated(STORES, collections.create),
        gated(_ONE, collections.store, ["DELETE"]),
        gated(f"{_ONE}/files", collections.attach),
        gated(f"{_ONE}/files", collections.attachments, ["GET"]),
        gated(f"{_ONE}/files/{{file_id}}", collections.attachment, ["GET", "DELETE"]),
    )  # fmt: skip
    return Starlette(
        routes=[
            *health_routes(retrieval),
            Route(STORES, stores.all, methods=["GET"]),
            Route(_ONE, stores.one, methods=["GET"]),
            gated(f"{_ONE}/search", stores.search),
            *own,
        ],
        exception_handlers=HANDLERS,
    )


def store_id(manifest: CorpusManifest) -> str:
    """The corpus as the API calls it: the same at every head."""
    return f"vs_{manifest.corpus}"


@dataclass(frozen=True)
class _VectorStores:
    retrieval: Retrieval
    collections: Collections | None

    async def all(self, request: Request) -> Response:
        """The corpus's, and that of whoever shows the key of a collection."""
        own = [] if self.collections is None else await self.collections.stores(request)
        return json_response(page([self._store(), *own]))

    async def one(self, request: Request) -> Response:
        """One of them by its id."""
        if self._is_corpus(request):
            return json_response(self._store())
        return await self._others().store(request)

    async def search(self, request: Request) -> Response:
        """The chunks that fit a question, the best one first."""
        asked = await read(request, SearchRequest)
        questions = [asked.query] if isinstance(asked.query, str) else asked.query
        least = asked.ranking_options.score_threshold if asked.ranking_options else 0.0
        question, most = " ".join(questions), asked.max_num_results
        headers: Mapping[str, str] = {}
        if self._is_corpus(request):
            hits = await run_in_threadpool(self.retrieval.index.search, question, most)
            found = [(file_id(hit.chunk), hit) for hit in hits]
        else:
            found, headers = await self._others().search(request, question, most)
        results = {
            "object": "vector_store.search_results.page",
            "search_query": questions,
            "data": [_result(id_, hit) for id_, hit in found if hit.score >= least],
            "has_more": False,
            "next_page": None,
        }
        return json_response(results, headers=headers)

    def _is_corpus(self, request: Request) -> bool:
        return bool(request.path_params["id"] == store_id(self.retrieval.manifest))

    def _others(self) -> Collections:
        if self.collections is None:
            raise UnknownCorpus(f"There is one vector store here, and it has another id; GET {STORES} says which.")
        return self.collections

    def _store(self) -> dict[str, Any]:
        manifest = self.retrieval.manifest
        counts = dict.fromkeys(("in_progress", "failed", "cancelled"), 0)
        return {
            "id": store_id(manifest),
            "object": "vector_store",
            "created_at": 0,
            "name": manifest.name,
            "usage_bytes": manifest.file.size,
            "file_counts": counts | dict.fromkeys(("completed", "total"), manifest.documents),
            "status": "completed",
            "metadata": {"head": str(manifest.head), "digest": manifest.digest, "root": manifest.root},
        }


def _result(id_: str, hit: Hit) -> dict[str, Any]:
    chunk = hit.chunk
    page = {} if chunk.page is None else {"page": chunk.page}
    return {
        "file_id": id_,
        "filename": chunk.source,
        "score": hit.score,
        "attributes": {"digest": chunk.digest, **page},
        "content": [{"type": "text", "text": chunk.text}],
    }


def file_id(chunk: Chunk) -> str:
    """A document as the API calls it: by its name in the corpus."""
    return f"file-{hashlib.sha256(chunk.source.encode()).hexdigest()[:32]}"

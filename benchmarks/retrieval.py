"""How well and how fast a corpus is searched: XQuAD's questions against its paragraphs, and 100,000 chunks.

The first is in the style of BEIR: each question has one paragraph that answers it, recall@10 and nDCG@10 over all. The
second has chunks of words drawn as often as XQuAD has them, so that common ones are in most chunks; it is asked the
same questions, by a call, over plain HTTP, and through the channel of a service in a simulated TEE, receipts included.
The data lie in `shared/data` beside the checkout, or in CONFIDE_TEST_DATA; they are no part of this repository.
"""

import json
import math
import multiprocessing
import os
import random
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import httpx
from starlette.types import ASGIApp

import confide
from benchmarks.measure import Figure, in_turn, seconds, write
from confide.attest.simulated import SimulatedTee
from confide.client.enclave import EnclaveSession
from confide.enclave.api.limits import Limits
from confide.enclave.api.server import bind, serve_app
from confide.enclave.api.vector_stores import PATH, Retrieval, retrieval_app, store_id, vector_stores_app
from confide.enclave.corpus import load_corpus
from confide.enclave.workload import Workload
from confide.packages.owner import OwnerKey
from confide.packages.sealed.corpus import Chunk, SealedCorpus, seal_corpus
from confide.packages.sealed.key import ModelKey
from confide.rag.index import Index

DEPTH = 10
CHUNKS = 100_000
WORDS = 150
QUESTIONS = 200
ROUNDS = 40
_KEY = ModelKey(b"k" * 32)


def main() -> list[Figure]:
    paragraphs, questions = _xquad()
    recall, gain, alone = _quality(paragraphs, questions)
    detail = f"{len(questions)} questions, {len(paragraphs)} paragraphs, BM25; {1000 * alone:.2f} ms a query"
    asked = [question for question, _ in random.Random(1).sample(questions, QUESTIONS)]
    figures = [
        Figure("retrieval, recall@10 on XQuAD", recall, "share", 0.9, 0.97, detail, higher_is_better=True),
        Figure("retrieval, nDCG@10 on XQuAD", gain, "share", 0.8, 0.9, detail, higher_is_better=True),
        *_speed(_made_up(paragraphs), asked),
    ]
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


def _quality(paragraphs: Sequence[str], questions: Sequence[tuple[str, int]]) -> tuple[float, float, float]:
    """Recall@10, nDCG@10 (one relevant paragraph each, so the ideal gain is 1), and the median seconds of a query."""
    index = Index([Chunk("xquad", None, text) for text in paragraphs])
    ranks, times = [], []
    for question, right in questions:
        hits: list[int] = []
        times.append(seconds(lambda asked=question, out=hits: out.extend(h.place for h in index.search(asked, DEPTH))))
        ranks.append(hits.index(right) + 1 if right in hits else None)
    recall = sum(rank is not None for rank in ranks) / len(ranks)
    gain = sum(1 / math.log2(1 + rank) for rank in ranks if rank is not None) / len(ranks)
    return recall, gain, statistics.median(times)


def _made_up(paragraphs: Sequence[str]) -> list[Chunk]:
    counts = Counter(word for text in paragraphs for word in text.split())
    draw = random.Random(2)
    words = draw.choices(list(counts), weights=list(counts.values()), k=CHUNKS * WORDS)
    return [
        Chunk(f"{number // 100}.txt", None, " ".join(words[number * WORDS : (number + 1) * WORDS]))
        for number in range(CHUNKS)
    ]


def _speed(chunks: Sequence[Chunk], questions: Sequence[str]) -> list[Figure]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.environ["CONFIDE_HOME"] = str(folder / "home")
        SimulatedTee.create(folder / "tee")
        seal_corpus(chunks, folder / "corpus", name="benchmark", key=_KEY, owner=OwnerKey.generate())
        index = Index(chunks)
        direct = [seconds(lambda asked=asked: index.search(asked, DEPTH)) for asked in questions]
        with _serving(_outside, folder) as plain, _serving(_inside, folder) as attested:
            store = store_id(SealedCorpus.open(folder / "corpus").manifest)
            inside, outside, ratio = _in_and_out(folder, plain, attested, store, questions)
    size = f"{CHUNKS:,} chunks of {WORDS} words"
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
    path, draw = f"{PATH}/{store}/search", random.Random(3)
    with httpx.Client(base_url=plain, trust_env=False) as http:
        session = confide.connect(attested, simulated_root=folder / "tee" / "root.pem")
        assert isinstance(session, EnclaveSession)
        with session:
            asked = iter([one for one in draw.choices(questions, k=ROUNDS + 1) for _ in range(2)])

            def inside() -> None:
                session.openai.vector_stores.search(store, query=next(asked), max_num_results=DEPTH)

            def outside() -> None:
                http.post(path, json={"query": next(asked), "max_num_results": DEPTH}).raise_for_status()

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
    return retrieval_app(workload, Retrieval(corpus.manifest, index, Limits(attestations_per_second=1000)))


if __name__ == "__main__":
    main()

"""A corpus served from a simulated TEE: what is released to it, what its evidence says, and what it answers."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import openai
import pytest

import confide
from confide.attest.configuration import CorpusServed, Egress
from confide.attest.policy import SimulatedPolicy
from confide.attest.requirements import Corpus, Model
from confide.attest.simulated import SimulatedTee
from confide.client.corpora import FILE_NAME
from confide.client.enclave import EnclaveSession
from confide.enclave.api.limits import Limits
from confide.enclave.api.vector_stores import Retrieval, file_id, retrieval_app, store_id
from confide.enclave.corpus import load_corpus
from confide.enclave.workload import Workload
from confide.errors import AttestationRefused, CorpusRefused, DamagedFile
from confide.packages.sealed.corpus import Chunk, SealedCorpus, seal_corpus
from confide.packages.sealed.key import ModelKey
from owners import OWNER, STRANGER

from ..serving import serving

KEY = ModelKey(b"k" * 32)
CHUNKS = (
    Chunk("tide.pdf", 3, "The tide rises twice a day."),
    Chunk("bread.md", None, "Bakers rise early, twice a week."),
    Chunk("moon.txt", None, "Our moon pulls."),
)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("machine")


@pytest.fixture(scope="module")
def tee(machine: Path) -> SimulatedTee:
    return SimulatedTee.create(machine)


@pytest.fixture(scope="module")
def root(tee: SimulatedTee, machine: Path) -> Path:
    return machine / "root.pem"


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> list[SealedCorpus]:
    """Two heads of one corpus, and another second one."""
    folder = tmp_path_factory.mktemp("corpora")
    seal_corpus(CHUNKS, folder / "1", name="sea", key=KEY, owner=OWNER)
    first = SealedCorpus.open(folder / "1")
    for name, chunks in (("2", CHUNKS[:2]), ("fork", CHUNKS[1:])):
        seal_corpus(chunks, folder / name, name="", key=KEY, owner=OWNER, after=first)
    return [first, SealedCorpus.open(folder / "2"), SealedCorpus.open(folder / "fork")]


@contextmanager
def served(tee: SimulatedTee, corpus: SealedCorpus) -> Iterator[str]:
    """Its address."""
    workload = Workload(tee, tee.collateral)
    index = load_corpus(corpus, workload, lambda key, workload: KEY)
    retrieval = Retrieval(corpus.manifest, index, limits=Limits(attestations_per_second=1000))
    with serving(retrieval_app(workload, retrieval)) as url:
        yield url


def connect(url: str, root: Path, *requirements: Corpus | Model) -> EnclaveSession:
    session = confide.connect(url, simulated_root=root, policy=SimulatedPolicy.all_of(*requirements))
    assert isinstance(session, EnclaveSession)
    return session


@pytest.fixture(scope="module")
def session(tee: SimulatedTee, root: Path, heads: list[SealedCorpus]) -> Iterator[EnclaveSession]:
    with served(tee, heads[0]) as url, connect(url, root) as session:
        yield session


@pytest.fixture(scope="module")
def store(heads: list[SealedCorpus]) -> str:
    return store_id(heads[0].manifest)


def test_the_key_is_asked_for_with_the_head_in_the_statement(tee: SimulatedTee, heads: list[SealedCorpus]) -> None:
    corpus, asked = heads[1], []
    manifest = corpus.manifest

    def fetch(key: str, workload: Workload) -> ModelKey:
        statement = workload.attest("ab" * 32).statement
        asked.append((key, statement.model_digest, statement.configuration))
        return KEY

    index = load_corpus(corpus, Workload(tee), fetch)
    assert index.chunks == CHUNKS[:2]
    [(key, digest, configuration)] = asked
    assert (key, digest) == (manifest.key, manifest.digest)
    assert configuration is not None
    assert configuration.corpus == CorpusServed(manifest.corpus, 2, manifest.digest, str(OWNER.public))
    assert configuration.egress is Egress.OPEN  # nothing was closed here, and it says so


def test_a_damaged_corpus_is_not_served(tee: SimulatedTee, heads: list[SealedCorpus], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(heads[0].folder, tmp_path / "corpus"))
    corpus = SealedCorpus.open(folder)
    path = corpus.path(corpus.manifest.file)
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(DamagedFile):
        load_corpus(corpus, Workload(tee), lambda key, workload: KEY)


def test_openais_client_finds_chunks_that_can_be_cited(session: EnclaveSession, store: str) -> None:
    found = session.openai.vector_stores.search(store, query="When does the tide rise?", max_num_results=5)
    first, second = found.data
    assert (first.filename, first.score, first.content[0].text) == ("tide.pdf", 1, CHUNKS[0].text)
    assert first.attributes == {"digest": CHUNKS[0].digest, "page": 3}
    assert first.file_id == file_id(CHUNKS[0])
    assert (second.filename, second.attributes) == ("bread.md", {"digest": CHUNKS[1].digest})
    assert found.has_next_page() is False


def test_what_was_found_has_a_receipt_that_names_the_head(
    session: EnclaveSession, store: str, heads: list[SealedCorpus]
) -> None:
    session.openai.vector_stores.search(store, query="tide")
    result = session.receipt()
    assert result.verified
    assert "receipt-corpus" in {check.code for check in result.checks if check.passed}
    manifest = heads[0].manifest
    assert list(result.receipt.events("confide.corpus")) == [
        {
            "type": "confide.corpus",
            "corpus": manifest.corpus,
            "head": 1,
            "digest": manifest.digest,
            "owner": str(OWNER.public),
        }
    ]


def test_openais_client_is_told_which_store_there_is(
    session: EnclaveSession, store: str, heads: list[SealedCorpus]
) -> None:
    [listed] = session.openai.vector_stores.list().data
    assert listed == session.openai.vector_stores.retrieve(store)
    assert (listed.id, listed.name, listed.file_counts.total) == (store, "sea", 3)
    assert listed.metadata is not None
    assert listed.metadata["head"] == "1"
    assert listed.metadata["digest"] == heads[0].manifest.digest == session.model_digest


def test_a_threshold_and_several_questions(session: EnclaveSession, store: str) -> None:
    search = session.openai.vector_stores.search
    assert len(search(store, query="tide twice", ranking_options={"score_threshold": 1}).data) == 1
    assert {hit.filename for hit in search(store, query=["moon", "bakers"]).data} == {"moon.txt", "bread.md"}
    assert search(store, query="volcano").data == []
    assert len(search(store, query="twice", max_num_results=1).data) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"filters": {"type": "eq", "key": "page", "value": 3}},
        {"rewrite_query": True},
        {"max_num_results": 51},
        {"max_num_results": 0},
        {"query": "x" * 4097},
        {"query": ""},
        {"query": ["x"] * 5},
        {"query": [["x"]]},
        {"ranking_options": {"ranker": "mine"}},
        {"ranking_options": {"weights": 1}},
    ],
    ids=["filters", "rewriting", "many", "none", "long", "empty", "questions", "nested", "ranker", "ranking"],
)
def test_what_is_not_offered_or_too_much_is_refused(
    session: EnclaveSession, store: str, fields: dict[str, Any]
) -> None:
    body = {"query": "tide", **fields}
    with pytest.raises(openai.BadRequestError) as raised:
        session.openai.post(f"/vector_stores/{store}/search", body=body, cast_to=object)
    assert "x" * 100 not in str(raised.value)


def test_another_store_is_not_here(session: EnclaveSession) -> None:
    for id_ in ("vs_other", "vs_" + "0" * 64):
        with pytest.raises(openai.NotFoundError, match="one vector store"):
            session.openai.vector_stores.search(id_, query="tide")
    with pytest.raises(openai.NotFoundError, match="vector_stores where a corpus is served"):
        session.openai.chat.completions.create(model="x", messages=[{"role": "user", "content": "hi"}])


def test_nothing_is_answered_in_the_clear(tee: SimulatedTee, heads: list[SealedCorpus], store: str) -> None:
    with served(tee, heads[0]) as url:
        answer = httpx.post(f"{url}/v1/vector_stores/{store}/search", json={"query": "tide"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "insecure-connection")
        assert httpx.get(f"{url}/v1/vector_stores").status_code == 403
        assert httpx.get(f"{url}/health").json() == {"status": "ok"}


def test_a_policy_names_the_corpus_its_owner_and_the_least_head(
    tee: SimulatedTee, root: Path, heads: list[SealedCorpus], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path / "nobody-met-any"))
    corpus, owner = heads[1].manifest.corpus, str(OWNER.public)
    with served(tee, heads[1]) as url:
        connect(url, root, Corpus(corpus, owner, 2), Model(heads[1].manifest.digest)).close()
        for wrong, check in (
            (Corpus(corpus, owner, 3), "corpus-head"),
            (Corpus(corpus, str(STRANGER.public)), "corpus-owner"),
            (Corpus("0" * 64, owner), "corpus"),
        ):
            with pytest.raises(AttestationRefused) as raised:
                connect(url, root, wrong)
            assert raised.value.checks == (check,)


def test_a_head_that_was_rolled_back_is_refused_by_whoever_met_a_newer_one(
    tee: SimulatedTee, root: Path, heads: list[SealedCorpus], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("CONFIDE_HOME", str(home))
    with served(tee, heads[0]) as url:
        connect(url, root).close()
        before = (home / FILE_NAME).read_bytes()
        connect(url, root).close()
        assert (home / FILE_NAME).read_bytes() == before
    with served(tee, heads[1]) as url:
        connect(url, root).close()
    with served(tee, heads[0]) as url, pytest.raises(CorpusRefused, match=r"head 1 .* met head 2.*rolled back"):
        connect(url, root)
    with served(tee, heads[2]) as url, pytest.raises(CorpusRefused, match="signed two"):
        connect(url, root)
    kept = json.loads((home / FILE_NAME).read_bytes())
    assert kept["attested"] == {}  # what is simulated says nothing of what is real
    assert [one["head"] for one in kept["simulated"].values()] == [2]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"simulated": {"x": {"head": 0}}}', b"[" * 100_000], ids=range(4))
def test_who_cannot_tell_what_was_met_trusts_nothing(
    tee: SimulatedTee, root: Path, heads: list[SealedCorpus], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    content: bytes,
) -> None:  # fmt: skip
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path))
    (tmp_path / FILE_NAME).write_bytes(content)
    with served(tee, heads[0]) as url, pytest.raises(CorpusRefused, match="is not what was kept"):
        connect(url, root)


def test_a_head_of_another_owner_is_another_corpus(heads: list[SealedCorpus], tmp_path: Path) -> None:
    """Who copies the number of a corpus and counts on from it moves nobody's memory of the owner's."""
    manifest = heads[0].manifest
    theirs = CorpusServed(manifest.corpus, 1 << 40, "11" * 32, str(STRANGER.public))
    ours = msgspec.structs.replace(theirs, head=1, owner=str(OWNER.public))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONFIDE_HOME", str(tmp_path))
        from confide.client.corpora import require_current

        require_current(theirs, simulated=False)
        require_current(theirs, simulated=True)
        require_current(ours, simulated=False)
        require_current(msgspec.structs.replace(ours, head=2), simulated=False)
        with pytest.raises(CorpusRefused):
            require_current(ours, simulated=False)

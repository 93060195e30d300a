"""Users' own documents at a service: what is kept of them, for whom, what receipts say, and how they end."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.rag.made import pdf

import confide
from confide.attest.policy import SimulatedPolicy
from confide.attest.simulated import SimulatedTee
from confide.client.collections import OwnCollection
from confide.client.corpora import FILE_NAME
from confide.client.enclave import EnclaveSession
from confide.enclave.api.limits import Limits
from confide.enclave.api.vector_stores import Retrieval, retrieval_app, store_id
from confide.enclave.workload import Workload
from confide.errors import (
    CollectionDamaged,
    CollectionFull,
    CorpusRefused,
    EgressOpen,
    ReceiptRefused,
    RequestRefused,
    RequestTooLarge,
    UnknownCorpus,
    UnknownDocument,
    UnreadableDocument,
)
from confide.packages.sealed.corpus import Chunk, SealedCorpus, seal_corpus
from confide.packages.sealed.key import ModelKey
from confide.rag.collection import collection_id
from confide.rag.index import Index
from confide.rag.shelf import Shelf
from confide.receipts.events import COLLECTION
from owners import OWNER

from ..serving import serving

MINE, THEIRS = ModelKey(b"m" * 32), ModelKey(b"t" * 32)
CHUNKS = (Chunk("moon.txt", None, "Our moon pulls."),)
LIMITS = Limits(attestations_per_second=1000).with_uploads()
SECRET = "The patient in bed seven is Ada."


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("machine")
    SimulatedTee.create(folder / "tee")
    seal_corpus(CHUNKS, folder / "corpus", name="sea", key=MINE, owner=OWNER)
    return folder


@contextmanager
def served(machine: Path, shelf: Path, *, most: int = 1 << 30) -> Iterator[EnclaveSession]:
    """A session with a service that keeps collections in that folder."""
    tee = SimulatedTee.open(machine / "tee")
    manifest, index = SealedCorpus.open(machine / "corpus").manifest, Index(CHUNKS)
    retrieval = Retrieval(manifest, index, Shelf(shelf, index, most), limits=LIMITS)
    with serving(retrieval_app(Workload(tee, tee.collateral), retrieval)) as url:
        session = confide.connect(url, simulated_root=machine / "tee" / "root.pem", policy=SimulatedPolicy())
        assert isinstance(session, EnclaveSession)
        with session:
            yield session


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    return tmp_path / "shelf"


@pytest.fixture
def session(machine: Path, shelf: Path) -> Iterator[EnclaveSession]:
    with served(machine, shelf) as session:
        yield session


@pytest.fixture
def mine(session: EnclaveSession) -> OwnCollection:
    return session.collection(MINE)


def written(tmp_path: Path, name: str, text: str = SECRET) -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def names(collection: OwnCollection, question: str = "Who is the patient?") -> list[str]:
    return [hit.filename for hit in collection.search(question)]


def test_a_document_is_found_by_whoever_has_its_key_and_by_nobody_else(
    session: EnclaveSession, mine: OwnCollection, tmp_path: Path, shelf: Path
) -> None:
    added = mine.add(written(tmp_path, "ward.md"))
    [hit] = mine.search("Who is the patient?")
    assert (hit.file_id, hit.filename, hit.content[0].text, hit.score) == (added, "ward.md", SECRET, 1)
    assert hit.attributes["digest"] == Chunk("ward.md", None, SECRET).digest
    for other in (session.collection(THEIRS).openai, session.openai):
        with pytest.raises(openai.NotFoundError):
            other.vector_stores.search(mine.vector_store, query="patient")
        assert mine.vector_store not in {store.id for store in other.vector_stores.list().data}
    assert mine.vector_store in {store.id for store in mine.openai.vector_stores.list().data}
    assert session.collection(THEIRS).documents() == []
    with pytest.raises(openai.BadRequestError, match="need a key of your own"):
        session.openai.files.list()
    kept = b"".join(path.read_bytes() for path in shelf.iterdir())
    for word in (b"patient", b"ward.md", MINE.raw, SECRET.encode()):
        assert word not in kept


def test_it_is_all_there_after_a_restart_in_a_form_that_openais_client_knows(
    machine: Path, shelf: Path, tmp_path: Path
) -> None:
    with served(machine, shelf) as session:
        client = session.collection(MINE).openai
        store = client.vector_stores.create(name="notes")
        path = tmp_path / "tide.pdf"
        path.write_bytes(pdf(["The tide rises", "and falls"]))
        with path.open("rb") as file:
            attached = client.vector_stores.files.upload_and_poll(vector_store_id=store.id, file=file)
        assert attached.status == "completed"
    with served(machine, shelf) as session:
        client = session.collection(MINE).openai
        found = client.vector_stores.search(store.id, query="falls").data
        assert [(hit.filename, hit.attributes) for hit in found] == [
            ("tide.pdf", {"digest": Chunk("tide.pdf", 2, "and falls").digest, "page": 2})
        ]
        again = client.vector_stores.retrieve(store.id)
        assert (again.name, again.file_counts.completed, again.metadata and again.metadata["head"]) == ("notes", 1, "3")
        assert [one.id for one in client.vector_stores.files.list(store.id).data] == [attached.id]
        file = client.files.retrieve(attached.id)
        assert (file.filename, file.bytes, file.status) == ("tide.pdf", path.stat().st_size, "processed")


def test_what_is_detached_or_removed_is_not_found_any_more(mine: OwnCollection, tmp_path: Path) -> None:
    first, second = mine.add(written(tmp_path, "a.txt")), mine.add(written(tmp_path, "b.txt"))
    assert sorted(names(mine)) == ["a.txt", "b.txt"]
    mine.openai.vector_stores.files.delete(first, vector_store_id=mine.vector_store)
    assert names(mine) == ["b.txt"]
    assert len(mine.documents()) == 2
    with pytest.raises(openai.NotFoundError):
        mine.openai.vector_stores.files.retrieve(first, vector_store_id=mine.vector_store)
    mine.openai.vector_stores.files.create(mine.vector_store, file_id=first)
    assert sorted(names(mine)) == ["a.txt", "b.txt"]
    mine.remove(first)
    mine.remove(second)
    assert names(mine) == mine.documents() == []
    for gone in (first, "file-" + "0" * 32, "file-x"):
        with pytest.raises(UnknownDocument):
            mine.remove(gone)


def test_every_change_and_search_has_a_receipt_that_names_the_head(
    session: EnclaveSession, mine: OwnCollection, tmp_path: Path
) -> None:
    mine.add(written(tmp_path, "a.txt"))
    [changed] = session.receipt().receipt.events(COLLECTION)
    assert (changed["corpus"], changed["head"]) == (mine.id, 3)  # a document, a vector store, both together
    names(mine)
    [asked] = session.receipt().receipt.events(COLLECTION)
    assert asked == changed
    store = mine.openai.vector_stores.retrieve(mine.vector_store)
    assert store.metadata is not None
    assert store.metadata["digest"] == asked["digest"]
    mine.remove(mine.documents()[0].id)
    [removed] = session.receipt().receipt.events(COLLECTION)
    assert (removed["head"], session.receipt().receipt.fields.method) == (4, "DELETE")
    assert removed["digest"] != asked["digest"]


def test_a_collection_that_was_rolled_back_is_refused(machine: Path, shelf: Path, tmp_path: Path) -> None:
    with served(machine, shelf) as session:
        mine = session.collection(MINE)
        mine.add(written(tmp_path, "a.txt"))
        [sealed] = shelf.glob("*.sealed")
        old = sealed.read_bytes()
        mine.add(written(tmp_path, "b.txt"))
        sealed.write_bytes(old)
        with pytest.raises(CorpusRefused, match=r"head 3 .* met head 5.*rolled back"):
            names(mine)


def test_another_collections_head_is_refused(
    machine: Path, session: EnclaveSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = session.collection(MINE)
    mine.add(written(tmp_path, "a.txt"))
    monkeypatch.setattr("confide.client.receipts.collection_id", lambda key: collection_id(THEIRS))
    with pytest.raises(ReceiptRefused, match="another collection"):
        names(mine)


@pytest.mark.parametrize("damage", ["cut", "flipped", "swapped", "emptied", "long"])
def test_what_the_machine_changed_is_refused_and_can_be_deleted(
    machine: Path, shelf: Path, tmp_path: Path, damage: str
) -> None:
    with served(machine, shelf) as session:
        mine, theirs = session.collection(MINE), session.collection(THEIRS)
        mine.add(written(tmp_path, "a.txt"))
        theirs.add(written(tmp_path, "b.txt"))
    path, other = (shelf / f"{one.id}.sealed" for one in (mine, theirs))
    content = path.read_bytes()
    path.write_bytes(
        {
            "cut": content[:-1],
            "flipped": content[:-1] + bytes([content[-1] ^ 1]),
            "swapped": other.read_bytes(),
            "emptied": b"",
            "long": content + b"\0",
        }[damage]
    )
    with served(machine, shelf) as session:
        mine = session.collection(MINE)
        with pytest.raises(CollectionDamaged):
            names(mine)
        mine.delete(tmp_path / "proof")
        assert not mine.exists
        assert names(session.collection(THEIRS)) == ["b.txt"]


def test_deletion_is_shown_by_a_receipt_that_can_be_verified_later(
    session: EnclaveSession, mine: OwnCollection, tmp_path: Path, shelf: Path
) -> None:
    mine.add(written(tmp_path, "a.txt"))
    assert names(mine)
    result = mine.delete(tmp_path / "proof")
    assert result.verified
    assert list(result.receipt.events(COLLECTION)) == [{"type": COLLECTION, "corpus": mine.id, "deleted": True}]
    fields = result.receipt.fields
    assert (fields.method, fields.endpoint) == ("DELETE", f"/v1/vector_stores/{mine.vector_store}")
    assert sorted(path.name for path in (tmp_path / "proof").iterdir()) == [
        "bundle.json", "receipt.json", "request", "response",
    ]  # fmt: skip
    assert list(shelf.glob("*.sealed")) == []
    with pytest.raises(UnknownCorpus):
        names(mine)
    assert mine.documents() == []
    again = mine.delete(tmp_path / "again")  # of nothing: a receipt that nothing is kept
    assert list(again.receipt.events(COLLECTION)) == list(result.receipt.events(COLLECTION))
    with pytest.raises(confide.ConfideError, match="has files already"):
        mine.delete(tmp_path / "proof")


def test_a_deletion_that_the_receipt_does_not_name_is_refused(
    mine: OwnCollection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("confide.enclave.api.collections.note", lambda *_: None)
    with pytest.raises(ReceiptRefused, match="does not say that this collection was deleted"):
        mine.delete(tmp_path / "proof")


def refuse() -> None:
    raise EgressOpen("This process cannot be confined; report this.")


def test_a_document_is_read_by_a_process_that_is_closed_off_or_not_at_all(
    mine: OwnCollection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("confide.enclave.api.collections.close_off", refuse)
    with pytest.raises(confide.ConfideError, match="cannot be confined"):
        mine.add(written(tmp_path, "a.txt"))
    assert mine.documents() == []


def test_whoever_deletes_needs_the_key(session: EnclaveSession, mine: OwnCollection, tmp_path: Path) -> None:
    mine.add(written(tmp_path, "a.txt"))
    for other in (session.openai, session.collection(THEIRS).openai):
        with pytest.raises(openai.NotFoundError):
            other.vector_stores.delete(mine.vector_store)
    assert names(mine) == ["a.txt"]


def test_the_owners_corpus_is_searched_as_before_and_never_changed(
    session: EnclaveSession, mine: OwnCollection, machine: Path
) -> None:
    store = store_id(SealedCorpus.open(machine / "corpus").manifest)
    for client in (session.openai, mine.openai):
        assert [hit.filename for hit in client.vector_stores.search(store, query="moon").data] == ["moon.txt"]
        with pytest.raises(openai.NotFoundError):
            client.vector_stores.delete(store)
        with pytest.raises(openai.NotFoundError):
            client.vector_stores.files.list(store)


def test_a_second_vector_store_under_one_key_is_refused(mine: OwnCollection, tmp_path: Path) -> None:
    mine.add(written(tmp_path, "a.txt"))
    with pytest.raises(openai.BadRequestError, match="has its vector store already"):
        mine.openai.vector_stores.create(name="second")


def test_a_vector_store_begins_with_files_that_came_before(mine: OwnCollection, tmp_path: Path) -> None:
    file = mine.openai.files.create(file=("a.txt", SECRET.encode()), purpose="user_data")
    with pytest.raises(UnknownCorpus):
        names(mine)
    with pytest.raises(openai.NotFoundError):
        mine.openai.vector_stores.create(file_ids=["file-" + "0" * 32])
    mine.openai.vector_stores.create(file_ids=[file.id])
    assert names(mine) == ["a.txt"]


@pytest.mark.parametrize("key", ["", "0" * 63, "G" * 64, "A" * 64, "0" * 65, "0" * 4096], ids=range(6))
def test_what_is_no_key_is_refused_and_not_repeated(session: EnclaveSession, key: str) -> None:
    with pytest.raises(openai.BadRequestError, match="takes one collection's key") as raised:
        session.openai.get("/files", cast_to=object, options={"headers": {"confide-collection-key": key}})
    assert key not in str(raised.value) or not key


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.exe", b"MZ", "it is none of"),
        ("a.pdf", b"%PDF-1.4\nnothing", "cannot be understood"),
        ("a.txt", b"\xff\xfe", "no UTF-8"),
        ("a.txt", b" \n", "no text in it"),
        ("a\x1b[2J.txt", b"hello", "name cannot be shown"),
        ("x" * 1025 + ".txt", b"hello", "name cannot be shown"),
    ],
    ids=["kind", "broken", "bytes", "empty", "name", "long name"],
)
def test_a_document_that_cannot_be_read_is_refused(mine: OwnCollection, name: str, content: bytes, reason: str) -> None:
    with pytest.raises(openai.BadRequestError, match=reason):
        mine.openai.files.create(file=(name, content), purpose="assistants")
    assert mine.documents() == []


def test_a_file_that_is_not_there_is_no_document(mine: OwnCollection, tmp_path: Path) -> None:
    with pytest.raises(UnreadableDocument):
        mine.add(tmp_path / "missing.txt")


FORM = b'--x\r\nContent-Disposition: form-data; name="%b"; filename="%b"\r\n\r\nhello\r\n'


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", FORM % (b"file", b"a.txt") + b"--x--\r\n"),
        ("multipart/form-data; boundary=" + "x" * 71, b""),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=x", FORM % (b"file", b"a.txt")),
        ("multipart/form-data; boundary=x", FORM % (b"other", b"a.txt") + b"--x--\r\n"),
        ("multipart/form-data; boundary=x", FORM % (b"file", b"\xff.txt") + b"--x--\r\n"),
        ("multipart/form-data; boundary=x", 2 * (FORM % (b"file", b"a.txt")) + b"--x--\r\n"),
        ("multipart/form-data; boundary=x", 9 * (FORM % (b"more", b"")) + FORM % (b"file", b"a.txt") + b"--x--\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\n" + b"a" * 10000),
        ("multipart/form-data; boundary=x", b"--y\r\n\r\n"),
    ],
    ids=["json", "none", "long", "empty", "cut", "other", "name", "twice", "many", "header", "boundary"],
)
def test_what_is_no_form_with_one_file_is_refused(mine: OwnCollection, kind: str, body: bytes) -> None:
    http: Any = mine.openai._client
    answer = http.post(f"{mine.openai.base_url}files", content=body, headers={"content-type": kind})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file")


def test_a_large_document_stays_in_memory(mine: OwnCollection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 MiB, where forms are usually put on a disk from 1 MiB on."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a file was made")

    for name in ("SpooledTemporaryFile", "TemporaryFile", "NamedTemporaryFile", "mkstemp"):
        monkeypatch.setattr(tempfile, name, refuse)
    monkeypatch.setattr(tempfile, "tempdir", os.devnull)
    text = "word " * (2 << 20) + "\n\nlast needle"
    mine.openai.files.create(file=("a.txt", text[-(2 << 20) :].encode()), purpose="assistants")
    assert mine.documents()[0].bytes == 2 << 20


def test_a_body_beyond_what_a_document_has_is_refused(mine: OwnCollection) -> None:
    for size in (1 << 25, 1 << 26):  # beyond what a document may be, and beyond what the channel takes
        with pytest.raises((openai.APIStatusError, RequestTooLarge), match=r"larger than|at most"):
            mine.openai.files.create(file=("a.txt", b"x" * size), purpose="assistants")
    with pytest.raises(openai.APIStatusError) as raised:
        mine.openai.vector_stores.create(name="x", extra_body={"metadata": "x" * (2 << 20)})
    assert raised.value.status_code == 413  # only documents may be large


def test_a_shelf_that_is_full_takes_no_more_and_still_deletes(machine: Path, shelf: Path, tmp_path: Path) -> None:
    with served(machine, shelf, most=3000) as session:
        mine, theirs = session.collection(MINE), session.collection(THEIRS)
        theirs.add(written(tmp_path, "a.txt", "x " * 200))
        with pytest.raises(CollectionFull, match="no room"):
            mine.add(written(tmp_path, "b.txt", "y " * 1500))
        assert mine.documents() == []
        theirs.delete(tmp_path / "proof")
        mine.add(written(tmp_path, "b.txt", "y " * 1000))


def test_two_services_share_a_shelf(machine: Path, shelf: Path, tmp_path: Path) -> None:
    """Neither answers by a head that the other has left behind."""
    with served(machine, shelf) as one, served(machine, shelf) as other:
        first, second = one.collection(MINE), other.collection(MINE)
        first.add(written(tmp_path, "a.txt"))
        assert names(second) == ["a.txt"]
        second.add(written(tmp_path, "b.txt"))
        assert sorted(names(first)) == ["a.txt", "b.txt"]
        first.delete(tmp_path / "proof")
        assert not second.exists


def test_without_a_shelf_there_are_no_files(machine: Path) -> None:
    tee = SimulatedTee.open(machine / "tee")
    retrieval = Retrieval(SealedCorpus.open(machine / "corpus").manifest, Index(CHUNKS), limits=LIMITS)
    with serving(retrieval_app(Workload(tee, tee.collateral), retrieval)) as url:
        with confide.connect(url, simulated_root=machine / "tee" / "root.pem") as session:
            assert isinstance(session, EnclaveSession)
            with pytest.raises(RequestRefused, match="no such endpoint"):
                session.collection(MINE).documents()
            with pytest.raises(UnknownCorpus):
                session.collection(MINE).search("x")


def test_the_key_is_in_no_log_and_no_repr(
    session: EnclaveSession, mine: OwnCollection, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    mine.add(written(tmp_path, "a.txt"))
    names(mine)
    shown = caplog.text + repr(mine) + repr(session) + repr(mine.openai)
    assert MINE.raw.hex() not in shown
    assert SECRET not in shown


def test_what_was_met_is_kept_with_corpora(mine: OwnCollection, tmp_path: Path, home: Path) -> None:
    mine.add(written(tmp_path, "a.txt"))
    kept = json.loads((home / FILE_NAME).read_bytes())["simulated"]
    assert kept[f"{mine.id}/{mine.id}"]["head"] == 3

"""A collection as it is sealed, and the shelf that many are kept on: heads, keys, room, models, what stays open."""

import gc
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from confide.disk.files import sync_folder
from confide.errors import CollectionDamaged, CollectionFull, EngineUnavailable
from confide.packages.sealed.corpus import FLOAT, Chunk
from confide.packages.sealed.key import ModelKey
from confide.rag.collection import (
    MAX_BYTES,
    Collection,
    Document,
    collection_id,
    open_collection,
    parse_collection,
    salt_of,
    seal_collection,
)
from confide.rag.index import Index, Meaning
from confide.rag.shelf import Opened, Shelf

KEY, OTHER = ModelKey(b"k" * 32), ModelKey(b"o" * 32)
SERVED = Index([Chunk("sea.txt", None, "Our moon pulls.")])


def document(text: str, *, attached: bool = True, embedder: str = "", vectors: bytes = b"") -> Document:
    chunks = (Chunk(f"{text[:4]}.txt", None, text),)
    return Document(
        f"file-{text[:1].encode().hex() * 16}", "a.txt", len(text), 7, attached=attached, chunks=chunks,
        embedder=embedder, vectors=vectors,
    )  # fmt: skip


def collection(*documents: Document, key: ModelKey = KEY, **changes: Any) -> Collection:
    made = Collection(1, collection_id(key), 1, "", "notes", 7, documents)
    return msgspec.structs.replace(made, **changes)


def adding(*documents: Document) -> Any:
    def edit(before: Collection | None) -> Collection:
        made = before or collection()
        return msgspec.structs.replace(made, documents=(*made.documents, *documents))

    return edit


def found(opened: Opened | None, question: str) -> list[str]:
    assert opened is not None
    return [hit.chunk.text for _, hit in opened.search(question, 9)]


# -- sealed ------------------------------------------------------------------------------------------------------------


def test_what_is_sealed_opens_with_its_key_and_no_other() -> None:
    made = collection(document("Ada sleeps."), document("Bed seven."))
    sealed = seal_collection(made, KEY)
    assert open_collection(sealed, KEY) == made
    with pytest.raises(CollectionDamaged):
        open_collection(sealed, OTHER)
    assert b"Ada" not in sealed


def test_no_two_heads_are_sealed_under_the_same_stream() -> None:
    """AES-GCM forgives no nonce that comes twice: each head has a salt, and so a key, of its own."""
    made = collection(document("Ada sleeps."))
    first, second = seal_collection(made, KEY), seal_collection(made, KEY)
    assert salt_of(first) != salt_of(second)
    assert first[-40:] != second[-40:]


def test_every_byte_counts() -> None:
    sealed = seal_collection(collection(document("Ada sleeps.")), KEY)
    for place in range(len(sealed)):
        with pytest.raises(CollectionDamaged):
            open_collection(sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :], KEY)
    for wrong in (b"", sealed[:-1], sealed + b"\0", sealed[:50]):
        with pytest.raises(CollectionDamaged):
            open_collection(wrong, KEY)


@pytest.mark.parametrize(
    "content",
    [b"", b"\xc0", b"\x91" * 100_000, msgspec.msgpack.encode({"format": 1}), b"\xdf\xff\xff\xff\xff", b"\xff" * 100],
    ids=range(6),
)
def test_what_is_sealed_and_no_collection_is_refused(content: bytes) -> None:
    with pytest.raises(CollectionDamaged):
        parse_collection(content)


def test_a_collection_that_says_it_is_another_ones_is_refused() -> None:
    with pytest.raises(CollectionDamaged):
        open_collection(seal_collection(collection(key=OTHER), KEY), KEY)


def test_what_is_longer_than_a_chunk_is_sealed_in_several() -> None:
    made = collection(*(document(letter * 16000) for letter in "abc" for _ in range(50)))
    sealed = seal_collection(made, KEY)
    assert len(sealed) > 2 << 20
    assert open_collection(sealed, KEY) == made
    swapped = bytearray(sealed)
    start, size = len(sealed) - len(sealed) % (1 << 20), 1 << 10
    swapped[start : start + size], swapped[-size:] = sealed[-size:], sealed[start : start + size]
    with pytest.raises(CollectionDamaged):
        open_collection(bytes(swapped), KEY)


def test_more_than_a_collection_has_is_refused() -> None:
    with pytest.raises(CollectionFull):
        seal_collection(collection(document("a", vectors=bytes(MAX_BYTES))), KEY)


@pytest.mark.parametrize(
    "change",
    [
        {"head": 2},
        {"previous": "ab" * 32},
        {"name": "other"},
        {"name": None},
        {"id": "ab" * 32},
        {"documents": ()},
        {"documents": (document("Ada sleeps.", attached=False),)},
        {"documents": (document("Ada wakes."),)},
    ],
    ids=range(8),
)
def test_a_heads_digest_is_of_all_that_it_is(change: dict[str, Any]) -> None:
    made = collection(document("Ada sleeps."))
    assert msgspec.structs.replace(made, **change).digest != made.digest


def test_which_collection_a_key_is_of_says_nothing_of_the_key() -> None:
    assert collection_id(KEY) != collection_id(OTHER)
    assert KEY.id not in collection_id(KEY)


# -- on the shelf ------------------------------------------------------------------------------------------------------


def test_heads_count_on_and_name_the_one_before(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "shelf", SERVED, 1 << 20)
    assert shelf.find(KEY) is None
    first = shelf.change(KEY, adding(document("Ada sleeps.")))
    second = shelf.change(KEY, adding(document("Bed seven.")))
    assert (first.collection.head, first.collection.previous) == (1, "")
    assert (second.collection.head, second.collection.previous) == (2, first.digest)
    assert found(Shelf(tmp_path / "shelf", SERVED, 1 << 20).find(KEY), "bed Ada") == found(second, "bed Ada")
    assert shelf.find(OTHER) is None


def test_what_an_edit_says_of_number_and_id_is_not_taken(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, SERVED, 1 << 20)
    opened = shelf.change(KEY, lambda _: collection(key=OTHER, head=9, previous="ab" * 32))
    assert (opened.collection.id, opened.collection.head, opened.collection.previous) == (collection_id(KEY), 1, "")


def test_an_edit_that_fails_leaves_everything_as_it_was(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, SERVED, 1 << 20)
    shelf.change(KEY, adding(document("Ada sleeps.")))

    def fail(_: Collection | None) -> Collection:
        raise CollectionFull("no")

    with pytest.raises(CollectionFull):
        shelf.change(KEY, fail)
    opened = shelf.find(KEY)
    assert opened is not None
    assert opened.collection.head == 1


def test_what_was_opened_is_not_decrypted_again_and_is_let_go_of_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real = open_collection

    def noted(sealed: bytes, key: ModelKey) -> Collection:
        opened.append(key.id)
        return real(sealed, key)

    monkeypatch.setattr("confide.rag.shelf.open_collection", noted)
    size = len(seal_collection(collection(document("Ada sleeps.")), KEY))
    Shelf(tmp_path, SERVED, 1 << 20).change(KEY, adding(document("Ada sleeps.")))
    Shelf(tmp_path, SERVED, 1 << 20).change(OTHER, adding(document("Bed seven.")))
    opened.clear()
    shelf = Shelf(tmp_path, SERVED, 1 << 20, cached_bytes=size + 10)
    for key in (KEY, KEY, OTHER, OTHER, KEY):
        assert shelf.find(key) is not None
    assert opened == [KEY.id, OTHER.id, KEY.id]


def test_room_is_for_all_together_and_a_new_head_takes_its_old_ones_place(tmp_path: Path) -> None:
    size = len(seal_collection(collection(document("Ada sleeps.")), KEY))
    shelf = Shelf(tmp_path, SERVED, size + size // 2)
    shelf.change(KEY, adding(document("Ada sleeps.")))
    with pytest.raises(CollectionFull):
        shelf.change(OTHER, adding(document("Bed seven.")))
    assert shelf.find(OTHER) is None
    shelf.change(KEY, lambda before: collection(document("Bed seven.")))
    shelf.delete(KEY)
    shelf.change(OTHER, adding(document("Bed seven.")))


def test_changes_at_once_are_made_one_after_the_other(tmp_path: Path) -> None:
    """By two shelves over one folder, as two services have them."""
    shelves = [Shelf(tmp_path, SERVED, 1 << 22) for _ in range(2)]
    threads = [
        threading.Thread(target=shelf.change, args=(KEY, adding(document(f"{letter} text"))))
        for shelf in shelves
        for letter in "abcdefgh"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    opened = shelves[0].find(KEY)
    assert opened is not None
    assert (opened.collection.head, len(opened.collection.documents)) == (16, 16)


def test_a_folder_that_cannot_be_used_is_said_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineUnavailable):
        Shelf(tmp_path / "file", SERVED, 1)
    shelf = Shelf(tmp_path / "shelf", SERVED, 1 << 20)
    (tmp_path / "shelf").rmdir()
    (tmp_path / "shelf").write_text("")
    for work in (lambda: shelf.find(KEY), lambda: shelf.change(KEY, adding()), lambda: shelf.delete(KEY)):
        with pytest.raises(EngineUnavailable):
            work()


def test_what_was_deleted_is_in_no_memory_and_durably_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[Path, bool]] = []
    real = sync_folder

    def noted(folder: Path) -> None:
        synced.append((folder, any(folder.glob("*.sealed"))))
        real(folder)

    shelf = Shelf(tmp_path, SERVED, 1 << 20)
    opened = weakref.ref(shelf.change(KEY, adding(document("Ada sleeps."))))
    assert opened() is not None
    monkeypatch.setattr("confide.rag.shelf.sync_folder", noted)
    shelf.delete(KEY)
    gc.collect()
    assert opened() is None
    assert synced == [(tmp_path, False)]
    shelf.delete(KEY)


def test_what_is_deleted_while_it_is_read_stays_in_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Shelf(tmp_path, SERVED, 1 << 20).change(KEY, adding(document("Ada sleeps.")))
    shelf, real = Shelf(tmp_path, SERVED, 1 << 20), open_collection

    def deleted(sealed: bytes, key: ModelKey) -> Collection:
        shelf.delete(key)
        return real(sealed, key)

    monkeypatch.setattr("confide.rag.shelf.open_collection", deleted)
    found = shelf.find(KEY)
    assert found is not None
    opened = weakref.ref(found)
    del found
    gc.collect()
    assert opened() is None


# -- with models -------------------------------------------------------------------------------------------------------


class Directions:
    """An embedder that knows which way a text points, by its first letter alone; and how often it was asked."""

    dimensions = 2

    def __init__(self) -> None:
        self.read: list[str] = []

    def of_question(self, text: str) -> NDArray[np.float32]:
        angle = np.float32(ord(text[0].lower()) - ord("a")) / 10
        return np.array([np.cos(angle), np.sin(angle)], np.float32)

    def cosines(self, question: str, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        return vectors @ self.of_question(question)

    def of_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.read.extend(texts)
        return np.stack([self.of_question(text) for text in texts])


def with_model(digest: str) -> tuple[Index, Directions]:
    embedder = Directions()
    chunk = Chunk("sea.txt", None, "sea")
    return Index([chunk], Meaning(embedder.of_question("sea")[None], embedder, digest)), embedder


def test_documents_are_found_by_what_they_mean_and_read_once(tmp_path: Path) -> None:
    served, embedder = with_model("ab" * 32)
    shelf = Shelf(tmp_path, served, 1 << 20)
    for text in ("zebra", "bees"):
        one = document(text, embedder=shelf.embedder, vectors=shelf.vectors([Chunk("a.txt", None, text)]))
        shelf.change(KEY, adding(one))
    assert embedder.read == ["zebra", "bees"]
    opened = Shelf(tmp_path, served, 1 << 20).find(KEY)
    assert found(opened, "ants")[0] == "bees"
    assert embedder.read == ["zebra", "bees"]


@pytest.mark.parametrize("before", ["", "cd" * 32], ids=["no model", "another model"])
def test_documents_of_another_models_time_are_read_anew(tmp_path: Path, before: str) -> None:
    vectors = np.zeros(3, FLOAT).tobytes() if before else b""
    one = document("zebra", embedder=before, vectors=vectors)
    two = document("bees", embedder=before, vectors=vectors)
    Shelf(tmp_path, SERVED, 1 << 20).change(KEY, adding(one, two))
    served, embedder = with_model("ab" * 32)
    shelf = Shelf(tmp_path, served, 1 << 20)
    assert found(shelf.find(KEY), "ants")[0] == "bees"
    assert sorted(embedder.read) == ["bees", "zebra"]
    shelf.change(KEY, adding(document("cows", embedder=shelf.embedder, vectors=shelf.vectors([Chunk("c", None, "c")]))))
    embedder.read.clear()
    assert len(found(Shelf(tmp_path, served, 1 << 20).find(KEY), "ants")) == 3
    assert embedder.read == []  # what was read anew was kept


def test_without_a_model_words_are_all_there_is(tmp_path: Path) -> None:
    served, _ = with_model("ab" * 32)
    shelf = Shelf(tmp_path, served, 1 << 20)
    vectors = shelf.vectors([Chunk("a.txt", None, "zebra")])
    shelf.change(KEY, adding(document("zebra", embedder=shelf.embedder, vectors=vectors)))
    opened = Shelf(tmp_path, SERVED, 1 << 20).find(KEY)
    assert (found(opened, "zebra"), found(opened, "yak")) == (["zebra"], [])

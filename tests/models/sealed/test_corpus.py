"""Sealed corpora: whose they are, which head, and that every chunk is what the owner signed."""

import hashlib
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from confide.errors import (
    ConfideError,
    DamagedFile,
    InvalidPackage,
    SubstitutedContent,
    SurplusFile,
    TruncatedFile,
    UntrustedOwner,
    WrongModelKey,
)
from confide.packages.manifest import MANIFEST_NAME, PackageKind, read_kind
from confide.packages.sealed import corpus as module
from confide.packages.sealed.corpus import (
    Chunk,
    Embeddings,
    Reranker,
    SealedCorpus,
    encode_chunks,
    parse_chunks,
    parse_corpus_manifest,
    parse_vectors,
    seal_corpus,
)
from confide.packages.sealed.data import SealedData
from confide.packages.sealed.key import ModelKey
from confide.packages.sealed.manifest import write_signed_manifest
from confide.packages.sealed.merkle import leaf_hash, root_hash
from owners import OWNER, STRANGER

KEY = ModelKey(b"k" * 32)
CHUNKS = (Chunk("tide.pdf", 1, "The tide rises."), Chunk("tide.pdf", 2, "It falls."), Chunk("moon.txt", None, "Moon"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpus") / "first"
    seal_corpus(CHUNKS, out, name="sea", key=KEY, owner=OWNER)
    return out


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "corpus"))


def test_what_was_sealed_is_read_and_nothing_of_it_is_in_the_clear(made: Path) -> None:
    sealed = SealedCorpus.open(made, {OWNER.public})
    assert sealed.unlock(KEY).chunks() == CHUNKS
    manifest = sealed.manifest
    assert (manifest.name, manifest.head, manifest.previous) == ("sea", 1, "")
    assert (manifest.documents, manifest.chunks) == (2, 3)
    assert read_kind(made) is PackageKind.CORPUS
    written = b"".join(path.read_bytes() for path in made.iterdir())
    assert not any(word in written for word in (b"tide", b"rises", b"moon.txt"))


def test_digests_are_those_of_a_merkle_tree_that_anyone_can_compute(made: Path) -> None:
    lines = [b'["tide.pdf",1,"The tide rises."]', b'["tide.pdf",2,"It falls."]', b'["moon.txt",null,"Moon"]']
    assert [chunk.digest for chunk in CHUNKS] == [leaf_hash(line).hex() for line in lines]
    manifest = SealedCorpus.open(made).manifest
    assert manifest.root == root_hash([leaf_hash(line) for line in lines]).hex()
    said = msgspec.json.encode(["sea", manifest.corpus, 1, "", 2, 3, manifest.root])
    assert manifest.digest == hashlib.sha256(b"confide corpus head 1\0" + said).hexdigest()


def test_the_next_head_names_the_one_before(made: Path, tmp_path: Path) -> None:
    first = SealedCorpus.open(made)
    seal_corpus(CHUNKS[:2], tmp_path / "second", name="ignored", key=ModelKey(b"l" * 32), owner=OWNER, after=first)
    second = SealedCorpus.open(tmp_path / "second").manifest
    assert (second.name, second.corpus, second.head) == ("sea", first.manifest.corpus, 2)
    assert second.previous == first.manifest.digest != second.digest


def test_another_key_and_another_owner_are_refused(made: Path) -> None:
    with pytest.raises(UntrustedOwner):
        SealedCorpus.open(made, {STRANGER.public})
    with pytest.raises(WrongModelKey):
        SealedCorpus.open(made).unlock(ModelKey(b"l" * 32))


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'"head": 1', b'"head": 2'), (b'"documents": 2', b'"documents": 1'), (b'"name": "sea"', b'"name": "lie"')],
    ids=["head", "documents", "name"],
)
def test_a_changed_manifest_is_refused(folder: Path, old: bytes, new: bytes) -> None:
    path = folder / MANIFEST_NAME
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(InvalidPackage):
        SealedCorpus.open(folder)


def test_changed_missing_and_surplus_files_are_refused(folder: Path) -> None:
    path = folder / "chunks.jsonl.sealed"
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(DamagedFile):
        SealedCorpus.open(folder).unlock(KEY).chunks()
    path.write_bytes(content[:-1])
    with pytest.raises(TruncatedFile):
        SealedCorpus.open(folder)
    path.write_bytes(content)
    (folder / "more.jsonl.sealed").write_bytes(b"more")
    with pytest.raises(SurplusFile):
        SealedCorpus.open(folder)


def test_who_has_the_key_alone_cannot_put_other_chunks_in_its_place(folder: Path, tmp_path: Path) -> None:
    seal_corpus((*CHUNKS[:2], Chunk("moon.txt", None, "Sun!")), tmp_path / "other", name="sea", key=KEY, owner=OWNER)
    theirs = SealedCorpus.open(tmp_path / "other").manifest
    ours = SealedCorpus.open(folder).manifest
    shutil.copy(tmp_path / "other" / "chunks.jsonl.sealed", folder)
    with pytest.raises(DamagedFile):
        SealedCorpus.open(folder).unlock(KEY).chunks()
    # And whoever signs must have signed what the chunks are, too, and not their file alone.
    mixed = msgspec.structs.replace(theirs, root=ours.root)
    write_signed_manifest(folder, mixed, module.SIGNED_LABEL, OWNER)
    with pytest.raises(SubstitutedContent):
        SealedCorpus.open(folder).unlock(KEY).chunks()


def test_a_signature_over_one_kind_of_package_is_none_over_another(folder: Path) -> None:
    with pytest.raises(InvalidPackage):
        SealedData.open(folder)
    manifest = SealedCorpus.open(folder).manifest
    write_signed_manifest(folder, manifest, b"confide sealed data 1\0", OWNER)
    with pytest.raises(InvalidPackage):
        SealedCorpus.open(folder)


@pytest.mark.parametrize(
    "changes",
    [{"head": 2}, {"previous": "0" * 64}, {"documents": 4}, {"chunks": 0}, {"head": 0}],
    ids=["no previous", "first with previous", "more documents than chunks", "no chunks", "no head"],
)
def test_a_manifest_that_contradicts_itself_is_refused(made: Path, changes: dict[str, object]) -> None:
    manifest = msgspec.structs.replace(SealedCorpus.open(made).manifest, **changes)
    with pytest.raises(InvalidPackage):
        parse_corpus_manifest(msgspec.json.encode(manifest))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'["a.txt",null,""]',
        b'["a.txt",0,"x"]',
        b'["a.txt",null,"x","more"]',
        b'["a.txt", null, "x"]',
        b'["a.txt",null,"\\u0078"]',
        b'["a.txt",null,"x"]\n',
        b'["",null,"x"]',
        b"[" * 100_000,
    ],
    ids=["none", "fields", "empty", "page", "surplus", "spaces", "escapes", "line", "source", "deep"],
)
def test_chunks_have_one_spelling(content: bytes) -> None:
    """The digest that is cited is over the chunk, and the root over lines: the two must be the same bytes."""
    with pytest.raises(InvalidPackage):
        parse_chunks(content)


def test_a_corpus_has_chunks_and_not_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CHUNKS", 2)
    for chunks in ((), CHUNKS):
        with pytest.raises(ConfideError, match="1 to 2 chunks"):
            seal_corpus(chunks, tmp_path / "out", name="sea", key=KEY, owner=OWNER)
    with pytest.raises(InvalidPackage):
        parse_chunks(encode_chunks(CHUNKS))
    assert not (tmp_path / "out").exists()


VECTORS = np.eye(3, 4, dtype=np.float32)


@pytest.fixture(scope="module")
def with_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus with embeddings, and with models that are files like any others here."""
    place = tmp_path_factory.mktemp("models")
    files = {}
    for name in ("config.json", "1_Pooling/config.json"):
        files[name] = place / name
        files[name].parent.mkdir(exist_ok=True)
        files[name].write_text(f"secret of {name}")
    embeddings = Embeddings(files, VECTORS)
    reranker = {"config.json": files["config.json"]}
    seal_corpus(CHUNKS, place / "out", name="sea", key=KEY, owner=OWNER, embeddings=embeddings, reranker=reranker)
    return place / "out"


def test_embeddings_and_models_are_sealed_as_chunks_are(with_models: Path) -> None:
    unlocked = SealedCorpus.open(with_models).unlock(KEY)
    manifest = unlocked.manifest
    assert manifest.embedded is not None
    assert manifest.reranker is not None
    assert unlocked.chunks() == CHUNKS
    np.testing.assert_array_equal(unlocked.vectors(manifest.embedded), VECTORS)
    found = {name: bytes(reader.read()) for name, reader in unlocked.model(manifest.embedded).items()}
    assert found == {name: f"secret of {name}".encode() for name in ("config.json", "1_Pooling/config.json")}
    assert list(unlocked.model(manifest.reranker)) == ["config.json"]
    written = [path.read_bytes() for path in with_models.rglob("*") if path.is_file()]
    assert not any(word in content for content in written for word in (b"secret", VECTORS.tobytes()[:16]))
    assert len({file.digest for file in manifest.all_files}) == 5  # the same file twice is encrypted twice
    unlocked.verify_models()


def test_a_heads_digest_is_over_vectors_and_models_too(with_models: Path) -> None:
    manifest = SealedCorpus.open(with_models).manifest
    embedded, reranker = manifest.embedded, manifest.reranker
    assert embedded is not None
    assert reranker is not None
    head = ["sea", manifest.corpus, 1, "", 2, 3, manifest.root]
    models = [
        ["embedded", embedded.model_digest, 4, embedded.vectors.root],
        ["reranker", reranker.model_digest],
    ]
    said = msgspec.json.encode([*head, *models])
    assert manifest.digest == hashlib.sha256(b"confide corpus head 1\0" + said).hexdigest()
    other = msgspec.structs.replace(embedded.model[1], root="0" * 64)
    changed = [
        msgspec.structs.replace(manifest, embedded=None),
        msgspec.structs.replace(manifest, reranker=None),
        msgspec.structs.replace(manifest, embedded=msgspec.structs.replace(embedded, dimensions=2)),
        msgspec.structs.replace(manifest, embedded=msgspec.structs.replace(embedded, model=(embedded.model[0], other))),
        msgspec.structs.replace(manifest, embedded=msgspec.structs.replace(embedded, vectors=other)),
    ]
    assert len({one.digest for one in [manifest, *changed]}) == 6


def test_vectors_of_another_head_cannot_be_put_in_their_place(with_models: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(with_models, tmp_path / "corpus"))
    embeddings = Embeddings({"config.json": with_models / "manifest.json"}, VECTORS[::-1].copy())
    seal_corpus(CHUNKS, tmp_path / "other", name="sea", key=KEY, owner=OWNER, embeddings=embeddings)
    shutil.copy(tmp_path / "other" / "vectors.f32.sealed", folder)
    unlocked = SealedCorpus.open(folder).unlock(KEY)
    assert unlocked.manifest.embedded is not None
    with pytest.raises(DamagedFile):
        unlocked.vectors(unlocked.manifest.embedded)
    (folder / "embedder" / "config.json.sealed").write_bytes(bytes(32))
    with pytest.raises(TruncatedFile):
        SealedCorpus.open(folder)
    (folder / "embedder" / "more.py.sealed").write_bytes(b"")
    with pytest.raises(SurplusFile):
        SealedCorpus.open(folder)


@pytest.mark.parametrize(
    "row", [[0, 0, 0, 0], [1, 1, 0, 0], [np.nan, 0, 0, 0], [np.inf, 0, 0, 0], [3e38, 3e38, 0, 0]], ids=range(5)
)
def test_what_is_no_vector_of_length_one_is_refused(row: list[float]) -> None:
    content = np.array([[1, 0, 0, 0], row], "<f4").tobytes()
    with pytest.raises(InvalidPackage, match="something else than embeddings"):
        parse_vectors(content, 4)
    np.testing.assert_array_equal(parse_vectors(content[:16], 4), [[1, 0, 0, 0]])
    with pytest.raises(InvalidPackage):
        parse_vectors(content[:12], 4)


@pytest.mark.parametrize("change", ["dimensions", "vectors", "outside", "chunks", "twice", "reranker"])
def test_a_manifest_whose_vectors_do_not_fit_its_chunks_is_refused(with_models: Path, change: str) -> None:
    manifest = SealedCorpus.open(with_models).manifest
    embedded, replace = manifest.embedded, msgspec.structs.replace
    assert embedded is not None
    parse_corpus_manifest(msgspec.json.encode(manifest))
    changes: dict[str, dict[str, object]] = {
        "dimensions": {"embedded": replace(embedded, dimensions=5)},
        "vectors": {"embedded": replace(embedded, vectors=replace(embedded.vectors, name="embedder/vectors"))},
        "outside": {"embedded": replace(embedded, model=(replace(embedded.model[0], name="config.json"),))},
        "chunks": {"chunks": 4},
        "twice": {"embedded": replace(embedded, model=embedded.model * 2)},
        "reranker": {"reranker": Reranker((embedded.model[0],))},
    }
    with pytest.raises(InvalidPackage, match="contradicts"):
        parse_corpus_manifest(msgspec.json.encode(replace(manifest, **changes[change])))

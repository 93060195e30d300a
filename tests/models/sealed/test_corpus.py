"""Sealed corpora: whose they are, which head, and that every chunk is what the owner signed."""

import hashlib
import shutil
from pathlib import Path

import msgspec
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
    SealedCorpus,
    encode_chunks,
    parse_chunks,
    parse_corpus_manifest,
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

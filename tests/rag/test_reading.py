"""Folders of documents, and the process that reads them: what it may take, and what its words are worth."""

import io
import os
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from confide.enclave.confinement import close_off
from confide.errors import EgressOpen, NotInstalled, UnreadableDocument
from confide.packages.sealed.corpus import Chunk
from confide.rag.documents import Page
from confide.rag.reader import DocumentReader, pages_of
from confide.rag.reading import gather

from .made import pdf, word


@pytest.fixture(scope="module")
def reader() -> Iterator[DocumentReader]:
    """One that has little time."""
    one = DocumentReader(seconds=0)
    yield one
    one.close()


def test_a_folder_becomes_chunks_in_the_order_of_its_names(tmp_path: Path) -> None:
    (tmp_path / "b.pdf").write_bytes(pdf(["Tides rise", "and fall"]))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "note.docx").write_bytes(word(["Moon"]))
    (tmp_path / "c.txt").write_text("Sun")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / ".hidden.txt").write_text("no")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config.txt").write_text("no")
    (tmp_path / "link.txt").symlink_to("/etc/hostname")
    (tmp_path / "linked").symlink_to("/etc")
    os.mkfifo(tmp_path / "pipe.txt")
    seen: list[str] = []
    gathered = gather(tmp_path, on_document=seen.append)
    assert gathered.chunks == (
        Chunk("b.pdf", 1, "Tides rise"),
        Chunk("b.pdf", 2, "and fall"),
        Chunk("c.txt", None, "Sun"),
        Chunk("a/note.docx", None, "Moon"),
    )
    assert seen == ["b.pdf", "c.txt", "a/note.docx"]
    assert gathered.left_out == {
        "link.txt": "no file, or a link",
        "linked": "no file, or a link",
        "picture.png": "of another kind",
        "pipe.txt": "no file, or a link",
    }


def test_what_cannot_be_read_is_named_or_left_out_by_name(tmp_path: Path) -> None:
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.4\nnothing")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "good.txt").write_text("Sun")
    (tmp_path / "turn\x1b[2J.txt").write_text("escape")
    with pytest.raises(UnreadableDocument, match=r'"bad.pdf" cannot be read: its PDF cannot be understood'):
        gather(tmp_path)
    gathered = gather(tmp_path, skip_unreadable=True)
    assert [chunk.source for chunk in gathered.chunks] == ["good.txt"]
    assert sorted(gathered.left_out) == ["bad.pdf", "empty.txt", "turn\x1b[2J.txt"]
    assert "name cannot be shown" in gathered.left_out["turn\x1b[2J.txt"]
    assert "no text in it" in gathered.left_out["empty.txt"]


def test_a_document_that_takes_too_long_ends_its_reader_and_nothing_else(reader: DocumentReader) -> None:
    assert reader.read("a.txt", b"before") == [Page(None, "before")]
    with pytest.raises(UnreadableDocument, match="more than 0 s"):
        reader.read("a.pdf", pdf([f"x) Tj {'(y) Tj ' * 400_000}(z"]))
    assert reader.read("a.txt", b"after") == [Page(None, "after")]


def refuse() -> None:
    raise EgressOpen("This process cannot be confined; report this.")


def test_a_process_that_cannot_be_closed_off_reads_nothing() -> None:
    """However large what it is given is."""
    with closing(DocumentReader(first=refuse)) as reader:
        for size in (1, 1 << 22):
            with pytest.raises(EgressOpen, match="cannot be confined"):
                reader.read("a.txt", b"x" * size)


def test_documents_of_every_kind_are_read_by_a_process_that_is_closed_off() -> None:
    """What their readers import, and look for, is no more than it may do."""
    for name, content in (("a.txt", b"Sun"), ("a.html", b"<p>Sun"), ("a.pdf", pdf(["Sun"])), ("a.docx", word(["Sun"]))):
        with closing(DocumentReader(first=close_off)) as reader:
            assert [page.text.strip() for page in reader.read(name, content)] == ["Sun"]


def test_a_document_that_takes_too_much_memory_is_refused() -> None:
    """A DOCX of 300 KB whose thumbnail, which is read like every part, decompresses to 240 MiB."""
    bomb = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(word(["small"]))) as before, zipfile.ZipFile(bomb, "w") as after:
        for name in before.namelist():
            content = bytes(240 << 20) if name == "docProps/thumbnail.jpeg" else before.read(name)
            after.writestr(name, content, zipfile.ZIP_DEFLATED, 1)
    with closing(DocumentReader(memory_bytes=1 << 29)) as reader:
        with pytest.raises(UnreadableDocument, match="it takes more than 512 MiB"):
            reader.read("a.docx", bomb.getvalue())
        assert reader.read("a.txt", b"after") == [Page(None, "after")]


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"\xc1", UnreadableDocument),
        (msgspec.msgpack.encode({"pages": [["one", "text"]]}), UnreadableDocument),
        (msgspec.msgpack.encode({"pages": [], "more": 1}), UnreadableDocument),
        (msgspec.msgpack.encode({"pages": [[0, "text"]]}), UnreadableDocument),
        (msgspec.msgpack.encode({"code": "unreadable-document", "reason": "x" * 1001}), UnreadableDocument),
        (msgspec.msgpack.encode({"code": "not-installed", "reason": "pypdf\x1b[2J"}), NotInstalled),
        (msgspec.msgpack.encode({"code": "untrusted-owner", "reason": "trust me"}), UnreadableDocument),
        (b"", UnreadableDocument),
        (b"\x91" * 100_000, UnreadableDocument),
    ],
    ids=["garbage", "type", "field", "page", "long", "reportable", "unreportable", "nothing", "deep"],
)
def test_what_a_reader_says_is_a_peers_word(said: bytes, error: type[Exception]) -> None:
    """It has been reading hostile bytes: nothing of it is unpickled, and no other error is raised by it."""
    with pytest.raises(error) as raised:
        pages_of(said)
    assert "\x1b" not in str(raised.value)
    assert len(str(raised.value)) < 500


def test_a_reader_that_was_taken_over_puts_no_controls_into_a_text() -> None:
    said = msgspec.msgpack.encode({"pages": [[1, "a\x1b[2Jb"]]})
    assert pages_of(said) == [Page(1, "a�[2Jb")]


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read any folder, so the system's refusal is made here."""
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def refusing(path: str) -> Iterator[os.DirEntry[str]]:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(UnreadableDocument, match=r"closed.* cannot be read: Permission denied"):
        gather(tmp_path, skip_unreadable=True)

"""What is read of documents, and what of a document is refused."""

import contextlib
import io
import re
import zipfile

import pytest

from confide.errors import UnreadableDocument
from confide.rag import documents
from confide.rag.documents import Page, read_document

from .made import pdf, word


def text_of(name: str, content: bytes) -> str:
    [page] = read_document(name, content)
    assert page.number is None
    return page.text


def test_plain_text_and_markdown_are_taken_as_they_are() -> None:
    assert text_of("a.txt", b"\xef\xbb\xbfone\r\ntwo\rthree") == "one\ntwo\nthree"
    assert text_of("A.MD", "# Grüße\n\n* eins".encode()) == "# Grüße\n\n* eins"


def test_no_control_character_comes_through() -> None:
    assert text_of("a.txt", b"a\x1b[2Jb\x00c\x7fd\te\n") == "a�[2Jb�c�d\te\n"


def test_html_is_what_a_reader_sees() -> None:
    page = (
        "<html><head><title>Tide</title><style>p {color: red}</style></head><body><!-- no --><h1>The sea</h1>"
        "<p>It <b>ri</b>ses&nbsp;&amp; falls.</p><script>alert('no')</script><p>Twice a day</p></body></html>"
    )
    lines = [line.strip() for line in text_of("a.html", page.encode()).split("\n") if line.strip()]
    assert lines == ["Tide", "The sea", "It rises\xa0& falls.", "Twice a day"]


def test_html_is_read_in_its_own_encoding() -> None:
    page = '<html><head><meta charset="iso-8859-1"></head><body><p>Grüße</p></body></html>'
    assert "Grüße" in text_of("a.htm", page.encode("latin-1"))
    assert "Grüße" in text_of("a.htm", "<p>Grüße</p>".encode())


def test_html_names_no_file_that_is_read() -> None:
    page = '<!DOCTYPE html [<!ENTITY passwd SYSTEM "file:///etc/passwd">]><p>See &passwd;</p>'
    assert "root:" not in text_of("a.html", page.encode())


def test_html_that_a_parser_gives_up_on_is_refused_whole() -> None:
    """Not read up to where that is, as if it ended there."""
    with pytest.raises(UnreadableDocument, match="nested too deep"):
        read_document("a.html", b"<div>" * 5000 + b"the end")


def test_a_pdf_is_read_page_by_page() -> None:
    assert read_document("a.pdf", pdf(["Tides rise", "and fall"])) == [Page(1, "Tides rise"), Page(2, "and fall")]


@pytest.mark.parametrize("content", [b"", b"%PDF-1.4\nno more", pdf(["cut"])[:200]], ids=["empty", "head", "cut"])
def test_what_is_no_pdf_is_refused(content: bytes) -> None:
    with pytest.raises(UnreadableDocument, match="cannot be understood"):
        read_document("a.pdf", content)


def test_a_pdf_with_too_many_pages_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_PAGES", 2)
    assert len(read_document("a.pdf", pdf(["1", "2"]))) == 2
    with pytest.raises(UnreadableDocument, match="more than 2 pages"):
        read_document("a.pdf", pdf(["1", "2", "3"]))


def test_an_encrypted_pdf_is_refused() -> None:
    encrypted = b"/Encrypt << /Filter /Standard /V 1 /R 2 /O (%s) /U (%s) /P -4 >> /ID [(a) (a)]" % (
        b"o" * 32,
        b"u" * 32,
    )
    with pytest.raises(UnreadableDocument, match="encrypted"):
        read_document("a.pdf", pdf(["secret"], encrypted))


def test_a_docx_is_read_with_its_tables_in_order() -> None:
    words = text_of("a.docx", word(["Tides", "rise"], ["high", "low"])).split()
    assert words == ["Tides", "rise", "high", "low"]


def test_a_docx_says_what_was_put_in_and_not_what_was_deleted() -> None:
    """With its changes tracked. Text boxes stand in it twice, and are read once."""
    changed = _edited(
        word(["Here"]),
        b"</w:p>",
        b"<w:ins><w:r><w:t> inserted</w:t></w:r></w:ins><w:del><w:r><w:delText> deleted</w:delText></w:r></w:del>"
        b'<w:r><mc:AlternateContent xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"><mc:Choice>'
        b"<w:t> boxed</w:t></mc:Choice><mc:Fallback><w:t> boxed</w:t></mc:Fallback></mc:AlternateContent></w:r></w:p>",
    )
    assert text_of("a.docx", changed).split() == ["Here", "inserted", "boxed"]


def test_a_docx_names_no_file_that_is_read() -> None:
    hostile = _edited(
        word(["Here"]), b"<w:document", b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><w:document'
    )
    hostile = _edited(hostile, b"Here", b"Here &e;")
    with contextlib.suppress(UnreadableDocument):
        assert "root:" not in text_of("a.docx", hostile)


def test_a_docx_that_decompresses_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = io.BytesIO(word(["small"]))
    with zipfile.ZipFile(bomb, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/media/large.bin", bytes(1 << 20))
    assert len(bomb.getvalue()) < 1 << 19
    assert text_of("a.docx", bomb.getvalue()).strip() == "small"
    monkeypatch.setattr(documents, "MAX_UNZIPPED_BYTES", 1 << 20)
    with pytest.raises(UnreadableDocument, match="decompresses to more"):
        read_document("a.docx", bomb.getvalue())
    monkeypatch.undo()
    monkeypatch.setattr(documents, "MAX_ZIP_ENTRIES", 5)
    with pytest.raises(UnreadableDocument, match="decompresses to more"):
        read_document("a.docx", bomb.getvalue())


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", word(["cut"])[:5000]], ids=["empty", "head", "cut"])
def test_what_is_no_docx_is_refused(content: bytes) -> None:
    with pytest.raises(UnreadableDocument, match="cannot be understood"):
        read_document("a.docx", content)


def test_a_docx_without_a_document_is_refused() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(UnreadableDocument, match="cannot be understood"):
        read_document("a.docx", out.getvalue())


def test_sizes_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_CHARACTERS", 10)
    assert text_of("a.txt", b"0123456789") == "0123456789"
    for name, content in (("a.txt", b"0123456789a"), ("a.pdf", pdf(["012345", "678901"]))):
        with pytest.raises(UnreadableDocument, match="more than 10 characters"):
            read_document(name, content)
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 5)
    with pytest.raises(UnreadableDocument, match="larger than"):
        read_document("a.txt", b"012345")


def test_other_kinds_and_other_encodings_are_refused() -> None:
    with pytest.raises(UnreadableDocument, match=re.escape(".docx")):
        read_document("a.exe", b"MZ")
    with pytest.raises(UnreadableDocument, match="no UTF-8"):
        read_document("a.txt", b"\xff\xfe")


def _edited(package: bytes, old: bytes, new: bytes) -> bytes:
    """A DOCX with the first such bytes of its document replaced."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(package)) as before, zipfile.ZipFile(out, "w") as after:
        for name in before.namelist():
            content = before.read(name)
            if name == "word/document.xml":
                assert old in content
                content = content.replace(old, new, 1)
            after.writestr(name, content)
    return out.getvalue()

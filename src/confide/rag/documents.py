"""The text of documents: plain text, Markdown, HTML, PDF and DOCX, page by page where there are pages.

Documents may be hostile. Sizes, pages and what is decompressed are bounded here; time and memory are by the process
that this runs in, see `confide.rag.reading`. Where a parser says that it stopped early, the document is refused.
"""

import io
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

from lxml import etree
from lxml.html import defs

from confide.errors import UnreadableDocument
from confide.extras import named_extras
from confide.printable import REPLACEMENT

MAX_DOCUMENT_BYTES: Final = 64 << 20
MAX_PAGES: Final = 10_000
MAX_CHARACTERS: Final = 16 << 20
"""Of one document's text."""
MAX_UNZIPPED_BYTES: Final = 256 << 20
MAX_ZIP_ENTRIES: Final = 4096
_UNSEEN: Final = ("script", "style", "template", "noscript")
_BLOCKS: Final = (defs.block_tags - {"del", "ins"}) | {
    *("article", "aside", "br", "details", "dialog", "figcaption", "figure", "footer"),
    *("header", "main", "nav", "section", "summary", "title"),
}
"""Elements that stand on lines of their own."""
_WORD: Final = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_FALLBACK: Final = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_WORD_SPACE: Final = {f"{_WORD}p": "\n\n", f"{_WORD}br": "\n", f"{_WORD}cr": "\n", f"{_WORD}tab": "\t"}
_LINE_END: Final = re.compile(r"\r\n|[\r\f\v]")
_CONTROLS: Final = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class Page:
    """Text as it stands on a page. number: from 1; None where the format has no pages."""

    number: int | None
    text: str


def read_document(name: str, content: bytes) -> list[Page]:
    """The text of a document, by the ending of its name. UnreadableDocument, with the reason, for what cannot be read.

    NotInstalled where the library for its kind is missing.
    """
    reader = _READERS.get(PurePath(name).suffix.lower())
    if reader is None:
        raise UnreadableDocument.because(f"it is none of {', '.join(sorted(_READERS))}")
    if len(content) > MAX_DOCUMENT_BYTES:
        raise UnreadableDocument.because(f"it is larger than {MAX_DOCUMENT_BYTES >> 20} MiB")
    pages, left = [], MAX_CHARACTERS
    for page in reader(content):
        left -= len(page.text)
        if left < 0:
            raise UnreadableDocument.because(f"it has more than {MAX_CHARACTERS:,} characters")
        pages.append(Page(page.number, clean(page.text)))
    return pages


def is_readable(name: str) -> bool:
    """Whether a file of this name is of a kind that is read."""
    return PurePath(name).suffix.lower() in _READERS


def _read_text(content: bytes) -> Iterator[Page]:
    try:
        yield Page(None, content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise UnreadableDocument.because("it is no UTF-8 text") from None


def _read_html(content: bytes) -> Iterator[Page]:
    try:
        content.decode("utf-8-sig")
        encoding = "utf-8"
    except UnicodeDecodeError:
        encoding = None  # as the page itself says
    parser = etree.HTMLParser(encoding=encoding, no_network=True, remove_comments=True, remove_pis=True)
    try:
        tree = etree.fromstring(content, parser)
    except (etree.LxmlError, ValueError) as error:
        raise UnreadableDocument.because("it is no HTML") from error
    if any(entry.level == etree.ErrorLevels.FATAL for entry in parser.error_log):
        # The parser stops there, and gives what came before as if it were all.
        raise UnreadableDocument.because("its HTML is nested too deep, or broken beyond repair")
    yield Page(None, "" if tree is None else "".join(_seen(tree)))


def _seen(tree: etree._Element) -> Iterator[str]:
    """What stands in it, with elements of their own lines on such."""
    walk = etree.iterwalk(tree, events=("start", "end"))
    for event, element in walk:
        if element.tag in _BLOCKS:
            yield "\n"
        if event == "end":
            yield element.tail or ""
        elif element.tag in _UNSEEN:
            walk.skip_subtree()
        else:
            yield element.text or ""


def _read_pdf(content: bytes) -> Iterator[Page]:
    with named_extras():
        from pypdf import PdfReader, apply_configuration
    # No other program is started, whatever is installed.
    with apply_configuration(jbig2dec_binary=None):
        try:
            reader = PdfReader(io.BytesIO(content))
            if reader.is_encrypted:
                raise UnreadableDocument.because("it is encrypted; decrypt it first")
            if len(reader.pages) > MAX_PAGES:
                raise UnreadableDocument.because(f"it has more than {MAX_PAGES:,} pages")
            for number, page in enumerate(reader.pages, start=1):
                yield Page(number, page.extract_text())
        except (UnreadableDocument, MemoryError):
            raise
        except Exception as error:  # the library raises what it stumbles over
            raise UnreadableDocument.because(f"its PDF cannot be understood ({type(error).__name__})") from error


def _read_docx(content: bytes) -> Iterator[Page]:
    """Paragraphs, tables and text boxes of the body. What was deleted with its changes tracked is left out."""
    with named_extras():
        from docx import Document
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
        if len(entries) > MAX_ZIP_ENTRIES or sum(entry.file_size for entry in entries) > MAX_UNZIPPED_BYTES:
            raise UnreadableDocument.because("it decompresses to more than a document has")
        body = Document(io.BytesIO(content)).element.body
        yield Page(None, "".join(_words(body)))
    except (UnreadableDocument, MemoryError):
        raise
    except Exception as error:  # so does this one
        raise UnreadableDocument.because(f"its DOCX cannot be understood ({type(error).__name__})") from error


def _words(body: etree._Element) -> Iterator[str]:
    walk = etree.iterwalk(body, events=("start",))
    for _, element in walk:
        if element.tag == _FALLBACK:
            walk.skip_subtree()  # the same once more, for older programs
        elif element.tag == f"{_WORD}t":
            yield element.text or ""
        else:
            yield _WORD_SPACE.get(element.tag, "")


def clean(text: str) -> str:
    """Plain line ends, and U+FFFD for halves of characters and controls, which no text needs and a terminal obeys."""
    return _CONTROLS.sub(REPLACEMENT, _LINE_END.sub("\n", text))


Reader = Callable[[bytes], Iterable[Page]]
_READERS: Final[Mapping[str, Reader]] = {
    **dict.fromkeys((".txt", ".text", ".md", ".markdown"), _read_text),
    **dict.fromkeys((".html", ".htm"), _read_html),
    ".pdf": _read_pdf,
    ".docx": _read_docx,
}
"""By the ending of a file's name, in small letters."""

"""A folder of documents, each read by a process apart, as chunks."""

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from confide.disk.files import FileTooLarge, read_bounded
from confide.errors import ConfideError, UnreadableDocument
from confide.packages.sealed.corpus import Chunk
from confide.printable import printable, quoted
from confide.rag.chunks import cut
from confide.rag.documents import MAX_DOCUMENT_BYTES, is_readable
from confide.rag.reader import DocumentReader

MAX_DOCUMENTS: Final = 100_000
_MAX_NAME: Final = 1024


@dataclass(frozen=True)
class Gathered:
    """What a folder became. left_out: files that no chunk is from, and why, by their names in the folder."""

    chunks: tuple[Chunk, ...]
    left_out: dict[str, str]


def gather(
    folder: Path,
    *,
    skip_unreadable: bool = False,
    first: Callable[[], object] | None = None,
    on_document: Callable[[str], None] = lambda name: None,
) -> Gathered:
    """The chunks of all documents in a folder and below it, in the order of their names.

    Links, hidden files and folders, and files of other kinds are left out. A document that cannot be read raises
    UnreadableDocument, or is left out with skip_unreadable. first: see `DocumentReader`. on_document: told each name
    before it is read.
    """
    chunks: list[Chunk] = []
    left_out: dict[str, str] = {}
    with closing(DocumentReader(first=first)) as reader:
        for count, path in enumerate(_files(folder), start=1):
            if count > MAX_DOCUMENTS:
                raise ConfideError(f"{folder} has more than {MAX_DOCUMENTS:,} files; build several corpora.")
            name = path.relative_to(folder).as_posix()
            if path.is_symlink() or not path.is_file():
                left_out[name] = "no file, or a link"
            elif not is_readable(name):
                left_out[name] = "of another kind"
            else:
                on_document(name)
                try:
                    chunks += chunks_of(reader, name, _read(path))
                except UnreadableDocument as error:
                    if not skip_unreadable:
                        raise UnreadableDocument.because(error.reason, quoted(name)) from error
                    left_out[name] = error.reason
    return Gathered(tuple(chunks), left_out)


def chunks_of(reader: DocumentReader, name: str, content: bytes) -> list[Chunk]:
    """The chunks of a document, at least one. UnreadableDocument; NotInstalled."""
    if printable(name) != name or not 0 < len(name) <= _MAX_NAME:
        raise UnreadableDocument.because("its name cannot be shown; rename it")
    chunks = list(cut(name, reader.read(name, content)))
    if not chunks:
        raise UnreadableDocument.because("there is no text in it; pages that are pictures need text recognition first")
    return chunks


def _read(path: Path) -> bytes:
    try:
        return read_bounded(path, MAX_DOCUMENT_BYTES)
    except FileTooLarge:
        raise UnreadableDocument.because(f"it is larger than {MAX_DOCUMENT_BYTES >> 20} MiB") from None
    except OSError as error:
        raise UnreadableDocument.because(error.strerror or "the system refuses") from error


def _files(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise UnreadableDocument.because(error.strerror or "the system refuses", quoted(str(error.filename))) from error

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(names) if not name.startswith("."))
        yield from (Path(place, name) for name in folders if Path(place, name).is_symlink())

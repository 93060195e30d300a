"""A folder of documents, each read by a process that has little time, little memory, and writes no file.

Parsers of such formats have faults, and documents come from anywhere. What that process says is bounded and typed, as
any peer's words are: it has been reading hostile bytes.
"""

import multiprocessing
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Final

import msgspec

from confide.disk.files import FileTooLarge, read_bounded
from confide.errors import ConfideError, NotInstalled, UnreadableDocument
from confide.packages.sealed.corpus import Chunk, PageNumber
from confide.printable import printable, quoted
from confide.rag.chunks import cut
from confide.rag.documents import MAX_CHARACTERS, MAX_DOCUMENT_BYTES, MAX_PAGES, Page, clean, is_readable, read_document

SECONDS: Final = 60
"""Of a processor, for one document."""
MEMORY_BYTES: Final = 2 << 30
MAX_DOCUMENTS: Final = 100_000
_MAX_NAME: Final = 1024
_SILENT_SECONDS: Final = 600.0
"""Without an answer: a process that waits uses no processor."""
_GRIEF: Final = "its reader came to grief"
_MAX_ANSWER_BYTES: Final = 4 * MAX_CHARACTERS + 16 * MAX_PAGES

_Page = tuple[PageNumber | None, str]


class _Answer(msgspec.Struct, forbid_unknown_fields=True):
    pages: Annotated[list[_Page], msgspec.Meta(max_length=MAX_PAGES)] = []
    code: str = ""
    reason: Annotated[str, msgspec.Meta(max_length=1000)] = ""


class DocumentReader:
    """Reads documents in another process, which is started anew after one that was too much for it. To be closed."""

    def __init__(self, seconds: int = SECONDS, memory_bytes: int = MEMORY_BYTES) -> None:
        self._limits = seconds, memory_bytes
        self._running: tuple[multiprocessing.process.BaseProcess, Connection] | None = None

    def read(self, name: str, content: bytes) -> list[Page]:
        """As `read_document`; UnreadableDocument also for what takes too much time or memory."""
        if self._running is None:
            self._running = self._start()
        process, pipe = self._running
        try:
            pipe.send_bytes(name.encode())
            pipe.send_bytes(content)
            if not pipe.poll(_SILENT_SECONDS):
                raise EOFError
            said = pipe.recv_bytes(_MAX_ANSWER_BYTES)
        except (OSError, EOFError):
            self.close()
            seconds, memory = self._limits
            raise UnreadableDocument.because(
                f"reading it takes more than {seconds} s or {memory >> 20} MiB"
                if process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
                else _GRIEF
            ) from None
        return pages_of(said)

    def close(self) -> None:
        """End the process."""
        if self._running is not None:
            process, pipe = self._running
            self._running = None
            pipe.close()
            process.kill()
            process.join()

    def _start(self) -> tuple[multiprocessing.process.BaseProcess, Connection]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, *self._limits), daemon=True)
        process.start()
        theirs.close()
        return process, ours


def pages_of(said: bytes) -> list[Page]:
    """What the process that reads says of a document, in MessagePack. UnreadableDocument, NotInstalled."""
    try:
        answer = msgspec.msgpack.decode(said, type=_Answer)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise UnreadableDocument.because(_GRIEF) from None
    if answer.code:
        reason = printable(answer.reason)
        raise NotInstalled(reason) if answer.code == NotInstalled.code else UnreadableDocument.because(reason)
    # Cleaned once more: what reads hostile bytes may have been taken over, and says what it likes.
    return [Page(number, clean(text)) for number, text in answer.pages]


def _work(pipe: Connection, seconds: int, memory_bytes: int) -> None:
    """In that process: one document after the other, until nobody sends any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this decides
    _limit(resource.RLIMIT_AS, memory_bytes)
    _limit(resource.RLIMIT_FSIZE, 0)
    while True:
        try:
            name, content = pipe.recv_bytes().decode(), pipe.recv_bytes(MAX_DOCUMENT_BYTES + 1)
        except EOFError:
            return
        used = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + seconds)
        try:
            answer = _Answer([(page.number, page.text) for page in read_document(name, content)])
        except UnreadableDocument as error:
            answer = _Answer(code=error.code, reason=error.reason)
        except NotInstalled as error:
            answer = _Answer(code=error.code, reason=str(error))
        except MemoryError:
            answer = _Answer(code=UnreadableDocument.code, reason=f"it takes more than {memory_bytes >> 20} MiB")
        pipe.send_bytes(msgspec.msgpack.encode(answer))


def _limit(what: int, most: int) -> None:
    """For good, but for time, of which the next document gets more."""
    hard = resource.getrlimit(what)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (most, hard if what == resource.RLIMIT_CPU else most))


@dataclass(frozen=True)
class Gathered:
    """What a folder became. left_out: files that no chunk is from, and why, by their names in the folder."""

    chunks: tuple[Chunk, ...]
    left_out: dict[str, str]


def gather(
    folder: Path, *, skip_unreadable: bool = False, on_document: Callable[[str], None] = lambda name: None
) -> Gathered:
    """The chunks of all documents in a folder and below it, in the order of their names.

    Links, hidden files and folders, and files of other kinds are left out. A document that cannot be read raises
    UnreadableDocument, or is left out with skip_unreadable. on_document: told each name before it is read.
    """
    chunks: list[Chunk] = []
    left_out: dict[str, str] = {}
    with closing(DocumentReader()) as reader:
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
                    chunks += _of_document(reader, name, path)
                except UnreadableDocument as error:
                    if not skip_unreadable:
                        raise UnreadableDocument.because(error.reason, quoted(name)) from error
                    left_out[name] = error.reason
    return Gathered(tuple(chunks), left_out)


def _of_document(reader: DocumentReader, name: str, path: Path) -> list[Chunk]:
    if printable(name) != name or len(name) > _MAX_NAME:
        raise UnreadableDocument.because("its name cannot be shown; rename it")
    try:
        content = read_bounded(path, MAX_DOCUMENT_BYTES)
    except FileTooLarge:
        raise UnreadableDocument.because(f"it is larger than {MAX_DOCUMENT_BYTES >> 20} MiB") from None
    except OSError as error:
        raise UnreadableDocument.because(error.strerror or "the system refuses") from error
    chunks = list(cut(name, reader.read(name, content)))
    if not chunks:
        raise UnreadableDocument.because("there is no text in it; pages that are pictures need text recognition first")
    return chunks


def _files(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise UnreadableDocument.because(error.strerror or "the system refuses", quoted(str(error.filename))) from error

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(names) if not name.startswith("."))
        yield from (Path(place, name) for name in folders if Path(place, name).is_symlink())

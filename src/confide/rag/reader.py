"""A process that reads one document after the other, has little time, little memory, and writes no file.

Parsers of such formats have faults, and documents come from anywhere. What that process says is bounded and typed, as
any peer's words are: it has been reading hostile bytes. It has one thread, and so imports no numpy.
"""

import multiprocessing
import resource
import signal
from collections.abc import Callable
from contextlib import closing
from multiprocessing.connection import Connection
from typing import Annotated, Final

import msgspec

from confide.errors import ConfideError, EgressOpen, NotInstalled, UnreadableDocument
from confide.printable import printable
from confide.rag.documents import MAX_CHARACTERS, MAX_DOCUMENT_BYTES, MAX_PAGES, Page, clean, read_document

SECONDS: Final = 60
"""Of a processor, for one document."""
MEMORY_BYTES: Final = 2 << 30
_SILENT_SECONDS: Final = 600.0
"""Without an answer: a process that waits uses no processor."""
_MAX_REASON: Final = 1000
_GRIEF: Final = "its reader came to grief"
_MAX_ANSWER_BYTES: Final = 4 * MAX_CHARACTERS + 16 * MAX_PAGES

_Page = tuple[Annotated[int, msgspec.Meta(ge=1, le=MAX_PAGES)] | None, str]


class _Answer(msgspec.Struct, forbid_unknown_fields=True):
    pages: Annotated[list[_Page], msgspec.Meta(max_length=MAX_PAGES)] = []
    code: str = ""
    reason: Annotated[str, msgspec.Meta(max_length=_MAX_REASON)] = ""


class DocumentReader:
    """Reads documents in another process, which is started anew after one that was too much for it. To be closed.

    One that a document has taken over may lie about those that come after it: who reads for several people takes one
    for each document.
    """

    def __init__(
        self, seconds: int = SECONDS, memory_bytes: int = MEMORY_BYTES, first: Callable[[], object] | None = None
    ) -> None:
        """first: what that process does before it reads anything, a function of a module; where it fails, none is."""
        self._limits, self._first = (seconds, memory_bytes), first
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
        process = context.Process(target=_work, args=(theirs, *self._limits, self._first), daemon=True)
        process.start()
        theirs.close()
        return process, ours


def try_out(first: Callable[[], object]) -> None:
    """See that a process that does this first can read. Raises what it raises."""
    with closing(DocumentReader(first=first)) as reader:
        reader.read("try.txt", b"A document, to see that one can be read.")


def pages_of(said: bytes) -> list[Page]:
    """What the process that reads says of a document, in MessagePack. UnreadableDocument, NotInstalled, EgressOpen."""
    try:
        answer = msgspec.msgpack.decode(said, type=_Answer)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise UnreadableDocument.because(_GRIEF) from None
    if answer.code:
        reason = printable(answer.reason)
        kind = {one.code: one for one in (NotInstalled, EgressOpen)}.get(answer.code)
        raise kind(reason) if kind else UnreadableDocument.because(reason)
    # Cleaned once more: what reads hostile bytes may have been taken over, and says what it likes.
    return [Page(number, clean(text)) for number, text in answer.pages]


def _work(pipe: Connection, seconds: int, memory_bytes: int, first: Callable[[], object] | None) -> None:
    """In that process: one document after the other, until nobody sends any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this decides
    refused = None
    try:
        if first is not None:
            first()
    except ConfideError as error:
        refused = _Answer(code=error.code, reason=str(error)[:_MAX_REASON])
    _limit(resource.RLIMIT_AS, memory_bytes)
    _limit(resource.RLIMIT_FSIZE, 0)
    while True:
        try:
            name, content = pipe.recv_bytes().decode(), pipe.recv_bytes(MAX_DOCUMENT_BYTES + 1)
        except EOFError:
            return
        if refused is not None:
            pipe.send_bytes(msgspec.msgpack.encode(refused))
            continue
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

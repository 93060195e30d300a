"""A ledger in a database, kept by a process of its own, for one that opens no connections.

libpq connects by itself, which a process that has closed its ways out cannot (see `confide.enclave.egress`). So it
starts a keeper before, which has the database, and tells it over Unix sockets what to do there. The keeper does what
a `Store` does and knows one database; what it is told reaches that, which the statement says.
"""

import ctypes
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any, Final, Literal, NoReturn

import msgspec

from confide.errors import ConfideError, InvalidSettings, LedgerCorrupted, LedgerInUse, LedgerUnavailable, NotInstalled
from confide.ledger.address import DatabaseAddress
from confide.ledger.opening import open_store
from confide.ledger.store import Row, Store

CHANNELS: Final = 4
"""For statements and transactions; one more is for announcements."""
_START_SECONDS: Final = 60.0
"""To load a library and reach the database, on a machine that is busy."""
SILENT_SECONDS: Final = 30.0
"""Without an answer: the database's own limits are shorter."""
_TURN_SECONDS: Final = 5.0
"""To wait for a channel that nobody else uses."""
_MAX_BYTES: Final = 1 << 26
_PR_SET_DUMPABLE: Final = 4


class _Call(msgspec.Struct, tag=True, forbid_unknown_fields=True):
    """A method of `Store`, with its arguments in order."""

    method: Literal["query", "write", "create", "now", "identity", "announce", "wait"]
    arguments: list[Any]


class _Begin(msgspec.Struct, tag=True, forbid_unknown_fields=True):
    """A transaction, for these licences or for all; or a snapshot, which only reads."""

    licences: list[bytes] | None = None
    snapshot: bool = False


class _End(msgspec.Struct, tag=True, forbid_unknown_fields=True):
    """Of the channel's transaction. keep: what it wrote."""

    keep: bool


class _Answer(msgspec.Struct, forbid_unknown_fields=True):
    value: Any = None
    code: str = ""
    reason: str = ""


_KINDS: Final = {
    kind.code: kind for kind in (LedgerUnavailable, LedgerCorrupted, LedgerInUse, InvalidSettings, NotInstalled)
}
_encode = msgspec.msgpack.encode


class KeptStore(Store):
    """The database of a process that this one starts, and that ends with it. Raises what `open_store` does."""

    mark = "%s"

    def __init__(self, address: DatabaseAddress) -> None:
        super().__init__(str(address))
        self._own = threading.local()
        ours, theirs = zip(*(socket.socketpair() for _ in range(CHANNELS + 1)), strict=True)
        self._channels = [Connection(one.detach()) for one in ours]
        self._free: queue.LifoQueue[Connection] = queue.LifoQueue()
        try:
            numbers = [one.fileno() for one in theirs]
            # Signals that end this process's group are not the keeper's: there is something to record first.
            self._process = subprocess.Popen(  # noqa: S603 - our own module, and not of the folder that we happen to be in
                [sys.executable, "-P", "-m", "confide.ledger.keeper", str(address), *map(str, numbers)],
                pass_fds=numbers,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        finally:
            for one in theirs:
                one.close()
        try:
            self._receive(self._channels[0], _START_SECONDS)
        except BaseException:
            self.close()
            raise
        self._hearing, *rest = self._channels
        for channel in rest:
            self._free.put(channel)

    def __repr__(self) -> str:
        return f"KeptStore({self.place})"

    # -- what is said ------------------------------------------------------------------------------------------

    def _exchange(self, channel: Connection, message: _Call | _Begin | _End) -> Any:
        try:
            channel.send_bytes(_encode(message))
        except OSError:
            self._drop(channel)
        return self._receive(channel, SILENT_SECONDS)

    def _receive(self, channel: Connection, seconds: float) -> Any:
        """The next answer. A channel whose answer did not come whole is not used again."""
        try:
            if not channel.poll(seconds):
                raise EOFError
            answer = msgspec.msgpack.decode(channel.recv_bytes(_MAX_BYTES), type=_Answer)
        except (OSError, EOFError, msgspec.MsgspecError, RecursionError):
            self._drop(channel)
        except BaseException:
            channel.close()
            raise
        if answer.code:
            raise _KINDS.get(answer.code, LedgerUnavailable)(answer.reason)
        return answer.value

    def _drop(self, channel: Connection) -> NoReturn:
        channel.close()
        raise self._gone()

    @property
    def over(self) -> bool:
        """Whether there is no keeper any more, or no channel to it."""
        return self._process.poll() is not None or all(channel.closed for channel in self._channels[1:])

    def _gone(self) -> LedgerUnavailable:
        return LedgerUnavailable(
            f"The process that keeps the ledger {self.place} has ended or does not answer, and no other can be "
            "started by one whose ways out are closed; start this server again. Nothing was answered and no token "
            "billed."
        )

    @contextmanager
    def _borrowed(self) -> Iterator[Connection]:
        """A channel that no other thread uses meanwhile."""
        try:
            channel = self._free.get(block=not self.over, timeout=_TURN_SECONDS)
        except queue.Empty:
            if self.over:
                raise self._gone() from None
            raise LedgerUnavailable(f"The ledger {self.place} is asked for too much at once; try again.") from None
        try:
            yield channel
        finally:
            if not channel.closed:
                self._free.put(channel)

    def _call(self, method: str, *arguments: Any) -> Any:
        message = _Call(method, list(arguments))  # type: ignore[arg-type]
        own: Connection | None = getattr(self._own, "channel", None)
        if own is not None:
            return self._exchange(own, message)
        with self._borrowed() as channel:
            return self._exchange(channel, message)

    @contextmanager
    def _within(self, begin: _Begin) -> Iterator[None]:
        """This thread's statements are its transaction's."""
        with self._borrowed() as channel:
            self._exchange(channel, begin)
            self._own.channel = channel
            try:
                yield
            except BaseException:
                with suppress(LedgerUnavailable):
                    self._exchange(channel, _End(keep=False))
                raise
            finally:
                self._own.channel = None
            self._exchange(channel, _End(keep=True))

    # -- as Store says -----------------------------------------------------------------------------------------

    def query(self, statement: str, values: Sequence[Any]) -> list[Row]:
        found: list[Row] = self._call("query", statement, values)
        return found

    def write(self, table: str, columns: Sequence[str], conflict: str, rows: Sequence[Row]) -> None:
        self._call("write", table, columns, conflict, rows)

    def create(self, table: str) -> None:
        self._call("create", table)

    def transaction(self, licences: Iterable[bytes] | None = None) -> AbstractContextManager[None]:
        return self._within(_Begin(None if licences is None else list(licences)))

    def snapshot(self) -> AbstractContextManager[None]:
        return self._within(_Begin(snapshot=True))

    def now(self) -> float:
        return float(self._call("now"))

    def identity(self) -> bytes:
        found: bytes = self._call("identity")
        return found

    def announce(self, licence: bytes) -> None:
        self._call("announce", licence)

    def wait(self, seconds: float) -> set[bytes]:
        if self._woken.is_set():
            return set()
        return set(self._exchange(self._hearing, _Call("wait", [seconds])))

    def close(self) -> None:
        for channel in self._channels:
            channel.close()
        try:
            self._process.wait(SILENT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


# -- in the keeper's process -----------------------------------------------------------------------------------


class _Abandoned(Exception):
    """A transaction is not to be kept."""


def _keep(address: str, channels: Sequence[Connection]) -> None:
    """Until nobody asks any more."""
    try:
        store = open_store(DatabaseAddress.parse(address), serving=True)
    except ConfideError as error:
        channels[0].send_bytes(_encode(_failed(error)))
        return
    with closing(store):
        threads = [threading.Thread(target=_serve, args=(channel, store)) for channel in channels]
        channels[0].send_bytes(_encode(_Answer()))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _serve(channel: Connection, store: Store) -> None:
    with channel, suppress(EOFError, OSError):
        _answer(channel, store)


def _next(channel: Connection) -> _Call | _Begin | _End:
    """EOFError where nobody asks any more, or what is asked is nothing that this program asks."""
    try:
        return msgspec.msgpack.decode(channel.recv_bytes(_MAX_BYTES), type=_Call | _Begin | _End)
    except (msgspec.MsgspecError, RecursionError):
        raise EOFError from None


def _answer(channel: Connection, store: Store) -> bool:
    """What comes, until a transaction ends: whether it is to be kept. Raises what `_next` does."""
    while True:
        message = _next(channel)
        if isinstance(message, _End):
            return message.keep
        try:
            if isinstance(message, _Call):
                answer = _Answer(getattr(store, message.method)(*message.arguments))
            else:
                with store.snapshot() if message.snapshot else store.transaction(message.licences):
                    channel.send_bytes(_encode(_Answer()))
                    if not _answer(channel, store):
                        raise _Abandoned
                answer = _Answer()
        except _Abandoned:
            answer = _Answer()
        except ConfideError as error:
            answer = _failed(error)
        channel.send_bytes(_encode(answer))


def _failed(error: ConfideError) -> _Answer:
    return _Answer(code=error.code, reason=str(error))


if __name__ == "__main__":
    for ending in (signal.SIGINT, signal.SIGTERM):  # it ends with the process that started it, and not before
        signal.signal(ending, signal.SIG_IGN)
    os.chdir("/")
    # No other process of this user may look into this one, or write to it.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    _keep(sys.argv[1], [Connection(int(number)) for number in sys.argv[2:]])

"""The audit log of key releases: JSON lines, chained by hashes, each on the disk before its answer leaves.

A line's hash is SHA-256 over the hash of the line before and the bytes of its own entry, which are RFC 8785's. So a
line that is changed, removed or moved breaks the chain from there on. Lines cut off at the end leave a chain that is
whole: that is found only with the hash of a later line, the head, kept somewhere else. And whoever can write the file
can write all of it anew; against that, too, a head kept elsewhere helps. A last line without its end is what a crash
leaves; its answer never left.

Several processes may write one log. Each takes the file's lock for a line, follows the chain over what the others wrote
since, and only then adds to it.
"""

import fcntl
import logging
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Annotated, Final, Literal

import msgspec
import rfc8785

from confide.attest.check import Check
from confide.attest.wire import Record
from confide.disk.chained import GENESIS, next_line, read_line
from confide.disk.files import create_file, lock_file, sync_folder
from confide.errors import AuditLogCorrupted, AuditLogInUse, AuditLogUnavailable

LOG_NAME: Final = "audit.jsonl"
LOCK_SECONDS: Final = 10.0
_PURPOSE: Final = b"confide audit log 1\0"
_LEFT: Final = "entry-"
_log = logging.getLogger(__name__)


class Entry(Record, frozen=True):
    """What was decided, and on what grounds.

    key, model: the key's id and the digest of its model. policy: its digest, see `policy_digest`. nonce: what the
    evidence was made for. statement: the digest of what the workload says of itself, its channel key included, as the
    hardware signs it. evidence: SHA-256 of the evidence in RFC 8785's JSON. peer: the address that asked, which may be
    a proxy's. collateral: until when it is valid, how old it is and who chose it. failed: the checks that
    did not pass. recovered: bytes of a torn last line that were cut off before this. replaced: the digest of the policy
    that the key had before, where it was changed. until: where two versions are allowed from then on, the old one's
    end.
    """

    at: Annotated[datetime, msgspec.Meta(tz=True)]
    event: Literal["released", "refused", "recovered", "changed"]
    key: str = ""
    model: str = ""
    policy: str = ""
    family: str = ""
    simulated: bool = False
    nonce: str = ""
    statement: str = ""
    evidence: str = ""
    peer: str = ""
    collateral: str = ""
    failed: tuple[Check, ...] = ()
    recovered: int = 0
    replaced: str = ""
    until: Annotated[datetime, msgspec.Meta(tz=True)] | None = None


class Line(Record, frozen=True):
    """An entry in its place. hash: of all up to here, in hexadecimal. written: the entry's bytes, as they stand there.

    Those bytes are hashed, and no encoder's idea of them: a log outlives versions of everything.
    """

    entry: Entry
    hash: str
    written: bytes


@dataclass
class LogReader:
    """Reads a log from its beginning, or on from where it was, and checks it on the way.

    Of what was read so far: entries, head, the hash of the last line, and offset, the bytes up to its end. torn: bytes
    of a torn line after that.
    """

    path: Path
    entries: int = 0
    head: str = GENESIS.hex()
    offset: int = 0
    torn: int = 0

    def __iter__(self) -> Iterator[Line]:
        """The lines from there on. AuditLogCorrupted at the first that is not what was written in its place.

        AuditLogUnavailable where the file is missing or cannot be read.
        """
        self.torn = 0
        for raw in self._raw_lines():
            if not raw.endswith(b"\n"):
                self.torn = len(raw)
                return
            line = _parse(raw)
            if line is None or line.hash != next_line(_PURPOSE, self.head, line.written).hash:
                raise AuditLogCorrupted(
                    f"Line {self.entries + 1} of {self.path} is not what was written there, or lines before it are "
                    "missing; keep the file for an investigation, and trust nothing from this line on."
                )
            self.passed(line.hash, len(raw))
            yield line

    def passed(self, head: str, size: int) -> None:
        """One line more is read, of so many bytes, or was just written."""
        self.entries, self.head, self.offset = self.entries + 1, head, self.offset + size

    def _raw_lines(self) -> Iterator[bytes]:
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                yield from file
        except OSError as error:
            raise AuditLogUnavailable(
                f"There is no log to be read at {self.path} ({error.strerror}); `confide keys serve` writes one."
            ) from error


def verify(path: Path, head: str | None = None) -> LogReader:
    """Check the whole log. head: a hash kept from earlier, which must be that of a line, or of no line at all."""
    reader = LogReader(path)
    seen = head is None or head == reader.head
    for line in reader:
        seen = seen or line.hash == head
    if not seen:
        raise AuditLogCorrupted(
            f"{path} does not hold the line with the hash {head}: lines at its end were cut off, or it was written "
            "anew; keep the file for an investigation."
        )
    return reader


def leave_entry(folder: Path, entry: Entry) -> None:
    """Have whoever writes the log of this folder next write this entry. It is on the disk when this returns.

    For what the owner does beside a broker that runs. AuditLogUnavailable where it cannot be written.
    """
    name = f"{_LEFT}{time.time_ns():020d}-{secrets.token_hex(4)}.json"
    try:
        create_file(folder / name, rfc8785.dumps(msgspec.to_builtins(entry)))
    except OSError as error:
        raise AuditLogUnavailable(f"{folder} cannot be written ({error.strerror}); make room on its disk.") from error


class AuditLog:
    """The log of one folder, open for writing. Safe for several processes and threads."""

    def __init__(self, folder: Path, now: datetime) -> None:
        """Checks all of it, and cuts off a torn last line. AuditLogInUse, AuditLogCorrupted, AuditLogUnavailable."""
        self.path = folder / LOG_NAME
        self._chain = LogReader(self.path)
        self._lock = Lock()
        self._file = self._open()
        try:
            self.take_left(now)
        except BaseException:
            self.close()
            raise

    @property
    def head(self) -> str:
        """The hash of the last line that this process has seen, in hexadecimal, to keep elsewhere."""
        return self._chain.head

    def append(self, entry: Entry) -> None:
        """Write an entry and wait for the disk. AuditLogUnavailable, and no trace of it, where that fails.

        AuditLogCorrupted where the file is not one that processes like this left. AuditLogInUse where another has it
        for too long.
        """
        with self._locked(entry.at):
            self._write(entry)

    def take_left(self, now: datetime) -> None:
        """Write what `leave_entry` has left, oldest first. AuditLogCorrupted for what is no entry."""
        with self._locked(now):
            for path in sorted(self.path.parent.glob(f"{_LEFT}*.json")):
                try:
                    entry = msgspec.json.decode(path.read_bytes(), type=Entry)
                except (OSError, ValueError, RecursionError) as error:
                    raise AuditLogCorrupted(f"{path} is no entry for the log; look into it, and remove it.") from error
                self._write(entry)
                path.unlink()
                sync_folder(path.parent)

    @contextmanager
    def _locked(self, now: datetime) -> Iterator[None]:
        """Nobody else writes meanwhile, and the chain's head is that of the file's end."""
        with self._lock:
            if self._file < 0:
                raise AuditLogUnavailable(f"{self.path} is closed, and no key leaves any more; start again.")
            try:
                # The lock is on the file that is written, not on one beside it that could be another by then.
                locked = lock_file(self._file, LOCK_SECONDS)
            except OSError as error:
                raise AuditLogUnavailable(
                    f"{self.path} cannot be locked ({error.strerror}); have it on a file system that has locks. No "
                    "key leaves without its line."
                ) from error
            if not locked:
                raise AuditLogInUse(
                    f"Another process has held {self.path} for {LOCK_SECONDS:.0f} seconds; find it. No key leaves "
                    "without its line."
                )
            try:
                self._catch_up(now)
                yield
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def _catch_up(self, now: datetime) -> None:
        """Follow the chain over what other processes wrote, and cut off what a crash of one of them left."""
        self._require_ours()
        for _ in self._chain:
            pass
        if torn := self._chain.torn:
            _log.warning("The last line of %s was torn by a crash; its answer never left. Cut off.", self.path)
            try:
                os.ftruncate(self._file, self._chain.offset)
            except OSError as error:
                raise self._unwritable(error) from error
            self._write(Entry(now, "recovered", recovered=torn))

    def _write(self, entry: Entry) -> None:
        line = next_line(_PURPOSE, self._chain.head, rfc8785.dumps(msgspec.to_builtins(entry)))
        data = line.write()
        try:
            if os.write(self._file, data) != len(data):
                raise OSError("short write")
            os.fsync(self._file)
        except OSError as error:
            with suppress(OSError):  # what stays then is read, or cut off, before the next entry
                os.ftruncate(self._file, self._chain.offset)
            raise self._unwritable(error) from error
        self._chain.passed(line.hash, len(data))

    def _unwritable(self, error: OSError) -> AuditLogUnavailable:
        return AuditLogUnavailable(
            f"The log {self.path} cannot be written ({error.strerror or error}); make room on its disk. No key leaves "
            "without its line."
        )

    def _require_ours(self) -> None:
        opened = os.fstat(self._file)
        try:
            same = os.path.samestat(opened, self.path.stat()) and opened.st_size >= self._chain.offset
        except OSError:
            same = False
        if not same:
            raise AuditLogCorrupted(
                f"{self.path} was removed, replaced or cut by somebody else; look into it, then start again. No key "
                "leaves until then."
            )

    def close(self) -> None:
        """Write no more, once what is being written is."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
            self._file = -1

    def _open(self) -> int:
        try:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            sync_folder(self.path.parent)
        except OSError as error:
            raise AuditLogUnavailable(f"{self.path} cannot be written ({error.strerror}); check its owner.") from error
        return file


def _parse(raw: bytes) -> Line | None:
    found = read_line(raw)
    if found is None:
        return None
    try:
        return Line(msgspec.json.decode(found.entry, type=Entry), found.hash, found.entry)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None

"""Writing the audit log. Several processes may; each line is on the disk before what it is about goes on.

It lies in the Confide folder, in segments of lines that are chained by hashes. Where there is no such folder none is
written: its owner starts it, and from then on it is whole, or what it is about does not happen. After each line a
checkpoint is signed. The order is: the line, and only then the checkpoint that counts it; a crash in between leaves a
line more than was counted, and never one less.
"""

import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from confide.audit.entries import (
    MAX_CODES,
    MAX_LINE_BYTES,
    MAX_PEER,
    PURPOSE,
    Checkpoint,
    Entry,
    Event,
    Retired,
    is_signed,
    read_entry,
    read_statement_file,
    segment_name,
    segments,
    sign,
    write_statement,
)
from confide.disk.chained import GENESIS, next_line, read_line
from confide.disk.files import create_file, lock_file, replace_file, sync_folder
from confide.disk.home import home, make_home
from confide.errors import AuditLogCorrupted, AuditLogInUse, AuditLogUnavailable
from confide.printable import printable
from confide.receipts.client_key import ClientKey

FOLDER: Final = "audit"
CHECKPOINT: Final = "checkpoint.json"
RETIRED: Final = "retired.json"
_LOCK: Final = "lock"
LOCK_SECONDS: Final = 10.0
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_CODE: Final = re.compile(r"[a-z0-9-]{1,64}")


@dataclass(frozen=True)
class Place:
    """Where a chain has come to: behind so many bytes of a segment."""

    segment: int
    offset: int
    entries: int
    head: str


def is_kept() -> bool:
    """Whether this user keeps a log. A folder that cannot be used is one, and nothing that belongs in it goes on."""
    return os.path.lexists(home() / FOLDER)


def note(
    event: Event,
    *,
    mode: Literal["enclave", "hybrid"],
    peer: str = "",
    model: str = "",
    failed: Sequence[str] = (),
    **facts: Any,
) -> None:
    """Write an entry, if this user keeps a log; return once it is on the disk. facts: see `Entry`.

    What a peer may have chosen is made to fit: an address is cut, and what is no digest or code is not written.
    AuditLogUnavailable, AuditLogCorrupted, AuditLogInUse: then what it is about must not go on.
    """
    if not is_kept():
        return
    entry = Entry(
        at=_now(),
        event=event,
        mode=mode,
        peer=printable(peer)[:MAX_PEER],
        model=model if _DIGEST.fullmatch(model) else "",
        failed=tuple(code for code in failed if _CODE.fullmatch(code))[:MAX_CODES],
        **facts,
    )
    if read_entry(entry.write()) is None:  # written, it would break the log
        raise ValueError("This is no entry of an audit log.")
    AuditLog(home() / FOLDER).append(entry)


def start_log() -> Path:
    """Begin the log of this user; its folder. AuditLogInUse where there is one already, AuditLogUnavailable."""
    folder, key = make_home() / FOLDER, ClientKey.open()
    if os.path.lexists(folder):
        raise AuditLogInUse(f"There is a log already, in {folder}; it goes on. Look at it with `confide audit show`.")
    draft = folder.with_name(f"{FOLDER}.{secrets.token_hex(4)}.draft")
    try:
        draft.mkdir(mode=0o700)
        name = secrets.token_hex(32)
        line = next_line(PURPOSE, GENESIS.hex(), Entry(at=_now(), event="started", log=name, segment=1).write())
        create_file(draft / segment_name(1), line.write())
        place = Place(1, len(line.write()), 1, line.hash)
        create_file(draft / CHECKPOINT, write_statement(_checkpoint(name, place, key)))
        draft.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        with suppress(OSError):
            shutil.rmtree(draft)
        raise _unavailable(folder, error) from error
    return folder


class AuditLog:
    """The log in a folder, written under this user's key."""

    def __init__(self, folder: Path, key: ClientKey | None = None) -> None:
        self.folder = folder
        self._key = key or ClientKey.open()

    def append(self, entry: Entry) -> None:
        """Write an entry and wait for the disk. AuditLogUnavailable, and no trace of it, where that fails.

        AuditLogCorrupted where the log is not as this user's programs left it: nothing is added to that.
        """
        with self._locked():
            log, place = self._recover()
            self._write(log, place, entry)

    def rotate(self) -> int:
        """Begin another segment, which goes on with the chain; its number."""
        with self._locked():
            log, place = self._recover()
            return self._rotate(log, place).segment

    def retain(self, keep: int, until: datetime | None = None) -> list[int]:
        """Drop old segments, but for the last so many; the numbers of those that went.

        until: and of the others those only whose last entry is older. A signed statement of how far they went comes
        first, and an entry with it; the segments are held against their chain before that, AuditLogCorrupted.
        """
        with self._locked():
            log, place = self._recover()
            start = self._start(log)
            candidates = [number for number in segments(self.folder) if number > start.segment][: -max(keep, 1)]
            end, going = start, list[int]()
            for number in candidates:
                walked = walk(self.folder, Place(number, 0, end.entries, end.head), only=True)
                last = _last(walked)
                if last is None:
                    raise _corrupted(self.folder / segment_name(number))
                if until is not None and last[1].at >= until:
                    break
                end = last[0]
                going.append(number)
            if going:
                retired = Retired(log=log, entries=end.entries, head=end.head, at=_now(), public_key="00" * 32,
                                  segment=end.segment)  # fmt: skip
                self._replace(RETIRED, write_statement(sign(retired, self._key)))
                self._write(log, place, Entry(at=_now(), event="retired", segment=end.segment))
            gone = [number for number in segments(self.folder) if number <= max(end.segment, start.segment)]
            for number in gone:
                (self.folder / segment_name(number)).unlink()
                sync_folder(self.folder)
            return gone

    def export(self, out: Path) -> None:
        """Copy the log, as it stands at one moment, to a folder that must not exist. OSError."""
        with self._locked():
            self._recover()
            out.mkdir(mode=0o700)
            names = [*map(segment_name, segments(self.folder)), CHECKPOINT, RETIRED]
            for name in names:
                if (self.folder / name).exists():
                    create_file(out / name, (self.folder / name).read_bytes())

    # -- under the lock ----------------------------------------------------------------------------------------------

    def _recover(self) -> tuple[str, Place]:
        """The log's name and where it ends. What a crash tore is cut off, and what it left uncounted is counted."""
        checkpoint = self._statement(CHECKPOINT, Checkpoint)
        if checkpoint is None:
            raise AuditLogCorrupted(
                f"{self.folder / CHECKPOINT} is missing, or not as this user's key signed it; keep the folder for an "
                "investigation, and move it away to start another log."
            )
        place = Place(checkpoint.segment, checkpoint.bytes, checkpoint.entries, checkpoint.head)
        self._require_counted(place)
        last = _last(walk(self.folder, place))
        place = place if last is None else last[0]
        path = self.folder / segment_name(place.segment)
        try:
            torn = path.stat().st_size - place.offset
            if torn:
                with path.open("r+b") as file:
                    rest = file.seek(place.offset) and file.read(MAX_LINE_BYTES)
                    if not torn < MAX_LINE_BYTES or b"\n" in (rest or b""):
                        raise _corrupted(path)
                    file.truncate(place.offset)
                    os.fsync(file.fileno())
                place = self._write(checkpoint.log, place, Entry(at=_now(), event="recovered", recovered=torn))
        except OSError as error:
            raise _unavailable(self.folder, error) from error
        return checkpoint.log, place

    def _require_counted(self, place: Place) -> None:
        """That the line which the checkpoint counts last is where it was."""
        path = self.folder / segment_name(place.segment)
        try:
            with path.open("rb") as file:
                start = max(0, place.offset - MAX_LINE_BYTES)
                file.seek(start)
                before = file.read(place.offset - start)
        except OSError:
            before = b""
        line = read_line(before[before.rfind(b"\n", 0, -1) + 1 :])
        if line is None or line.hash != place.head or place.segment < max(segments(self.folder), default=0) - 1:
            raise _corrupted(path)

    def _start(self, log: str) -> Place:
        """Where the chain of what is there begins: at its very beginning, or behind what was retired."""
        if not (self.folder / RETIRED).exists():
            return Place(0, 0, 0, GENESIS.hex())
        retired = self._statement(RETIRED, Retired)
        if retired is None or retired.log != log:
            raise _corrupted(self.folder / RETIRED)
        return Place(retired.segment, 0, retired.entries, retired.head)

    def _statement(self, name: str, kind: Any) -> Any:
        """A statement that this user's key has signed; None for anything else."""
        found = read_statement_file(self.folder / name, kind)
        return found if found is not None and found.public_key == self._key.public and is_signed(found) else None

    def _write(self, log: str, place: Place, entry: Entry) -> Place:
        line = next_line(PURPOSE, place.head, entry.write())
        data = line.write()
        path = self.folder / segment_name(place.segment)
        try:
            file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
        except OSError as error:
            raise _unavailable(self.folder, error) from error
        try:
            if os.write(file, data) != len(data):
                raise OSError("short write")
            os.fsync(file)
        except OSError as error:
            with suppress(OSError):  # what stays then is torn, and cut off before the next entry
                os.ftruncate(file, place.offset)
            raise _unavailable(self.folder, error) from error
        finally:
            os.close(file)
        return self._count(log, Place(place.segment, place.offset + len(data), place.entries + 1, line.hash))

    def _rotate(self, log: str, place: Place) -> Place:
        entry = Entry(at=_now(), event="rotated", segment=place.segment + 1)
        line = next_line(PURPOSE, place.head, entry.write())
        try:
            create_file(self.folder / segment_name(place.segment + 1), line.write())
        except OSError as error:
            raise _unavailable(self.folder, error) from error
        return self._count(log, Place(place.segment + 1, len(line.write()), place.entries + 1, line.hash))

    def _count(self, log: str, place: Place) -> Place:
        """Sign how far the log has come, which is on the disk by now."""
        self._replace(CHECKPOINT, write_statement(_checkpoint(log, place, self._key)))
        return place

    def _replace(self, name: str, content: bytes) -> None:
        try:
            replace_file(self.folder / name, content, mode=0o600)
        except OSError as error:
            raise _unavailable(self.folder, error) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise _unavailable(self.folder, error) from error
        try:
            try:
                locked = lock_file(lock, LOCK_SECONDS)
            except OSError as error:
                raise AuditLogUnavailable(
                    f"The audit log in {self.folder} cannot be locked ({error.strerror}); have CONFIDE_HOME on a file "
                    "system that has locks. Without its line nothing goes on."
                ) from error
            if not locked:
                raise AuditLogInUse(
                    f"Another program of yours has held {self.folder} for {LOCK_SECONDS:.0f} seconds; find it."
                )
            yield
        finally:
            os.close(lock)


def walk(folder: Path, place: Place, *, only: bool = False) -> Iterator[tuple[Place, Entry]]:
    """The entries behind a place, each with the place behind it, held against their chain.

    A torn last line ends it, as the log's end does. only: not beyond the place's segment. AuditLogCorrupted for a line
    that is not what was written in its place, or is gone; AuditLogUnavailable for a file that cannot be read.
    """
    last = place.segment if only else max(segments_of(folder), default=place.segment)
    for number in range(place.segment, last + 1):
        path = folder / segment_name(number)
        try:
            with path.open("rb") as file:
                offset = place.offset if number == place.segment else 0
                file.seek(offset)
                while raw := file.readline(MAX_LINE_BYTES):
                    if not raw.endswith(b"\n") and number == last and len(raw) < MAX_LINE_BYTES:
                        return
                    line = read_line(raw)
                    entry = None if line is None else read_entry(line.entry)
                    if line is None or entry is None or line != next_line(PURPOSE, place.head, line.entry):
                        raise _corrupted(path, place.entries + 1)
                    offset += len(raw)
                    place = Place(number, offset, place.entries + 1, line.hash)
                    yield place, entry
        except FileNotFoundError:
            raise _corrupted(path, place.entries + 1) from None
        except OSError as error:
            raise AuditLogUnavailable(
                f"{path} cannot be read ({error.strerror}); let it be yours, and its disk be sound."
            ) from error


def segments_of(folder: Path) -> list[int]:
    """The numbers of a folder's segments. AuditLogUnavailable."""
    try:
        return segments(folder)
    except OSError as error:
        raise AuditLogUnavailable(
            f"There is no log to be read in {folder} ({error.strerror}); `confide audit start` begins one."
        ) from error


def _last(walked: Iterator[tuple[Place, Entry]]) -> tuple[Place, Entry] | None:
    found = None
    for found in walked:  # noqa: B007
        pass
    return found


def _checkpoint(log: str, place: Place, key: ClientKey) -> Checkpoint:
    unsigned = Checkpoint(
        log=log, entries=place.entries, head=place.head, at=_now(), public_key="00" * 32, segment=place.segment,
        bytes=place.offset,
    )  # fmt: skip
    return sign(unsigned, key)


def _now() -> datetime:
    return datetime.now(UTC)


def _corrupted(path: Path, entry: int | None = None) -> AuditLogCorrupted:
    where = "does not hold" if entry is None else f"does not hold, as entry {entry},"
    return AuditLogCorrupted(
        f"{path} {where} what was written there; keep the folder for an investigation (`confide audit verify`), and "
        "move it away to start another log. Until then nothing that belongs in it goes on."
    )


def _unavailable(folder: Path, error: OSError) -> AuditLogUnavailable:
    return AuditLogUnavailable(
        f"The audit log in {folder} cannot be written ({error.strerror or error}); make room on its disk. Without its "
        "line nothing goes on."
    )

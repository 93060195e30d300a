"""Files that survive a crash, and folders that one process holds at a time."""

import errno
import fcntl
import os
import stat
import tempfile
import time
from pathlib import Path
from typing import IO, BinaryIO, Final

_LOCK_PAUSE: Final = 0.001
"""Short beside the time for which a lock is held: whoever takes it again at once leaves it free for microseconds, and
someone who looks rarely would never find it so."""


class FileTooLarge(OSError):
    """A file is larger than whoever reads it allows."""


class FileOpenToOthers(OSError):
    """A private file that other users of this machine can reach."""


def read_bounded(path: Path, limit: int) -> bytes:
    """A whole file of at most `limit` bytes. FileTooLarge for a longer one, OSError for one that cannot be read."""
    with path.open("rb") as file:
        return _bounded(file, path, limit)


def read_private(path: Path, limit: int) -> bytes:
    """The same; FileOpenToOthers where its mode lets anybody but its owner reach it."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise FileOpenToOthers(errno.EACCES, "others on this machine can reach it", str(path))
        return _bounded(file, path, limit)


def read_guarded(path: Path, limit: int) -> bytes:
    """The same of a file that others may read; FileOpenToOthers where anybody but this user and root can change it."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        facts = os.fstat(file.fileno())
        if facts.st_uid not in (0, os.geteuid()) or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise FileOpenToOthers(errno.EACCES, "others on this machine can change it", str(path))
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.EINVAL, "it is no file", str(path))
        return _bounded(file, path, limit)


def _bounded(file: BinaryIO, path: Path, limit: int) -> bytes:
    content = file.read(limit + 1)
    if len(content) > limit:
        raise FileTooLarge(errno.EFBIG, f"it is larger than {limit:,} bytes", str(path))
    return content


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    sync_file(folder)


def name_file(draft: Path, path: Path) -> None:
    """Give a finished file its name, durably: its content first, so that no crash leaves half a file by that name."""
    sync_file(draft)
    os.replace(draft, path)
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Make the content of a file durable, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a whole file durably, or not at all."""
    draft = path.with_name(path.name + ".draft")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
    name_file(draft, path)


def create_file(path: Path, content: bytes) -> None:
    """Write a new file durably and for its owner only, or not at all. FileExistsError where there is one already."""
    descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        sync_file(Path(draft))
        os.link(draft, path)  # unlike a rename, never replaces anything
    finally:
        os.unlink(draft)
    sync_folder(path.parent)


def open_own(path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a file that is this user's alone, and neither a link nor a device; made so with os.O_CREAT.

    PermissionError where it is anything else, which says nothing of who wrote what is in it.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
        os.close(descriptor)
        raise PermissionError(errno.EPERM, "It is not yours alone", str(path))
    return descriptor


def hold_folder(folder: Path) -> IO[str] | None:
    """A lock on a folder, held until it is closed; None where another process has it."""
    lock = (folder / "lock").open("w")
    if not lock_file(lock.fileno()):
        lock.close()
        return None
    return lock


def lock_file(descriptor: int, seconds: float = 0.0) -> bool:
    """Lock an open file until it is unlocked or closed; False where another process has it, and keeps it so long."""
    until = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(_LOCK_PAUSE)
        else:
            return True

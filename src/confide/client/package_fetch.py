"""Fetching a package of any kind, file by file, each verified by what its owner signed; taken up again where it broke.

What the source says first are the documents: what they do not name is not asked for. A folder gets its name once it is
whole, and until then lies beside it.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from confide.client.objects import CHUNK, Read, opened
from confide.disk.files import lock_file, name_file, replace_file, sync_folder
from confide.errors import ChannelBroken, ConfideError, ConnectionLost, DamagedFile
from confide.packages.hint import OnBytes
from confide.packages.listing import Listed, Listing, documents_of, list_package
from confide.packages.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, open_file, read_kind
from confide.packages.owner import OwnerPublicKey
from confide.packages.sealed.draft import require_absent

_ATTEMPTS: Final = 3
"""Without a byte more: a connection that breaks after some is gone on with."""
_SUFFIX: Final = ".unfinished-fetch"
_PART: Final = ".part"


@dataclass(frozen=True)
class Progress:
    """What is told on the way. on_file: the name of each before it comes. on_bytes: so many more are there."""

    on_file: Callable[[str], object] = lambda name: None
    on_bytes: OnBytes = lambda count: None


def fetch_package(
    source: str,
    out: Path,
    *,
    trusted: Container[OwnerPublicKey] | None = None,
    groups: Iterable[int] | None = None,
    ca: Path | str | None = None,
    endpoint: str | None = None,
    progress: Progress | None = None,
) -> Listing:
    """Fetch a package into the folder `out`.

    source, ca, endpoint: see `objects.opened`. trusted, groups: see `list_package`. DamagedFile where a file is not
    what was signed, UntrustedOwner, InvalidPackage, ConnectionLost; ConfideError where `out` exists, another process
    fetches it, or it cannot be written. What was fetched by then is kept, and not asked for again.
    """
    progress = progress or Progress()
    require_absent(out)
    draft = out.with_name(out.name + _SUFFIX)
    try:
        draft.mkdir(mode=0o755, parents=True, exist_ok=True)
        if draft.is_symlink() or draft.stat().st_uid != os.geteuid():
            raise ConfideError(f"{draft} is not yours; remove it, or choose another place.")
        with (draft / ".lock").open("w") as lock, opened(source, ca=ca, endpoint=endpoint) as read:
            if not lock_file(lock.fileno()):
                raise ConfideError(f"Another process fetches {out}; wait for it, or choose another folder.")
            listing = _documents(read, draft, trusted, groups)
            for file in listing.files:
                progress.on_file(file.name)
                path = draft / file.name
                if path.is_file() and not path.is_symlink() and _hashed(path)[0].hexdigest() == file.digest:
                    progress.on_bytes(path.stat().st_size)
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                fetch_file(read, source, path, file, progress.on_bytes)
            _leave(draft, listing)
        draft.rename(out)
        sync_folder(out.parent)
    except OSError as error:
        raise ConfideError(
            f"{draft} cannot be written ({error.strerror}); make room and fetch again: what is done is kept."
        ) from error
    return listing


def _documents(
    read: Read, draft: Path, trusted: Container[OwnerPublicKey] | None, groups: Iterable[int] | None
) -> Listing:
    _document(read, draft, MANIFEST_NAME, MAX_MANIFEST_BYTES)
    for name, most in documents_of(read_kind(draft)).items():
        if name != MANIFEST_NAME:
            _document(read, draft, name, most)
    return list_package(draft, trusted, groups)


def _document(read: Read, draft: Path, name: str, most: int) -> None:
    content = bytearray()
    for chunk in read(name, 0):
        content += chunk
        if len(content) > most:
            raise DamagedFile(f"The {name} there is larger than one is; fetch the package from elsewhere.")
    replace_file(draft / name, bytes(content))


def fetch_file(read: Read, source: str, path: Path, file: Listed, on_bytes: OnBytes) -> None:
    """Have one file come, from where an earlier attempt ended. DamagedFile, what reading raises, and OSError."""
    part = path.with_name(path.name + _PART)
    if part.is_symlink():
        part.unlink()
    # What was begun may be of another time, or of another source: only the end tells.
    taken_up = part.exists()
    try:
        if not _complete(read, part, file, on_bytes):
            part.unlink()
            if not taken_up or not _complete(read, part, file, on_bytes):
                part.unlink(missing_ok=True)
                raise DamagedFile(
                    f"What {source} has as {file.name} is not what the package's owner signed; fetch it from elsewhere."
                )
        name_file(part, path)
    finally:
        if part.exists() and not part.stat().st_size:
            part.unlink()


def _complete(read: Read, part: Path, file: Listed, on_bytes: OnBytes) -> bool:
    """Have the rest of a file come; whether it is the one that was signed."""
    digest, size = _hashed(part) if part.exists() else (hashlib.sha256(), 0)
    on_bytes(size)
    most = file.size if file.size is not None else size + shutil.disk_usage(part.parent).free // 2
    attempts = 0
    with part.open("ab") as target:
        while size < most and digest.hexdigest() != file.digest:
            before = size
            try:
                for chunk in read(file.name, size):
                    size += len(chunk)
                    if size > most:
                        return False
                    digest.update(chunk)
                    target.write(chunk)
                    on_bytes(len(chunk))
                break
            except ConfideError as error:
                attempts = 0 if size > before else attempts + 1
                if not isinstance(error, (ConnectionLost, ChannelBroken)) or attempts == _ATTEMPTS:
                    raise
                time.sleep(attempts)
    return size <= most and digest.hexdigest() == file.digest


def _hashed(path: Path) -> tuple["hashlib._Hash", int]:
    digest, size = hashlib.sha256(), 0
    with open_file(path) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return digest, size


def _leave(draft: Path, listing: Listing) -> None:
    """Remove what is no part of the package: another one may have been begun here before."""
    known = {file.name for file in listing.files} | set(documents_of(listing.kind))
    for path in draft.rglob("*"):
        if not path.is_dir() and path.relative_to(draft).as_posix() not in known:
            path.unlink()

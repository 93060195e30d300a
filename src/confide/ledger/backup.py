"""Backups of a ledger, and going on from one.

A backup is a ledger's file, of whichever database, so that one can take over from the other. It knows nothing of what
was answered after it, so no server goes on from one by itself: restoring is said aloud. What was leased at the time
of the backup counts as answered.
"""

import math
import os
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from confide.disk.files import name_file, sync_file, sync_folder
from confide.errors import ConfideError, LedgerCorrupted, LedgerInUse, LedgerUnavailable
from confide.ledger.address import DatabaseAddress, Place
from confide.ledger.ledger import end_owners
from confide.ledger.opening import open_store
from confide.ledger.sqlite import DATABASE, SqliteStore, copy_file, lock_folder
from confide.ledger.store import OWNER_SECONDS, TABLES, Store, corrupted


@dataclass(frozen=True)
class Restored:
    """What a restored ledger knows: licences, the tokens they have used, and the last moment it knows of."""

    licences: int
    tokens_used: int
    known_until: float


def backup(place: Place, out: Path) -> None:
    """Write a consistent copy of the ledger to a file while servers go on."""
    _require_ledger(place)
    if out.exists():
        raise ConfideError(f"{out} exists already; choose another file.")
    draft = out.with_name(f".{out.name}.draft")
    _begin(draft)
    with closing(open_store(place)) as store, closing(SqliteStore(draft)) as copy:
        store.copy_to(copy)
        with copy.transaction():
            clock = _last_heard(copy)
            # A server that finds this file in its ledger's place, even in the same inode, must not go on from it.
            copy.put("server", name="identity", value=b"backup")
            copy.put("server", name="clock", value=str(clock).encode())
    name_file(draft, out)


def restore(place: Place, source: Path | None = None) -> Restored:
    """Make `place` a ledger with the licences and usage of a backup, or of its own.

    Raises LedgerInUse while a server is running on it, LedgerCorrupted for a damaged backup.
    """
    if source is not None:
        _require_ledger(source)
    if isinstance(place, DatabaseAddress):
        return _restore_database(place, source)
    return _restore_file(place, source or place / DATABASE)


def _restore_file(state: Path, source: Path) -> Restored:
    database, replaced, draft = (state / f"{DATABASE}{part}" for part in ("", ".before-restore", ".draft"))
    _require_ledger(source)
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with closing(lock_folder(state)):
        with closing(_copied(source, draft)) as new, new.transaction():
            restored = _take_over(new)
        if database.exists():
            # Closed, it needs no file beside it; and what lies beside it must not be applied to the new one.
            with suppress(LedgerCorrupted, LedgerUnavailable):
                SqliteStore(database).close()
            replaced.unlink(missing_ok=True)
            os.link(database, replaced)
        for stale in state.glob(f"{DATABASE}-*"):
            stale.unlink()
        sync_file(draft)
        os.replace(draft, database)
        sync_folder(state)
    return restored


def _restore_database(address: DatabaseAddress, source: Path | None) -> Restored:
    with closing(open_store(address)) as store:
        rows = None
        if source is not None:
            with TemporaryDirectory() as folder, closing(_copied(source, Path(folder) / DATABASE)) as copy:
                rows = {table: copy.rows(table) for table in TABLES}
        with store.transaction():
            silent = store.now() - OWNER_SECONDS
            if any(owner["heard"] >= silent for owner in store.rows("owners")):
                raise LedgerInUse(
                    f"Servers are using {address}; stop them all, and wait {OWNER_SECONDS:.0f} seconds for one that "
                    "was killed."
                )
            for table, found in (rows or {}).items():
                store.delete(table)
                store.put_all(table, found)
            return _take_over(store)


def _copied(source: Path, draft: Path) -> SqliteStore:
    """A copy of a ledger's file that was read whole; the file itself is left as it is, whatever its schema."""
    _begin(draft)
    copy_file(source, draft)
    try:
        copy = SqliteStore(draft)
        try:
            copy.verify()
        except BaseException:
            copy.close()
            raise
    except LedgerCorrupted as error:
        raise corrupted(source) from error
    return copy


def _begin(draft: Path) -> None:
    for left in draft.parent.glob(f"{draft.name}*"):
        left.unlink()
    draft.touch(0o600)


def _last_heard(store: Store) -> float:
    """The last moment that a ledger knows of, 0.0 where there is none."""
    clock = store.row("server", name="clock")
    heard = [float(owner["heard"]) for owner in store.rows("owners")]
    return max([float(clock["value"]) if clock else 0.0, *heard])


def _take_over(store: Store) -> Restored:
    """Within a transaction: go on from what is there, in whichever database that now is."""
    known = _last_heard(store)
    end_owners(store, math.inf)
    store.delete("server")
    tokens = sum(row["tokens"] for row in store.rows("usage"))
    return Restored(store.count("licences"), tokens, known)


def accept_clock(place: Place) -> None:
    """Take the present time for right, although the ledger's last record is later."""
    _require_ledger(place)
    with closing(open_store(place, serving=True)) as store, store.transaction():
        store.put("server", name="clock", value=str(store.now()).encode())
        for owner in store.rows("owners"):
            store.put("owners", **(owner | {"heard": min(owner["heard"], store.now())}))


def _require_ledger(place: Place) -> None:
    path = place if isinstance(place, DatabaseAddress) or place.is_file() else place / DATABASE
    if isinstance(path, Path) and not path.is_file():
        raise ConfideError(f"{path} does not exist; give a layer server's state folder or a backup of its ledger.")

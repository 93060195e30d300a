"""Backups of a ledger, and going on from one.

A backup knows nothing of what was answered after it, so no server goes on from one by itself: restoring is said aloud.
What was leased at the time of the backup counts as answered.
"""

import os
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from confide.disk.files import name_file, sync_file, sync_folder
from confide.errors import ConfideError, LedgerCorrupted, LedgerUnavailable
from confide.hybrid.server.ledger.ledger import count_lost_leases, lock_folder
from confide.hybrid.server.ledger.store import DATABASE, Store


@dataclass(frozen=True)
class Restored:
    """What a restored ledger knows: licences, the tokens they have used, and the last moment it knows of."""

    licences: int
    tokens_used: int
    known_until: float


def backup(state: Path, out: Path) -> None:
    """Write a consistent copy of the ledger while the server goes on."""
    _require_ledger(state / DATABASE)
    if out.exists():
        raise ConfideError(f"{out} exists already; choose another file.")
    draft = out.with_name(f".{out.name}.draft")
    draft.unlink(missing_ok=True)
    draft.touch(0o600)
    with closing(Store(state / DATABASE)) as store:
        store.verify()
        store.copy_to(draft)
    # A server that finds this file in the place of its ledger, though even in the same inode, must not go on from it.
    with closing(Store(draft)) as copy, copy.transaction():
        copy.put("server", name="identity", value=b"backup")
    name_file(draft, out)


def restore(state: Path, source: Path | None = None) -> Restored:
    """Make `state` a ledger with the licences and usage of a backup, or of its own.

    Raises LedgerInUse while a server is running on it, LedgerCorrupted for a damaged backup.
    """
    database, replaced, draft = (state / f"{DATABASE}{part}" for part in ("", ".before-restore", ".draft"))
    source = source or database
    _require_ledger(source)
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with closing(lock_folder(state)):
        for left in state.glob(f"{draft.name}*"):
            left.unlink()
        draft.touch(0o600)
        with closing(Store(source)) as old:
            old.verify()
            old.copy_to(draft)
        with closing(Store(draft)) as new:
            restored = _take_over(new)
        if database.exists():
            # Closed, it needs no file beside it; and what lies beside it must not be applied to the new one.
            with suppress(LedgerCorrupted, LedgerUnavailable):
                Store(database).close()
            replaced.unlink(missing_ok=True)
            os.link(database, replaced)
        for stale in state.glob(f"{DATABASE}-*"):
            stale.unlink()
        sync_file(draft)
        os.replace(draft, database)
        sync_folder(state)
    return restored


def _take_over(store: Store) -> Restored:
    clock = store.row("server", name="clock")
    with store.transaction():
        count_lost_leases(store)
        store.clear("server")
    tokens = sum(row["tokens"] for row in store.rows("usage"))
    return Restored(store.count("licences"), tokens, float(clock["value"]) if clock else 0.0)


def accept_clock(state: Path) -> None:
    """Take the present time for right, although the ledger's last record is later."""
    _require_ledger(state / DATABASE)
    with closing(lock_folder(state)), closing(Store(state / DATABASE)) as store, store.transaction():
        store.put("server", name="clock", value=str(time.time()).encode())


def _require_ledger(path: Path) -> None:
    if not path.exists():
        raise ConfideError(f"{path} does not exist; give a layer server's state folder or a backup of its ledger.")

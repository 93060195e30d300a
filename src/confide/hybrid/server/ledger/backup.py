"""Backups of a ledger, and going on from one.

A backup knows nothing of what was answered after it. Were the server to go on under its old key, it could answer an
index twice; so restoring makes a new key and seed, under which no old pack means anything, and keeps what a licence
has paid and used.
"""

import os
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from confide.disk.files import replace_file, sync_folder
from confide.errors import ConfideError
from confide.hybrid.server.ledger.ledger import lock_folder
from confide.hybrid.server.ledger.store import DATABASE, SERVER_KEY, Store
from confide.rlwe.streams import fresh_key


@dataclass(frozen=True)
class Restored:
    """What a restored ledger knows: licences, the tokens they have used, and the last moment it knows of."""

    licences: int
    tokens_used: int
    known_until: float


def backup(state: Path, out: Path) -> None:
    """Write a consistent copy of the ledger, without the server key, while the server goes on."""
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
    draft.rename(out)
    sync_folder(out.parent)


def restore(state: Path, source: Path | None = None) -> Restored:
    """Make `state` a ledger with the licences and usage of a backup, or its own, and a new server key.

    Raises LedgerInUse while a server is running on it, LedgerCorrupted for a damaged backup.
    """
    replaced, draft = (state / f"{DATABASE}.{part}" for part in ("before-restore", "draft"))
    if source is None:  # the ledger in the folder, or where an interrupted restore has put it
        source = replaced if draft.exists() and not (state / DATABASE).exists() else state / DATABASE
    _require_ledger(source)
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with closing(lock_folder(state)):
        for left in state.glob(f"{draft.name}*"):
            left.unlink()
        with closing(Store(source)) as old:
            old.verify()
            old.copy_to(draft)
        with closing(Store(draft)) as new:
            restored = _forget_packs(new)
        # Until the last line the folder has no database, and no server starts on a folder in that state.
        if (state / DATABASE).exists():
            os.replace(state / DATABASE, replaced)
        for stale in (*state.glob("journal-*"), *state.glob(f"{DATABASE}-*"), *state.glob(f"{DATABASE}.draft-*")):
            stale.unlink()
        replace_file(state / SERVER_KEY, fresh_key(), mode=0o600)
        os.replace(draft, state / DATABASE)
        sync_folder(state)
    return restored


def _forget_packs(store: Store) -> Restored:
    clock = store.row("server", name="clock")
    with store.transaction():
        for table in ("packs", "requests", "server"):
            store.clear(table)
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

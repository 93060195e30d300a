"""Licences: who may ask for how many tokens, until when and how fast; their keys are stored as hashes only.

Kept apart from the running server, so that a licence can be made, changed or revoked while it serves.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Final, Self

import msgspec

from confide.errors import ConfideError
from confide.ledger.address import Place
from confide.ledger.keys import fresh_key, licence_digest
from confide.ledger.opening import open_store
from confide.ledger.store import LAYERS, Row, Store, Unit
from confide.printable import printable

MAX_NAME: Final = 200
SECONDS_PER_DAY: Final = 86_400
DEFAULT_DISCLOSURE: Final = 0.5
"""Of what solves a layer: see `usage.share_disclosed`."""


class Licence(msgspec.Struct, frozen=True):
    """What one licensee may do. None means without limit.

    id: 8 bytes, public. key_hash: SHA-256 of the bearer key. created, expires, revoked: seconds since 1970.
    disclosure: how much of what solves a layer may be disclosed, 1.0 is all of it. check_sets: how many sets of check
    vectors the licensee has been given, which disclose something too.
    """

    id: bytes
    key_hash: bytes
    name: str
    created: int
    expires: int | None = None
    tokens: int | None = None
    tokens_per_minute: int | None = None
    disclosure: float | None = DEFAULT_DISCLOSURE
    check_sets: int = 1
    revoked: int | None = None

    def __repr__(self) -> str:
        return f"Licence({self.label})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("label", self.label)]

    @classmethod
    def from_row(cls, row: Row) -> Self:
        """The licence in a row of the table."""
        return cls(**row)

    @property
    def label(self) -> str:
        """The name people gave it and its id."""
        return f"{printable(self.name)} ({self.id.hex()})"

    def state(self, now: float) -> str:
        """active, expired or revoked."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and now >= self.expires else "active"


ANONYMOUS: Final = Licence(b"anonymou", b"", "anonymous", 0, disclosure=None)
"""Stands for clients without a licence, where a server takes them."""


@dataclass(frozen=True)
class Usage:
    """What a licence has used: tokens on one day, a day since 1970. unit: of what."""

    licence: bytes
    day: int
    unit: Unit
    tokens: int

    @property
    def date(self) -> str:
        """Such as 2026-11-21, in UTC."""
        return time.strftime("%Y-%m-%d", time.gmtime(self.day * SECONDS_PER_DAY))


class LicenceBook:
    """The licences of one ledger database."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def create(self, name: str, **limits: int | float | None) -> tuple[Licence, str]:
        """A new licence and its key, which cannot be had again. `limits` are fields of Licence."""
        if len(name) > MAX_NAME:
            raise ConfideError(f"A licence's name has {MAX_NAME} characters at most; give a shorter one.")
        key = fresh_key()
        licence = Licence(os.urandom(8), licence_digest(key), name, int(time.time()), **limits)  # type: ignore[arg-type]
        with self._store.transaction():
            if self._store.count("licences", name=name):
                raise ConfideError(f"There is a licence named {name} already; choose another name.")
            self._write(licence)
        return licence, key

    def all(self) -> list[Licence]:
        """Oldest first."""
        return sorted(map(Licence.from_row, self._store.rows("licences")), key=lambda licence: licence.created)

    def find(self, name_or_id: str) -> Licence:
        """The licence with this name or hexadecimal id; ConfideError where there is none."""
        for licence in self.all():
            if name_or_id in (licence.name, licence.id.hex()):
                return licence
        raise ConfideError(f"There is no licence {name_or_id!r}; `confide licence list` shows those there are.")

    def of_key(self, key: str) -> Licence | None:
        """The licence of a bearer key. Keys have 256 random bits, so looking their hash up gives nothing away."""
        row = self._store.row("licences", key_hash=licence_digest(key))
        return Licence.from_row(row) if row else None

    def by_id(self, licence: bytes) -> Licence | None:
        """The licence with this id as it is now."""
        row = self._store.row("licences", id=licence)
        return Licence.from_row(row) if row else None

    def change(self, licence: Licence, **fields: int | float | None) -> Licence:
        """Change some fields of a licence; the others stay as they are by now, whoever wrote them meanwhile."""
        return self._replaced(licence, fields)

    def _replaced(self, licence: Licence, fields: Mapping[str, object]) -> Licence:
        with self._store.transaction():
            changed = msgspec.structs.replace(self.by_id(licence.id) or licence, **fields)
            self._write(changed)
        return changed

    def rekey(self, licence: Licence) -> tuple[Licence, str]:
        """Give a licence another key, which cannot be had again; the one it had is nobody's from then on."""
        key = fresh_key()
        return self._replaced(licence, {"key_hash": licence_digest(key)}), key

    def usage(self, licence: Licence | None = None) -> list[Usage]:
        """Tokens by licence, day and unit, oldest first, as of the server's last checkpoint."""
        where = {} if licence is None else {"licence": licence.id}
        found = (Usage(**row) for row in self._store.rows("usage", **where))
        return sorted(found, key=lambda usage: (usage.day, usage.licence, usage.unit))

    def disclosed(self, licence: bytes, model: bytes, unit: Unit = LAYERS) -> dict[int, int]:
        """Tokens answered to the licence with this id for each layer group of a model, without those of `lost`."""
        rows = self._store.rows("disclosed", licence=licence, model=model, unit=unit)
        return {row["layer_group"]: row["tokens"] for row in rows}

    def lost(self, licence: bytes, model: bytes, unit: Unit = LAYERS) -> int:
        """Tokens of leases that ended in a crash: every layer group of the model may have answered them."""
        row = self._store.row("lost", licence=licence, model=model, unit=unit)
        return 0 if row is None else int(row["tokens"])

    @property
    def changes(self) -> int:
        """How often any licence was made or changed."""
        row = self._store.row("server", name="changes")
        return 0 if row is None else int(row["value"])

    def _write(self, licence: Licence) -> None:
        self._store.put("licences", **msgspec.structs.asdict(licence))
        self._store.put("server", name="changes", value=b"%d" % (self.changes + 1))
        self._store.announce(licence.id)


@contextmanager
def licence_book(state: Place) -> Iterator[LicenceBook]:
    """The licences of the layer servers whose state folder or database this is, whether any runs or not."""
    with closing(open_store(state)) as store:
        yield LicenceBook(store)

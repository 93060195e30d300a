"""What a ledger's database holds, whichever one it is: a few small tables, every row with a checksum of its own.

The databases find damage to their structure; the checksums find damage to what they hold. What is read is bounded,
for another machine's database is a peer.
"""

import hashlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from confide.errors import LedgerCorrupted

SCHEMA: Final = 6
"""The version of the tables below."""
MIGRATED: Final = (4, 5)
"""Versions that are brought to it."""
OWNER_SECONDS: Final = 10.0
"""How long an owner that says nothing is waited for; it has stopped answering long before: it knows too little."""
_OF_SCHEMA_4: Final = b"schema 4"
"""Who held the leases that a server of that schema left; it ran alone, and has ended."""
MAX_VALUE_BYTES: Final = 4096
"""Of a text or of bytes in a row."""

Row = dict[str, Any]


Unit = Literal["layers", "input", "output"]
"""What a number of tokens counts: those that went through layer groups, those of prompts, those of answers."""
LAYERS: Final[Unit] = "layers"
INPUT: Final[Unit] = "input"
OUTPUT: Final[Unit] = "output"


@dataclass(frozen=True)
class Table:
    """columns: their types, as PostgreSQL names them, by their names. key: those that tell rows apart."""

    columns: dict[str, str]
    key: tuple[str, ...]


TABLES: Final = {
    # Facts by name: `identity`, of the database; `clock`, the last moment that is known; `changes`, of licences.
    "server": Table({"name": "text", "value": "bytea"}, ("name",)),
    "licences": Table(
        {
            "id": "bytea",
            "key_hash": "bytea",
            "name": "text",
            "created": "bigint",
            "expires": "bigint",
            "tokens": "bigint",
            "tokens_per_minute": "bigint",
            "disclosure": "double precision",
            "check_sets": "bigint",
            "revoked": "bigint",
        },
        ("id",),
    ),
    "usage": Table(
        {"licence": "bytea", "day": "bigint", "unit": "text", "tokens": "bigint"}, ("licence", "day", "unit")
    ),
    # What was answered, by layer groups; where there are none, all of it is that of number 0.
    "disclosed": Table(
        {"licence": "bytea", "model": "bytea", "unit": "text", "layer_group": "bigint", "tokens": "bigint"},
        ("licence", "model", "unit", "layer_group"),
    ),
    # Tokens of leases that their owners did not give back: every layer group may have answered them.
    "lost": Table(
        {"licence": "bytea", "model": "bytea", "unit": "text", "tokens": "bigint"}, ("licence", "model", "unit")
    ),
    # The servers that hold leases. fence: how often each has written, -1 where another has ended it; heard: when it was
    # heard of last, in seconds since 1970.
    "owners": Table({"id": "bytea", "fence": "bigint", "heard": "double precision"}, ("id",)),
    "leases": Table(
        {"licence": "bytea", "model": "bytea", "unit": "text", "owner": "bytea", "day": "bigint", "tokens": "bigint"},
        ("licence", "model", "unit", "owner"),
    ),
}


class Store(ABC):
    """An open database. Safe to call from several threads and processes.

    place: what people call it; holds no secret. What a transaction wrote is on the disk when it ends. Everything
    raises LedgerUnavailable where the database cannot be used, and LedgerCorrupted where a row is not what was
    written.
    """

    mark: str
    """The place of a value in a statement."""
    alone: bool = False
    """Whether this process is the only one that may answer from the ledger, so that all other owners have ended."""

    def __init__(self, place: str) -> None:
        self.place = place
        self._woken = threading.Event()

    @property
    def over(self) -> bool:
        """Whether it will never again be usable by this process."""
        return False

    # -- rows --------------------------------------------------------------------------------------------------

    def rows(self, table: str, **where: Any) -> list[Row]:
        """The rows whose columns have these values, or one of several in a list, each checked against its sum."""
        condition, values = self._condition(where)
        # The names come from this package, never from outside, here as below.
        found = self.query(f"SELECT * FROM {table}{condition}", values)  # noqa: S608
        for row in found:
            self._check(table, row)
        return found

    def _check(self, table: str, row: Row) -> None:
        recorded = row.pop("sum", None)
        sized = (value for value in row.values() if isinstance(value, str | bytes))
        if row.keys() != TABLES[table].columns.keys() or any(len(value) > MAX_VALUE_BYTES for value in sized):
            raise corrupted(self.place)
        if recorded != row_sum(table, row):
            raise corrupted(self.place)

    def row(self, table: str, **where: Any) -> Row | None:
        """The one row with these values, or None."""
        found = self.rows(table, **where)
        return found[0] if found else None

    def count(self, table: str, **where: Any) -> int:
        """How many rows have these values."""
        condition, values = self._condition(where)
        return int(self.query(f"SELECT count(*) AS number FROM {table}{condition}", values)[0]["number"])  # noqa: S608

    def totals(self, table: str, column: str, by: str, **where: Any) -> dict[Any, int]:
        """The sums of a column over the rows with these values, by another column; no checksums are looked at."""
        condition, values = self._condition(where)
        sums = f"SELECT {by}, CAST(sum({column}) AS bigint) AS number FROM {table}{condition} GROUP BY {by}"  # noqa: S608
        return {row[by]: int(row["number"]) for row in self.query(sums, values)}

    def put(self, table: str, **values: Any) -> None:
        """Insert a row, or replace the one with its key."""
        self.put_all(table, [values])

    def put_all(self, table: str, rows: Iterable[Row]) -> None:
        """The same for several rows of a table, with the same columns and different keys."""
        summed = [row | {"sum": row_sum(table, row)} for row in (_typed(table, row) for row in rows)]
        if not summed:
            return
        columns, key = list(summed[0]), TABLES[table].key
        others = ", ".join(f"{column} = excluded.{column}" for column in columns if column not in key)
        self.write(table, columns, f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET {others}", summed)

    def delete(self, table: str, **where: Any) -> None:
        """Delete the rows with these values; all rows without any."""
        condition, values = self._condition(where)
        self.query(f"DELETE FROM {table}{condition}", values)  # noqa: S608

    def verify(self) -> None:
        """Read everything. LedgerCorrupted where any of it is not what was written."""
        for table in TABLES:
            self.rows(table)

    def copy_to(self, other: "Store") -> None:
        """Put all rows, as they are at one moment, into a ledger without any."""
        with self.snapshot():
            found = {table: self.rows(table) for table in TABLES}
        with other.transaction():
            for table, rows in found.items():
                other.put_all(table, rows)

    # -- schemas before ----------------------------------------------------------------------------------------

    def migrate(self, version: int) -> None:
        """Within a transaction: bring tables of a schema in `MIGRATED` to the present one. LedgerCorrupted."""
        if version == 4:  # where a lease had no owner, and in its row what was lost before
            leases = self._taken_out("leases", ("licence", "model", "day", "tokens", "lost"))
            for table in ("lost", "owners", "leases"):
                self.create(table)
            of_layers = [row | {"unit": LAYERS} for row in leases]
            self.put_all("lost", [_kept("lost", row | {"tokens": row["lost"]}) for row in of_layers if row["lost"]])
            owned = [row | {"owner": _OF_SCHEMA_4} for row in of_layers if row["tokens"]]
            self.put_all("leases", [_kept("leases", row) for row in owned])
        for table in ("usage", "disclosed") if version == 4 else ("usage", "disclosed", "lost", "leases"):
            rows = self._taken_out(table, [name for name in TABLES[table].columns if name != "unit"])
            self.create(table)
            self.put_all(table, [row | {"unit": LAYERS} for row in rows])

    def _taken_out(self, table: str, columns: Sequence[str]) -> list[Row]:
        """The rows of a table of another schema, which is gone then."""
        found = self.query(f"SELECT * FROM {table}", ())  # noqa: S608
        for row in found:
            if row.pop("sum", None) != row_sum(table, row, columns) or row.keys() != set(columns):
                raise corrupted(self.place)
        self.query(f"DROP TABLE {table}", ())
        return found

    def _condition(self, where: Row) -> tuple[str, list[Any]]:
        lists = {column: value if isinstance(value, list) else [value] for column, value in where.items()}
        terms = [f"{column} IN ({', '.join([self.mark] * len(values))})" for column, values in lists.items()]
        return (f" WHERE {' AND '.join(terms)}" if terms else ""), [one for values in lists.values() for one in values]

    # -- what the databases do differently ---------------------------------------------------------------------

    @abstractmethod
    def query(self, statement: str, values: Sequence[Any]) -> list[Row]:
        """Run one statement; the rows that it returns."""

    @abstractmethod
    def write(self, table: str, columns: Sequence[str], conflict: str, rows: Sequence[Row]) -> None:
        """Insert rows of these columns; conflict: the clause for those whose keys are there."""

    @abstractmethod
    def create(self, table: str) -> None:
        """Within a transaction: make a table."""

    @abstractmethod
    def transaction(self, licences: Iterable[bytes] | None = None) -> AbstractContextManager[None]:
        """All of what this thread writes inside, durably at its end, or none of it.

        No other one runs meanwhile; with licences, none that is for any of the same, or for all.
        """

    @abstractmethod
    def snapshot(self) -> AbstractContextManager[None]:
        """All of what this thread reads inside is of one moment, while others go on."""

    @abstractmethod
    def now(self) -> float:
        """Seconds since 1970, by a clock that all who use this database share."""

    @abstractmethod
    def identity(self) -> bytes:
        """Tells this database from a copy of it."""

    @abstractmethod
    def announce(self, licence: bytes) -> None:
        """Within a transaction: have all who `wait` look at a licence once it ends. Not certain to reach them."""

    def wait(self, seconds: float) -> set[bytes]:
        """Wait for so long, or for `wake`, or for announcements: the licences to look at."""
        self.rest(seconds)
        return set()

    def rest(self, seconds: float) -> None:
        """Wait for so long, or for `wake`, and for nothing else."""
        self._woken.wait(seconds)

    def wake(self) -> None:
        """End the waiting, now and from here on."""
        self._woken.set()

    @abstractmethod
    def close(self) -> None:
        """Let go of the database."""


def corrupted(place: object) -> LedgerCorrupted:
    """For a database, or rows of it, that are not what was written."""
    return LedgerCorrupted(
        f"{place} is damaged; do not serve from it. Restore the last backup with `confide ledger restore`."
    )


def row_sum(table: str, row: Row, columns: Iterable[str] | None = None) -> bytes:
    """The checksum of a row. columns: those of another version of the table."""
    ordered = [row.get(column) for column in columns or TABLES[table].columns]
    return hashlib.blake2b(msgspec.msgpack.encode([table, ordered]), digest_size=8).digest()


def _kept(table: str, row: Row) -> Row:
    """What of a row the table has."""
    return {name: row[name] for name in TABLES[table].columns}


def _typed(table: str, row: Row) -> Row:
    """A number as the column has it, so that its sum is the same when it is read."""
    columns = TABLES[table].columns
    real = (name for name, value in row.items() if columns[name] == "double precision" and value is not None)
    return row | {name: float(row[name]) for name in real}

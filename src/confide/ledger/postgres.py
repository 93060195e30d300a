"""A ledger in a PostgreSQL database, which several servers on several machines share.

A connection answers for nothing before it has shown that its commits are on a disk. The database is trusted with
licences and usage as the file is; what it says in errors is quoted as a peer's words.
"""

import logging
import os
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import psycopg
from psycopg import errors as states
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool, PoolTimeout

from confide.disk.secrets import LEDGER_PASSWORD, find_secret, variable
from confide.errors import InvalidSettings, LedgerInUse, LedgerUnavailable
from confide.ledger.address import DatabaseAddress
from confide.ledger.store import MIGRATED, OWNER_SECONDS, SCHEMA, TABLES, Row, Store, corrupted
from confide.printable import quoted

CONNECT_SECONDS: Final = 3
STATEMENT_SECONDS: Final = 5
"""For one statement, for a transaction that says nothing, and for bytes that nobody takes."""
LOCK_SECONDS: Final = 3
_CONNECTIONS: Final = 4
_CHANNEL: Final = "confide_ledger"
_NAMESPACE: Final = "confide_ledger"
_LOCK_OF_ALL: Final = (0x436F6E66, 0)
"""Of this database's advisory locks: held by whoever is in a transaction, alone by one that is for all licences."""
_DURABLE: Final = frozenset(("on", "remote_apply", "remote_write", "local"))
_LICENCE_KEY: Final = struct.Struct(">q")

Connection = psycopg.Connection[Row]

logging.getLogger("psycopg.pool").setLevel(logging.ERROR)  # each attempt to connect; what is asked meanwhile says it


class PostgresStore(Store):
    """A database, whose tables are made where there are none.

    LedgerUnavailable where it cannot be reached in seconds, has another version's tables, or does not wait for its
    disk. NotInstalled and InvalidSettings are for this side: a missing library, a variable that libpq would obey.
    """

    mark = "%s"

    def __init__(self, address: DatabaseAddress) -> None:
        super().__init__(str(address))
        _require_own_settings()
        self._own = threading.local()
        self._listening: Connection | None = None
        self._refused: LedgerUnavailable | None = None
        self._options = _options(address)
        with self._reporting():
            first = self._connect()
        try:
            with self._reporting():
                self._require_durable(first)
                self._make_tables(first)
        finally:
            first.close()
        self._pool = ConnectionPool(
            kwargs=self._options,
            connection_class=psycopg.Connection[Row],
            configure=self._require_durable,
            check=ConnectionPool.check_connection,
            min_size=1,
            max_size=_CONNECTIONS,
            timeout=CONNECT_SECONDS,
            reconnect_timeout=1,
            name=_NAMESPACE,
            open=True,
        )

    def __repr__(self) -> str:
        return f"PostgresStore({self.place})"

    def _connect(self) -> Connection:
        return psycopg.Connection[Row].connect(**self._options)

    def _require_durable(self, connection: Connection) -> None:
        """LedgerUnavailable unless a commit there means the disk; what the session has is kept as it is."""
        settings = ("synchronous_commit", "fsync", "full_page_writes")
        found = {name: connection.execute("SELECT current_setting(%s) AS it", (name,)).fetchone() for name in settings}
        values = {name: row["it"] if row else "" for name, row in found.items()}
        weak = [name for name in settings if values[name] not in (_DURABLE if name == settings[0] else {"on"})]
        self._refused = None
        if weak:
            self._refused = LedgerUnavailable(
                f"{self.place} does not wait for its disk: {weak[0]} is {quoted(str(values[weak[0]]), 20)}. Set it to "
                "on; without, a power failure would forget what was answered."
            )
            raise self._refused
        connection.execute("SELECT set_config('synchronous_commit', %s, false)", (values[settings[0]],))

    def _make_tables(self, connection: Connection) -> None:
        version = f"SELECT number FROM {_NAMESPACE}.version"  # noqa: S608
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", _LOCK_OF_ALL)
            there = connection.execute("SELECT to_regnamespace(%s) IS NOT NULL AS it", (_NAMESPACE,)).fetchone()
            if there and there["it"]:
                found = [row["number"] for row in connection.execute(version).fetchall()]
                if len(found) == 1 and found[0] in MIGRATED:
                    self._migrate(connection, found[0])
                elif found != [SCHEMA]:
                    raise LedgerUnavailable(
                        f"{self.place} was written by another version of Confide; use that one, or another database."
                    )
                return
            connection.execute(f"CREATE SCHEMA {_NAMESPACE}")
            connection.execute(f"CREATE TABLE {_NAMESPACE}.version (number bigint NOT NULL)")
            with self._within(connection):
                for table in TABLES:
                    self.create(table)
            connection.execute(f"INSERT INTO {_NAMESPACE}.version VALUES (%s)", (SCHEMA,))  # noqa: S608

    def _migrate(self, connection: Connection, version: int) -> None:
        """Within a transaction that is for all. LedgerInUse while servers of that version use the tables."""
        connection.execute("SET LOCAL statement_timeout = 0")  # as long as it takes to go through all rows
        connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        heard = "SELECT count(*) AS number FROM owners WHERE heard >= extract(epoch FROM clock_timestamp()) - %s"
        servers = connection.execute(heard, (OWNER_SECONDS,)).fetchone()
        if servers and servers["number"]:
            raise LedgerInUse(
                f"Servers of an older version of Confide are using {self.place}; stop them all, and wait "
                f"{OWNER_SECONDS:.0f} seconds for one that was killed."
            )
        with self._within(connection):
            self.migrate(version)
        connection.execute(f"UPDATE {_NAMESPACE}.version SET number = %s", (SCHEMA,))  # noqa: S608

    # -- statements --------------------------------------------------------------------------------------------

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        """This thread's own within a transaction, else one of the pool."""
        with self._reporting():
            own: Connection | None = getattr(self._own, "connection", None)
            if own is not None:
                yield own
                return
            with self._pool.connection() as connection:
                yield connection

    def query(self, statement: str, values: Sequence[Any]) -> list[Row]:
        with self._connection() as connection:
            cursor = connection.execute(statement.encode(), values)
            return cursor.fetchall() if cursor.description is not None else []

    def write(self, table: str, columns: Sequence[str], conflict: str, rows: Sequence[Row]) -> None:
        kinds = TABLES[table].columns | {"sum": "bytea"}
        places = ", ".join(f"%s::{kinds[column]}[]" for column in columns)
        command = f"INSERT INTO {table} ({', '.join(columns)}) SELECT * FROM unnest({places}) {conflict}"  # noqa: S608
        self.query(command, [[row[column] for row in rows] for column in columns])

    def create(self, table: str) -> None:
        made = TABLES[table]
        columns = ", ".join(f"{column} {kind}" for column, kind in made.columns.items())
        key = ", ".join(made.key)
        self.query(f"CREATE TABLE {_NAMESPACE}.{table} ({columns}, sum bytea NOT NULL, PRIMARY KEY ({key}))", ())

    @contextmanager
    def transaction(self, licences: Iterable[bytes] | None = None) -> Iterator[None]:
        with self._begun() as connection:
            if licences is None:
                connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", _LOCK_OF_ALL)
            else:
                connection.execute("SELECT pg_advisory_xact_lock_shared(%s, %s)", _LOCK_OF_ALL)
                # In one order, so that no two wait for each other.
                for (key,) in sorted(_LICENCE_KEY.iter_unpack(b"".join(licences))):
                    connection.execute("SELECT pg_advisory_xact_lock(%s::bigint)", (key,))
            yield

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        with self._begun() as connection:
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield

    @contextmanager
    def _begun(self) -> Iterator[Connection]:
        with self._reporting(), self._pool.connection() as connection, connection.transaction():
            with self._within(connection):
                yield connection

    @contextmanager
    def _within(self, connection: Connection) -> Iterator[None]:
        """This thread's statements are its transaction's."""
        self._own.connection = connection
        try:
            yield
        finally:
            self._own.connection = None

    def now(self) -> float:
        """By the database's clock."""
        return float(self.query("SELECT extract(epoch FROM clock_timestamp())::float8 AS now", ())[0]["now"])

    def identity(self) -> bytes:
        """The cluster's number, which a dump does not carry over, and the database's."""
        facts = self.query(
            "SELECT system_identifier, (SELECT oid FROM pg_database WHERE datname = current_database()) AS database "
            "FROM pg_control_system()",
            (),
        )[0]
        return f"{facts['system_identifier']}:{facts['database']}".encode()

    # -- announcements -----------------------------------------------------------------------------------------

    def announce(self, licence: bytes) -> None:
        self.query("SELECT pg_notify(%s, %s)", (_CHANNEL, licence.hex()))

    def wait(self, seconds: float) -> set[bytes]:
        if self._woken.is_set():
            return set()
        try:
            with self._reporting():
                if self._listening is None:
                    self._listening = self._connect()
                    self._listening.execute(f"LISTEN {_CHANNEL}")
                heard = list(self._listening.notifies(timeout=seconds, stop_after=1))
        except LedgerUnavailable:
            self._deafen()
            raise
        found = set()
        for notice in heard:
            with suppress(ValueError):  # whatever else is said on the channel
                found.add(bytes.fromhex(notice.payload[:64]))
        return found

    def _deafen(self) -> None:
        if self._listening is not None:
            self._listening.close()
            self._listening = None

    def close(self) -> None:
        self._deafen()
        self._pool.close()

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except (states.DataCorrupted, states.IndexCorrupted, states.UndefinedTable, states.UndefinedColumn) as error:
            raise corrupted(self.place) from error
        except PoolTimeout as error:
            raise self._refused or self._unavailable("it does not answer") from error
        except psycopg.Error as error:
            # What libpq says of a connection names address and user, and no password.
            said = error.diag.message_primary or str(error).strip().partition("\n")[0]
            raise self._unavailable(quoted(said, 200)) from error

    def _unavailable(self, reason: str) -> LedgerUnavailable:
        return LedgerUnavailable(
            f"The ledger {self.place} cannot be used ({reason}); see that the database runs, is reached and lets this "
            "server in. Nothing was answered and no token billed."
        )


def _options(address: DatabaseAddress) -> dict[str, Any]:
    """For libpq. Whatever is not said here has libpq's own default, never the environment's."""
    milliseconds = {
        "statement_timeout": STATEMENT_SECONDS,
        "lock_timeout": LOCK_SECONDS,
        "idle_in_transaction_session_timeout": STATEMENT_SECONDS,
    }
    session = {"search_path": f"{_NAMESPACE}"} | {name: f"{1000 * value}" for name, value in milliseconds.items()}
    password = find_secret(LEDGER_PASSWORD)
    return {
        "host": address.host,
        "port": address.port,
        "dbname": address.database,
        "user": address.user,
        "sslmode": "verify-full" if address.authority else "disable",
        "gssencmode": "disable",
        "connect_timeout": CONNECT_SECONDS,
        "keepalives_idle": STATEMENT_SECONDS,
        "keepalives_interval": 1,
        "keepalives_count": 3,
        "tcp_user_timeout": 1000 * STATEMENT_SECONDS,
        "target_session_attrs": "read-write",
        "application_name": "confide",
        "client_encoding": "UTF8",
        "options": " ".join(f"-c {name}={value}" for name, value in session.items()),
        "autocommit": True,
        "row_factory": dict_row,
        **({"sslrootcert": str(address.authority)} if address.authority else {}),
        **({"password": password.text} if password else {}),
    }


def _require_own_settings() -> None:
    """InvalidSettings for a variable that libpq obeys: it could lead elsewhere, or take TLS away."""
    for option in psycopg.pq.Conninfo.get_defaults():
        name = (option.envvar or b"").decode()
        if name and name in os.environ:
            raise InvalidSettings(
                f"{name} in the environment would change how the ledger's database is reached; unset it. Its address "
                f"says all of that, and {variable(LEDGER_PASSWORD)} the password."
            )

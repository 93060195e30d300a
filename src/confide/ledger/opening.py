"""Opens a ledger wherever it is; the library for databases is loaded where there is one."""

from confide.extras import named_extras
from confide.ledger.address import DatabaseAddress, Place
from confide.ledger.sqlite import SqliteStore
from confide.ledger.store import Store


def open_store(place: Place, *, serving: bool = False) -> Store:
    """The ledger of a state folder or a database, made where there is none yet. serving: to answer from it.

    Raises LedgerUnavailable, LedgerCorrupted, LedgerInUse for a folder that another process holds, and NotInstalled.
    """
    if not isinstance(place, DatabaseAddress):
        return SqliteStore.open(place, serving=serving)
    with named_extras():
        from confide.ledger.postgres import PostgresStore
    return PostgresStore(place)

"""Ledgers in both databases: what holds in one holds in the other."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from confide.ledger.address import DatabaseAddress, Place

if TYPE_CHECKING:
    from .postgres import Postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator["Postgres"]:
    """A server that all tests of this process share; skips where none is installed."""
    pytest.importorskip("psycopg_pool")
    from .postgres import PASSWORD, Postgres

    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PG")]:
            patch.delenv(name)
        patch.setenv("CONFIDE_LEDGER_PASSWORD", PASSWORD)
        server = Postgres()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture
def database(postgres: "Postgres") -> DatabaseAddress:
    """An empty database."""
    return postgres.database()


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Where a new ledger can be, in each of the two kinds of database."""
    if request.param == "sqlite":
        return tmp_path / "state"
    address: DatabaseAddress = request.getfixturevalue("database")
    return address

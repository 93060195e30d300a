"""Ledgers in both databases: what holds in one holds in the other."""

from pathlib import Path

import pytest

from confide.ledger.address import DatabaseAddress, Place


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Where a new ledger can be, in each of the two kinds of database."""
    if request.param == "sqlite":
        return tmp_path / "state"
    address: DatabaseAddress = request.getfixturevalue("database")
    return address

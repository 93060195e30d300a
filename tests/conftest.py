"""What all tests share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real data: CONFIDE_TEST_DATA, or `shared` beside the repository."""
    beside = Path(__file__).parents[2] / "shared"
    folder = Path(os.environ.get("CONFIDE_TEST_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; set CONFIDE_TEST_DATA to the folder of test data")
    return folder

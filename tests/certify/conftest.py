"""One simulated machine that measures, for all tests."""

import pytest
from tests.certify.certificates import MEASURED, Laboratory

from confide.attest.simulated import SimulatedTee


@pytest.fixture(scope="session")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    return Laboratory(SimulatedTee.create(tmp_path_factory.mktemp("laboratory") / "tee", MEASURED))

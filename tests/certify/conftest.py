"""Simulated machines that make runs, and a sealed model, for all tests."""

import pytest
from tests.certify.certificates import MEASURED, MODEL_KEY, Laboratory
from tests.owners import OWNER

from confide.attest.collateral_lookup import SentCollateral
from confide.attest.simulated import SimulatedTee
from confide.certify.runs import Attester, attester
from confide.enclave.tee import Tee
from confide.packages.sealed.contents import contents_of
from confide.packages.sealed.package import SealedPackage
from confide.packages.sealed.write import seal_model


@pytest.fixture(scope="session")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    return Laboratory(SimulatedTee.create(tmp_path_factory.mktemp("laboratory") / "tee", MEASURED))


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> SealedPackage:
    out = tmp_path_factory.mktemp("sealed") / "demo"
    seal_model(contents_of("demo"), out, key=MODEL_KEY, owner=OWNER)
    return SealedPackage.open(out)


@pytest.fixture(scope="session")
def tee(tmp_path_factory: pytest.TempPathFactory) -> SimulatedTee:
    return SimulatedTee.create(tmp_path_factory.mktemp("machine") / "tee")


@pytest.fixture(scope="session")
def here(tee: SimulatedTee) -> Attester:
    return attester(Tee("simulated", tee, tee.collateral), SentCollateral())

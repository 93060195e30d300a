"""The simulated machine that a graph's services run on, and what they serve."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from confide.attest.chain import read_certificate
from confide.attest.simulated import SimulatedTee

from .scene import Packages


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("machine")
    SimulatedTee.create(folder)
    return folder


@pytest.fixture(scope="module")
def root(machine: Path) -> Path:
    return machine / "root.pem"


@pytest.fixture(scope="module")
def root_der(root: Path) -> bytes:
    return read_certificate(root.read_bytes(), "root").public_bytes(Encoding.DER)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    return Packages.make(tmp_path_factory.mktemp("packages"))

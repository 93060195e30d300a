"""A fresh broker for each test, and one simulated machine for all."""

from functools import partial
from pathlib import Path

import pytest
from tests.enclave.key_release.scene import KEY, MODEL, NOW, PASSPHRASE, Scene, collateral_of, simulated

from confide.attest.simulated import SimulatedTee
from confide.broker import store
from confide.broker.broker import Broker
from confide.broker.log import AuditLog
from confide.broker.store import KeyStore
from confide.enclave.workload import Workload


@pytest.fixture(autouse=True)
def _cheap_passphrases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SCRYPT_COST", 16)


@pytest.fixture(scope="session")
def tee(tmp_path_factory: pytest.TempPathFactory) -> SimulatedTee:
    return SimulatedTee.create(tmp_path_factory.mktemp("simulated") / "tee")


@pytest.fixture
def keys(tmp_path: Path) -> KeyStore:
    return KeyStore.create(tmp_path / "keys", PASSPHRASE)


@pytest.fixture
def scene(tmp_path: Path, keys: KeyStore, tee: SimulatedTee) -> Scene:
    keys.add(KEY, simulated(tee), NOW)
    folder = tmp_path / "keys"
    workload = Workload(tee, partial(collateral_of, tee), model_digest=MODEL)
    return Scene(folder, keys, Broker(keys, AuditLog(folder, NOW)), workload)

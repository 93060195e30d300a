"""Model keys at rest: only with the passphrase, never in the open, and whole after whatever happens."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.enclave.key_release.scene import KEY, MODEL, NOW, PASSPHRASE, root_of, simulated

from confide.attest.policy import Policy, SimulatedPolicy
from confide.attest.requirements import NotDebug, Tdx
from confide.attest.simulated import SimulatedTee
from confide.broker.store import HEADER_NAME, Conditions, KeyStore
from confide.errors import InvalidPolicy, KeyStoreError, UnknownModelKey
from confide.packages.sealed.key import ModelKey

POLICY = Policy.all_of(Tdx(mrtd="cd" * 48), NotDebug(), version="7")


def reopen(tmp_path: Path, passphrase: str = PASSPHRASE) -> KeyStore:
    return KeyStore.open(tmp_path / "keys", lambda: passphrase)


def test_what_is_kept_comes_back(tmp_path: Path, keys: KeyStore, tee: SimulatedTee) -> None:
    other = ModelKey.generate()
    keys.add(KEY, Conditions(MODEL, POLICY), NOW)
    keys.add(other, simulated(tee), NOW)
    again = reopen(tmp_path)
    assert again.get(KEY.id).key == KEY
    assert again.get(KEY.id).conditions == Conditions(MODEL, POLICY)
    assert again.get(other.id).conditions == Conditions(MODEL, SimulatedPolicy(), root_of(tee))
    assert {stored.key.id for stored in again.all()} == {KEY.id, other.id}
    again.remove(KEY.id)
    assert [stored.key.id for stored in keys.all()] == [other.id]  # the one that was open sees it


def test_nothing_is_in_the_open(tmp_path: Path, keys: KeyStore) -> None:
    stored = keys.add(KEY, Conditions(MODEL, POLICY), NOW)
    assert KEY.raw not in (tmp_path / "keys" / f"{KEY.id}.key").read_bytes()
    for shown in (repr(stored), repr(keys), repr(stored.key), str(stored)):
        assert KEY.raw.hex() not in shown
        assert repr(KEY.raw)[2:-1] not in shown
        assert PASSPHRASE not in shown
    folder = tmp_path / "keys"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in folder.iterdir())


def test_another_passphrase_opens_nothing(tmp_path: Path, keys: KeyStore) -> None:
    keys.add(KEY, Conditions(MODEL, POLICY), NOW)
    with pytest.raises(KeyStoreError, match="passphrase") as caught:
        reopen(tmp_path, "battery staple")
    assert "battery" not in str(caught.value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10_000), change=st.integers(1, 255), cut=st.booleans())
def test_a_changed_file_is_refused(tmp_path: Path, at: int, change: int, cut: bool) -> None:
    folder = tmp_path / "keys"
    if not KeyStore.exists(folder):
        KeyStore.create(folder, PASSPHRASE).add(KEY, Conditions(MODEL, POLICY), NOW)
    for name in (f"{KEY.id}.key", HEADER_NAME):
        path = folder / name
        content = path.read_bytes()
        place = at % len(content)
        path.write_bytes(content[:place] if cut else _changed(content, place, change))
        with pytest.raises(KeyStoreError):
            reopen(tmp_path).get(KEY.id)
        path.write_bytes(content)
    assert reopen(tmp_path).get(KEY.id).key == KEY


def test_a_file_under_another_name_is_refused(tmp_path: Path, keys: KeyStore) -> None:
    keys.add(KEY, Conditions(MODEL, POLICY), NOW)
    (tmp_path / "keys" / f"{KEY.id}.key").rename(tmp_path / "keys" / f"{'0' * 32}.key")
    with pytest.raises(KeyStoreError, match="changed"):
        keys.get("0" * 32)


def test_a_key_is_added_once(keys: KeyStore, tee: SimulatedTee) -> None:
    keys.add(KEY, Conditions(MODEL, POLICY), NOW)
    with pytest.raises(KeyStoreError, match="keys remove"):
        keys.add(KEY, simulated(tee), NOW)
    assert keys.get(KEY.id).conditions.policy == POLICY


@pytest.mark.parametrize("identity", ["0" * 32, "", "../../etc/passwd", "keystore", "x" * 5000])
def test_unknown_keys(keys: KeyStore, identity: str) -> None:
    with pytest.raises(UnknownModelKey):
        keys.get(identity)
    with pytest.raises(UnknownModelKey):
        keys.remove(identity)


def test_folders(tmp_path: Path, keys: KeyStore) -> None:
    with pytest.raises(KeyStoreError, match="already"):
        KeyStore.create(tmp_path / "keys", PASSPHRASE)
    with pytest.raises(KeyStoreError, match="keys add"):
        KeyStore.open(tmp_path / "nowhere", lambda: pytest.fail("asked for a passphrase of nothing"))
    with pytest.raises(KeyStoreError, match="choose one"):
        KeyStore.create(tmp_path / "other", "")
    assert not KeyStore.exists(tmp_path / "other")


def test_policies_and_roots_go_together(tee: SimulatedTee) -> None:
    with pytest.raises(InvalidPolicy, match="simulated"):
        Conditions(MODEL, SimulatedPolicy())
    with pytest.raises(InvalidPolicy, match="production"):
        Conditions(MODEL, Policy(), root_of(tee))
    with pytest.raises(InvalidPolicy, match="64"):
        Conditions("AB" * 32, Policy())


def _changed(content: bytes, place: int, change: int) -> bytes:
    return content[:place] + bytes([content[place] ^ change]) + content[place + 1 :]

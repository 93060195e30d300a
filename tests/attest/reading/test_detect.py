from pathlib import Path

import pytest
from tests.attest.reading.fake_tsm import FakeTsm

from confide.attest.reading import detect as module
from confide.attest.reading.configfs_tsm import ConfigfsTsm
from confide.attest.reading.detect import detect
from confide.attest.reading.gramine import Gramine
from confide.attest.reading.nitro import Nsm
from confide.attest.reading.tpm import Tpm
from confide.errors import NoTrustedEnvironment


def test_where_there_is_nothing_every_reason_is_told(tmp_path: Path) -> None:
    found = detect(tmp_path / "tsm", tmp_path / "gramine", tmp_path / "tpm", tmp_path / "tag", tmp_path / "nsm")
    assert found.readers == ()
    assert set(found.absent) == {"gramine", "nitro", "configfs-tsm", "azure-cvm", "tpm"}
    with pytest.raises(NoTrustedEnvironment, match="confide tee simulate init") as raised:
        _ = found.best
    assert all(name in str(raised.value) for name in found.absent)


def test_finds_what_is_there_strongest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = FakeTsm()
    monkeypatch.setattr(
        module, "ConfigfsTsm", lambda folder: ConfigfsTsm(folder, make=kernel.make, remove=kernel.remove)
    )
    (tmp_path / "attestation_type").write_text("dcap")
    (tmp_path / "tpm").touch()
    (tmp_path / "nsm").touch()
    found = detect(tmp_path, tmp_path, tmp_path / "tpm", tmp_path / "tag", tmp_path / "nsm")
    assert [type(reader) for reader in found.readers] == [Gramine, Nsm, ConfigfsTsm, Tpm]
    assert isinstance(found.best, Gramine)
    assert set(found.absent) == {"azure-cvm"}

from pathlib import Path

import pytest
from tests.attest.reading.fake_tsm import FakeTsm

from confide.attest.evidence import MAX_EVIDENCE_BYTES, Evidence, Family
from confide.attest.reading.configfs_tsm import ATTEMPTS, ConfigfsTsm
from confide.errors import EvidenceUnavailable, NoTrustedEnvironment

REPORT_DATA = bytes(range(64))


def reader(folder: Path, kernel: FakeTsm, **options: object) -> ConfigfsTsm:
    return ConfigfsTsm(folder, make=kernel.make, remove=kernel.remove, sleep=lambda _: None, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("provider", "family"), [("tdx_guest", Family.TDX), ("sev_guest", Family.SNP)])
def test_reads_a_report_and_cleans_up(tmp_path: Path, provider: str, family: Family) -> None:
    kernel = FakeTsm(provider)
    assert reader(tmp_path, kernel).read(REPORT_DATA) == Evidence(family, b"quote over " + REPORT_DATA)
    assert list(tmp_path.iterdir()) == []
    assert kernel.removed == kernel.entries


def test_sends_along_what_the_provider_adds_and_the_event_log(tmp_path: Path) -> None:
    log = tmp_path / "CCEL"
    log.write_bytes(b"events")
    evidence = reader(tmp_path, FakeTsm("sev_guest", auxblob=b"certificates"), event_log=log).read(REPORT_DATA)
    assert evidence.parts == {"auxblob": b"certificates", "event_log": b"events"}


def test_asks_again_when_somebody_else_wrote(tmp_path: Path) -> None:
    kernel = FakeTsm(disturb=2)
    assert reader(tmp_path, kernel).read(REPORT_DATA).raw.endswith(REPORT_DATA)
    assert len(kernel.entries) == 3
    assert kernel.removed == kernel.entries


def test_gives_up_when_it_never_settles(tmp_path: Path) -> None:
    kernel = FakeTsm(disturb=99)
    with pytest.raises(EvidenceUnavailable, match="find what else writes there"):
        reader(tmp_path, kernel).read(REPORT_DATA)
    assert len(kernel.entries) == ATTEMPTS
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("blob", "said"), [(b"", "empty"), (bytes(MAX_EVIDENCE_BYTES + 1), "no evidence needs")])
def test_refuses_an_empty_or_endless_report(tmp_path: Path, blob: bytes, said: str) -> None:
    with pytest.raises(EvidenceUnavailable, match=said):
        reader(tmp_path, FakeTsm(outblob=lambda _: blob)).read(REPORT_DATA)


def test_an_unknown_provider_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoTrustedEnvironment, match="arm_cca_guest"):
        reader(tmp_path, FakeTsm("arm_cca_guest")).provider()


def test_says_what_to_do_where_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(NoTrustedEnvironment, match="confide tee simulate init"):
        ConfigfsTsm(tmp_path / "missing").read(REPORT_DATA)


def test_says_so_where_this_account_may_not(tmp_path: Path) -> None:
    def forbid(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    with pytest.raises(EvidenceUnavailable, match="run as root"):
        ConfigfsTsm(tmp_path, make=forbid).read(REPORT_DATA)


def test_never_pads_report_data(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="64 bytes"):
        ConfigfsTsm(tmp_path).read(b"short")

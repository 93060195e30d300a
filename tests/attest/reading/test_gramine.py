from pathlib import Path

import pytest

from confide.attest.evidence import Evidence, Family
from confide.attest.reading.gramine import Gramine
from confide.errors import EvidenceUnavailable, NoTrustedEnvironment

REPORT_DATA = bytes(range(64))


def gramine(folder: Path, kind: str = "dcap", quote: bytes = b"quote") -> Gramine:
    (folder / "attestation_type").write_text(kind + "\n")
    (folder / "user_report_data").write_bytes(b"")
    (folder / "quote").write_bytes(quote)
    return Gramine(folder)


def test_writes_the_report_data_and_reads_the_quote(tmp_path: Path) -> None:
    assert gramine(tmp_path).read(REPORT_DATA) == Evidence(Family.SGX, b"quote")
    assert (tmp_path / "user_report_data").read_bytes() == REPORT_DATA


def test_gramine_without_attestation_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(NoTrustedEnvironment, match=r"sgx\.remote_attestation"):
        gramine(tmp_path, kind="none").read(REPORT_DATA)


def test_no_gramine_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NoTrustedEnvironment, match="confide tee simulate init"):
        Gramine(tmp_path).read(REPORT_DATA)


def test_an_empty_quote_or_none_points_at_aesmd(tmp_path: Path) -> None:
    reader = gramine(tmp_path, quote=b"")
    with pytest.raises(EvidenceUnavailable, match="aesmd"):
        reader.read(REPORT_DATA)
    (tmp_path / "quote").unlink()
    with pytest.raises(EvidenceUnavailable, match="aesmd"):
        reader.read(REPORT_DATA)

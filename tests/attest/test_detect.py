"""Telling evidence and collateral by their content."""

import json
from pathlib import Path

import pytest
from tests.attest.families.forged_nvidia import DEVICE, ROOT
from tests.attest.families.forged_rim import RIM_AUTHORITY, RIM_SIGNER, manifest, response

from confide.attest.detect import read_collateral, read_evidence
from confide.attest.evidence import MAX_EVIDENCE_BYTES, Evidence, Family
from confide.errors import MalformedEvidence

REAL = [
    ("sgx/quote_v3.bin", Family.SGX),
    ("tdx/quote_v4.bin", Family.TDX),
    ("tdx/quote_v4_debug_td.bin", Family.TDX),
    ("tdx/quote_v5.bin", Family.TDX),
    ("snp/report_v2_milan.bin", Family.SNP),
    ("snp/report_v3_vlek.bin", Family.SNP),
    ("tpm/evidence.json", Family.TPM),
    ("nvidia/hopper_report.txt", Family.NVIDIA),
]


@pytest.fixture
def real(test_data: Path) -> Path:
    """The folder of real evidence."""
    return test_data / "evidence"


@pytest.mark.parametrize(("name", "family"), REAL)
def test_real_evidence(name: str, family: Family, real: Path) -> None:
    evidence, _ = read_evidence((real / name).read_bytes())
    assert evidence.family is family


def test_the_parts_of_tpm_and_gpu_evidence(real: Path) -> None:
    evidence, collateral = read_evidence((real / "tpm/evidence.json").read_bytes())
    assert evidence.raw.startswith(b"\xffTCG")
    assert evidence.parts.keys() == {"signature", "pcrs"}
    assert len(evidence.parts["pcrs"]) == 24 * 32
    assert collateral.documents.keys() == {"ak"}
    gpu, _ = read_evidence((real / "nvidia/hopper_report.txt").read_bytes())
    assert gpu == read_evidence(gpu.raw)[0]


@pytest.mark.parametrize(
    ("names", "documents"),
    [
        (["tdx/quote_v4.collateral.json"], {"dcap"}),
        (["snp/ask_ark_milan.pem", "snp/vcek_milan.der"], {"chain", "vcek"}),
        (["snp/vlek.der", "snp/ask_ark_milan_vlek.pem"], {"chain", "vlek"}),
        (["nvidia/hopper_cert_chain.txt"], {"chain"}),
    ],
)
def test_real_collateral(names: list[str], documents: set[str], real: Path) -> None:
    assert read_collateral((real / name).read_bytes() for name in names).documents.keys() == documents


def test_the_same_collateral_twice(real: Path) -> None:
    chain = (real / "snp/ask_ark_milan.pem").read_bytes()
    with pytest.raises(MalformedEvidence, match="Two of the files"):
        read_collateral([chain, chain])


def test_tokens_and_forced_families() -> None:
    assert read_evidence(b"eyJhbGciOiJub25lIn0.e30.\n")[0].family is Family.TOKEN
    assert read_evidence(b"anything", Family.SGX)[0] == Evidence(Family.SGX, b"anything")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\3\0\2\0",
        b"\6\0\2\0" + bytes(100),
        b"\4\0\2\0\7" + bytes(100),
        b"\2\0\0\0" + bytes(1179),
        b"{}",
        b'{"tpm_quote": {"message": "!", "signature": "", "pcrs": []}, "ak_public": ""}',
        b"[1]",
        b"{" * 100_000,
        b"11e",
        bytes(MAX_EVIDENCE_BYTES + 1),
    ],
)
def test_what_is_no_evidence(data: bytes) -> None:
    with pytest.raises(MalformedEvidence):
        read_evidence(data)


@pytest.mark.parametrize("data", [b"", b"\x30\x82", b"{}", b"{", json.dumps([]).encode(), b'{"tcb_info": 1'])
def test_what_is_no_collateral(data: bytes) -> None:
    with pytest.raises(MalformedEvidence):
        read_collateral([data])


def test_gpu_reports_that_are_not_hexadecimal() -> None:
    with pytest.raises(MalformedEvidence, match="hexadecimal"):
        read_evidence(b"\xff\xfe", Family.NVIDIA)


def test_documents_about_gpus_and_releases() -> None:
    driver, vbios = (manifest({1: bytes(48)}, version) for version in ("550.90.07", "96.00.9F.00.01"))
    statuses = [response(DEVICE, ROOT), response(RIM_SIGNER, RIM_AUTHORITY)]
    bundle = b'{"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json"}'
    found = read_collateral([vbios, driver, *statuses, bundle])
    assert found.documents == {
        "driver-rim": driver,
        "vbios-rim": vbios,
        "ocsp": b"".join(statuses),
        "release": bundle,
    }
    with pytest.raises(MalformedEvidence, match="give each thing once"):
        read_collateral([driver, driver])
    for other in (b"<a/>", b"<", b'<a colloquialVersion="x"/>'):
        with pytest.raises(MalformedEvidence, match="no reference manifest"):
            read_collateral([other])

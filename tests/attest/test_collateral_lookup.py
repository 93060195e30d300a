"""Which addresses are asked for the collateral of a piece of evidence, and what becomes of the answers."""

import struct
import uuid
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.attest.families.forged_azure import azure_case
from tests.attest.families.forged_snp import CHIP, GENOA, TCB, TURIN, Fields, Line, snp_case
from tests.client.vendor_server import LEAF, VendorServer

from confide.attest.amd import Product
from confide.attest.collateral import Collateral
from confide.attest.collateral_cache import CollateralCache, Response
from confide.attest.collateral_lookup import VendorCollateral, find_collateral
from confide.attest.collateral_sources import AmdPlatform
from confide.attest.evidence import Evidence, Family
from confide.attest.simulated import SimulatedTee
from confide.attest.simulated_vendor import FMSPC
from confide.errors import MalformedEvidence, WrongCollateral

VLEK = uuid.UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1")
VCEK_PATH = AmdPlatform(Product.MILAN, CHIP, TCB).vcek_path
Find = Callable[[Evidence], Collateral]


@pytest.fixture
def vendor() -> VendorServer:
    """Both vendors' answers, without a network."""
    vendor = VendorServer()
    vendor.serve_intel()
    vendor.serve_amd(VCEK_PATH)
    vendor.serve_amd("/nothing", kind="vlek")
    tcb = "/tdx/certification/v4/tcb?fmspc="
    vendor.replies[tcb + FMSPC.hex().upper()] = vendor.replies[tcb + "B0C06F000000"]
    vendor.replies["/IntelSGXRootCA.der"] = vendor.replies["/root.der"]
    return vendor


@pytest.fixture
def find(vendor: VendorServer, tmp_path: Path) -> Find:
    def fetch(url: str) -> Response:
        parts = urlsplit(url)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        vendor.asked.append(path)
        if path not in vendor.replies:
            return Response(404)
        reply = vendor.replies[path][0]
        return Response(reply.status, reply.body, {name.lower(): value for name, value in reply.headers.items()})

    cache = CollateralCache(tmp_path / "cache", fetch)
    return lambda evidence: find_collateral(cache, evidence)


@pytest.fixture
def quote(tmp_path: Path) -> Evidence:
    return SimulatedTee.create(tmp_path / "tee").quote(bytes(64))


def test_a_quote_names_its_platform(find: Find, vendor: VendorServer, quote: Evidence) -> None:
    assert set(find(quote).documents) == {"dcap"}
    assert f"/tdx/certification/v4/tcb?fmspc={FMSPC.hex().upper()}" in vendor.asked


def test_a_report_names_its_chip_and_level(find: Find, vendor: VendorServer) -> None:
    assert find(snp_case().evidence).documents["vcek"] == LEAF
    assert VCEK_PATH in vendor.asked


@pytest.mark.parametrize("of", [GENOA, TURIN])
@pytest.mark.parametrize("version", [3, 5])
def test_a_report_names_its_product(find: Find, vendor: VendorServer, of: Line, version: int) -> None:
    path = AmdPlatform(of.product, of.chip, TCB).vcek_path
    vendor.serve_amd(path, product=of.product)
    assert find(snp_case(Fields.of(of, version=version), of=of).evidence).documents["vcek"] == LEAF
    assert path in vendor.asked
    assert not any("/Milan" in asked for asked in vendor.asked)


def test_a_report_that_names_no_product_is_looked_for(find: Find, vendor: VendorServer) -> None:
    path = AmdPlatform(Product.GENOA, GENOA.chip, TCB).vcek_path
    del vendor.replies[VCEK_PATH]
    vendor.serve_amd(path, product="Genoa")
    evidence = snp_case(Fields.of(GENOA, version=2), of=GENOA).evidence
    assert find(evidence).documents["vcek"] == LEAF
    assert {VCEK_PATH, path} <= set(vendor.asked)
    unknown = snp_case(Fields.of(GENOA, version=2, chip=bytes(64)), of=GENOA).evidence
    with pytest.raises(WrongCollateral, match="404"):
        find(unknown)


def test_a_machine_at_azure_is_its_processor(find: Find, vendor: VendorServer) -> None:
    path = AmdPlatform(Product.GENOA, GENOA.chip, TCB).vcek_path
    vendor.serve_amd(path, product="Genoa")
    assert find(azure_case().evidence).documents["vcek"] == LEAF
    assert find(Evidence(Family.NITRO, b"")) == Collateral()


def test_a_providers_certificate_comes_with_the_report(find: Find, vendor: VendorServer) -> None:
    report = snp_case(Fields(flags=4), "vlek").evidence
    table = struct.pack("<16sII", VLEK.bytes_le, 48, 4) + bytes(24) + b"VLEK"
    assert find(Evidence(Family.SNP, report.raw, {"auxblob": table})).documents["vlek"] == b"VLEK"
    assert all(path.startswith("/vlek/v1/Milan/") for path in vendor.asked)
    with pytest.raises(WrongCollateral, match="ask the cloud"):
        find(report)


def test_members_have_their_own(find: Find, quote: Evidence) -> None:
    both = find(Evidence(Family.COMPOSITE, b"", members=(quote, snp_case().evidence)))
    assert [set(member.documents) for member in both.members] == [{"dcap"}, {"vcek", "chain", "crl"}]


def test_a_tpm_has_no_vendor_to_ask(find: Find, vendor: VendorServer) -> None:
    with pytest.raises(WrongCollateral, match="send it"):
        find(Evidence(Family.TPM, b""))
    assert find(Evidence(Family.TOKEN, b"")) == Collateral()
    assert vendor.asked == []


@pytest.mark.parametrize("family", [Family.SGX, Family.TDX, Family.SNP])
@pytest.mark.parametrize("raw", [b"", bytes(1184), bytes(5000)])
def test_nobody_is_asked_about_what_is_no_evidence(
    find: Find, vendor: VendorServer, family: Family, raw: bytes
) -> None:
    with pytest.raises(MalformedEvidence):
        find(Evidence(family, raw))
    assert vendor.asked == []


@pytest.mark.parametrize(
    ("name", "fmspc"), [("sgx/quote_v3.bin", "00a067110000"), ("tdx/quote_v5.bin", "90c06f000000")]
)
def test_real_quotes(find: Find, vendor: VendorServer, test_data: Path, name: str, fmspc: str) -> None:
    path = test_data / "evidence" / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    family = Family(name.partition("/")[0])
    ca = "processor" if family is Family.SGX else "platform"
    with pytest.raises(WrongCollateral, match="404"):
        find(Evidence(family, path.read_bytes()))
    wanted = {
        f"/sgx/certification/v4/pckcrl?ca={ca}&encoding=der",
        f"/{family.value}/certification/v4/tcb?fmspc={fmspc.upper()}",
    }
    assert wanted & set(vendor.asked)


def test_a_release_goes_along_and_chooses_no_collateral(vendor: VendorServer, tmp_path: Path) -> None:
    def fetch(url: str, body: bytes = b"") -> Response:
        parts = urlsplit(url)
        reply = vendor.replies[parts.path + (f"?{parts.query}" if parts.query else "")][0]
        return Response(reply.status, reply.body)

    sent = Collateral({"release": b"bundle", "crl": b"chosen by the workload"})
    found = VendorCollateral(CollateralCache(tmp_path / "cache", fetch)).find(snp_case().evidence, sent)
    assert found.documents["release"] == b"bundle"
    assert found.documents["crl"] != b"chosen by the workload"
    assert not found.provenance.sent
    offline = VendorCollateral(CollateralCache(tmp_path / "cache", None), offline=True)
    kept = offline.find(snp_case().evidence, Collateral({"release": b"bundle"}))
    assert kept.documents["release"] == b"bundle"
    assert "vcek" in kept.documents
    assert not kept.provenance.sent

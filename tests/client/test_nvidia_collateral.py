"""A GPU's collateral from a server that plays NVIDIA's services, down to the verdict."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.x509 import ocsp
from tests.attest.families.cases import NOW, Case
from tests.attest.families.forged_nvidia import BLOCKS, DEVICE, FIELDS, ROOT, Messages, gpu_case
from tests.attest.families.forged_rim import RIM_AUTHORITY, RIM_ROOT, RIM_SIGNER, answer, manifest, response
from tests.client import vendor_server
from tests.client.vendor_server import Reply, VendorServer

from confide.attest.check import Outcome
from confide.attest.collateral_cache import CollateralCache
from confide.attest.collateral_lookup import find_collateral
from confide.attest.collateral_nvidia import nvidia_collateral
from confide.attest.collateral_sources import Gathered
from confide.attest.evidence import Evidence, Family
from confide.attest.families.nvidia_report import Report
from confide.attest.ocsp import ocsp_request
from confide.attest.roots import SimulatedRoots
from confide.client.collateral_fetch import fetcher
from confide.errors import CollateralUnavailable, MalformedEvidence, Revoked, WrongCollateral

BOARD = {15: b"882\0\0\0\0\0\0", 17: b"1010\0", 18: b"0200\0"}
DRIVER_RIM = "/v1/rim/NV_GPU_DRIVER_GH100_550.1"
VBIOS_RIM = "/v1/rim/NV_GPU_VBIOS_1010_0200_882_96009F0001"
ISSUED = ((DEVICE, ROOT), (RIM_SIGNER, RIM_AUTHORITY), (RIM_AUTHORITY, RIM_ROOT))


def gpu() -> Case:
    """Evidence as `confide serve` sends it: the chain beside the report, and no collateral."""
    case = gpu_case(Messages(fields=FIELDS | BOARD))
    parts = {"chain": case.collateral.documents["chain"]}
    roots = SimulatedRoots({Family.NVIDIA: ROOT.der}, references={Family.NVIDIA: RIM_ROOT.der})
    return replace(case, evidence=Evidence(Family.NVIDIA, case.evidence.raw, parts), roots=roots)


@pytest.fixture
def vendor() -> Iterator[VendorServer]:
    with vendor_server.running() as running:
        running.replies[DRIVER_RIM] = [Reply(json.dumps(answer(manifest({2: BLOCKS[2]}, "550.1"))).encode())]
        vbios = manifest({1: BLOCKS[1]}, "96.00.9F.00.01")
        running.replies[VBIOS_RIM] = [Reply(json.dumps(answer(vbios)).encode())]
        for one, issuer in ISSUED:
            request = ocsp_request(one.certificate, issuer.certificate)
            running.statuses[request] = response(one, issuer)
        yield running


@pytest.fixture
def cache(tmp_path: Path) -> CollateralCache:
    return CollateralCache(tmp_path, fetcher(seconds=5), clock=lambda: NOW, sleep=lambda _: None)


def gather(cache: CollateralCache, vendor: VendorServer, case: Case) -> Gathered:
    return nvidia_collateral(cache, case.evidence, service=vendor.url, responder=vendor.url + "/ocsp")


def test_everything_is_fetched_once_and_passes_every_check(vendor: VendorServer, cache: CollateralCache) -> None:
    case = gpu()
    gathered = gather(cache, vendor, case)
    assert set(gathered.collateral.documents) == {"chain", "driver-rim", "vbios-rim", "ocsp"}
    claims = replace(case, collateral=gathered.collateral).verify()
    assert {one.outcome for one in claims.checks} == {Outcome.PASS}
    assert gathered.collateral.provenance.fetched == NOW
    assert claims.issued_at == NOW - timedelta(hours=1)
    assert gather(cache, vendor, case) == gathered
    assert (vendor.asked, len(vendor.asked_about)) == ([DRIVER_RIM, VBIOS_RIM], 3)


def test_a_revoked_signer_of_a_manifest(vendor: VendorServer, cache: CollateralCache) -> None:
    request = ocsp_request(RIM_SIGNER.certificate, RIM_AUTHORITY.certificate)
    vendor.statuses[request] = response(RIM_SIGNER, RIM_AUTHORITY, status=ocsp.OCSPCertStatus.REVOKED)
    case = gpu()
    with pytest.raises(Revoked, match="RIM signer"):
        replace(case, collateral=gather(cache, vendor, case).collateral).verify()


def test_a_manifest_that_nvidia_does_not_have_is_not_checked(vendor: VendorServer, cache: CollateralCache) -> None:
    del vendor.replies[DRIVER_RIM]
    case = gpu()
    gathered = gather(cache, vendor, case)
    assert set(gathered.collateral.documents) == {"chain", "vbios-rim", "ocsp"}
    outcomes = {one.code: one.outcome for one in replace(case, collateral=gathered.collateral).verify().checks}
    assert outcomes["nvidia-measurements"] is Outcome.SKIPPED


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b'{"rim": 5}', b'{"rim": "!"}', b'{"rim": "\xff"}'])
def test_answers_that_are_no_manifest(vendor: VendorServer, cache: CollateralCache, body: bytes) -> None:
    vendor.replies[DRIVER_RIM] = [Reply(body)]
    with pytest.raises(MalformedEvidence):
        gather(cache, vendor, gpu())


def test_a_service_that_is_away(vendor: VendorServer, cache: CollateralCache) -> None:
    vendor.replies[DRIVER_RIM] = [Reply(status=503)]
    with pytest.raises(CollateralUnavailable):
        gather(cache, vendor, gpu())


def test_a_responder_that_answers_something_else(vendor: VendorServer, cache: CollateralCache) -> None:
    request = ocsp_request(DEVICE.certificate, ROOT.certificate)
    vendor.statuses[request] = b"<html>"
    with pytest.raises(MalformedEvidence):
        gather(cache, vendor, gpu())


def test_answers_are_renewed_when_their_time_is_over(vendor: VendorServer, tmp_path: Path) -> None:
    times = [NOW]
    cache = CollateralCache(tmp_path, fetcher(seconds=5), clock=lambda: times[0], sleep=lambda _: None)
    gather(cache, vendor, gpu())
    times[0] = NOW + timedelta(hours=2)
    gather(cache, vendor, gpu())
    assert (len(vendor.asked), len(vendor.asked_about)) == (2, 6)


def test_what_a_report_says_cannot_change_the_address(vendor: VendorServer, cache: CollateralCache) -> None:
    for text in (b"../../x", b"550 1", b"550?x=1", b"a" * 33, "\u00e9".encode(), b"550\r\nHost: x", b"55/0"):
        report = Report.parse(gpu_case(Messages(fields=FIELDS | BOARD | {3: text, 17: text})).evidence.raw)
        assert (report.driver_manifest("GH100"), report.vbios_manifest()) == (None, None)
    report = Report.parse(gpu().evidence.raw)
    assert report.driver_manifest("../x") is None
    assert report.driver_manifest("GB100") == "NV_GPU_CC_DRIVER_GB100_550.1"
    named = Report.parse(gpu_case(Messages(fields=FIELDS | {35: b"GB202\0\0"})).evidence.raw)
    assert named.driver_manifest("GB100") == "NV_GPU_CC_DRIVER_GB202_550.1"


def test_a_report_without_its_chain(cache: CollateralCache) -> None:
    with pytest.raises(WrongCollateral, match="missing"):
        find_collateral(cache, gpu_case().evidence)


def test_names_for_real_reports(test_data: Path) -> None:
    folder = test_data / "evidence" / "nvidia"
    hopper, blackwell = (
        Report.parse(bytes.fromhex((folder / f"{name}_report.txt").read_text())) for name in ("hopper", "blackwell")
    )
    assert hopper.vbios_manifest() == "NV_GPU_VBIOS_1010_0200_882_96009F0001"
    assert hopper.driver_manifest("GH100") == "NV_GPU_DRIVER_GH100_550.90.07"
    assert blackwell.vbios_manifest() == "NV_GPU_VBIOS_G525_0220_886_970088000F"
    assert blackwell.driver_manifest("GB100") == "NV_GPU_CC_DRIVER_GB100_575.32"

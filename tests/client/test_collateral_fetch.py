import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from tests.client import vendor_server
from tests.client.vendor_server import CHAIN, CRL, IDENTITY, LEAF, NEXT_UPDATE, TCB_INFO, Reply, VendorServer

from confide.attest.amd import Product
from confide.attest.collateral_cache import MAX_BODY_BYTES, CollateralCache
from confide.attest.collateral_sources import AmdPlatform, Gathered, IntelPlatform, amd_collateral, intel_collateral
from confide.attest.evidence import Family
from confide.client.collateral_fetch import fetcher
from confide.errors import (
    CollateralUnavailable,
    ConnectionLost,
    InsecureConnection,
    MalformedEvidence,
    WrongCollateral,
)

TDX = IntelPlatform("b0c06f000000", "platform", Family.TDX)
MILAN = AmdPlatform(Product.MILAN, bytes(range(64)), bytes([3, 0, 0, 0, 0, 0, 8, 115]))
TCB_PATH = "/tdx/certification/v4/tcb?fmspc=B0C06F000000"


@pytest.fixture
def vendor() -> Iterator[VendorServer]:
    with vendor_server.running() as running:
        running.serve_intel()
        running.serve_amd(MILAN.vcek_path)
        yield running


class Shop:
    """A cache over the network, with a clock that can be put forward and pauses that take no time."""

    def __init__(self, folder: Path) -> None:
        self.now = datetime.now(UTC)
        self.pauses: list[float] = []
        self.cache = CollateralCache(folder, fetcher(seconds=5), clock=lambda: self.now, sleep=self.pauses.append)

    def intel(self, vendor: VendorServer, allow_stale: bool = False) -> Gathered:
        return intel_collateral(
            self.cache, TDX, service=vendor.url, root_crl=vendor.url + "/root.der", allow_stale=allow_stale
        )


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def test_intels_answers_become_one_document(vendor: VendorServer, shop: Shop) -> None:
    gathered = shop.intel(vendor)
    assert gathered.stale == ()
    chain = CHAIN.decode()
    assert msgspec.json.decode(gathered.collateral.documents["dcap"]) == {
        "pck_crl_issuer_chain": chain,
        "root_ca_crl": CRL.hex(),
        "pck_crl": CRL.hex(),
        "tcb_info_issuer_chain": chain,
        "tcb_info": TCB_INFO,
        "tcb_info_signature": "ab12",
        "qe_identity_issuer_chain": chain,
        "qe_identity": IDENTITY,
        "qe_identity_signature": "ab12",
    }
    shop.intel(vendor)
    assert len(vendor.asked) == 4


def test_a_pccs_that_writes_hexadecimal_is_read_as_well(vendor: VendorServer, shop: Shop) -> None:
    root = vendor.url + "/sgx/certification/v4/rootcacrl"
    gathered = intel_collateral(shop.cache, TDX, service=vendor.url, root_crl=root)
    assert msgspec.json.decode(gathered.collateral.documents["dcap"])["root_ca_crl"] == CRL.hex()


def test_amds_answers_become_documents(vendor: VendorServer, shop: Shop) -> None:
    gathered = amd_collateral(shop.cache, MILAN, service=vendor.url)
    assert gathered.collateral.documents == {"vcek": LEAF, "chain": CHAIN, "crl": CRL}
    chip = bytes(range(64)).hex()
    assert vendor.asked[-1] == f"/vcek/v1/Milan/{chip}?blSPL=03&teeSPL=00&snpSPL=08&ucodeSPL=115"


def test_a_vlek_comes_with_the_report_and_its_chain_from_amd(vendor: VendorServer, shop: Shop) -> None:
    vendor.serve_amd("/unused", kind="vlek")
    gathered = amd_collateral(shop.cache, MILAN, vlek=b"from the host", service=vendor.url)
    assert gathered.collateral.documents == {"vlek": b"from the host", "chain": CHAIN, "crl": CRL}
    assert vendor.asked == ["/vlek/v1/Milan/cert_chain", "/vlek/v1/Milan/crl"]


def test_waits_when_told_and_then_succeeds(vendor: VendorServer, shop: Shop) -> None:
    vendor.replies[TCB_PATH][:0] = [Reply(status=429, headers={"Retry-After": "3"}), Reply(status=503)]
    shop.intel(vendor)
    assert shop.pauses[0] == 3
    assert len(shop.pauses) == 2


def test_stale_answers_are_named(vendor: VendorServer, shop: Shop) -> None:
    shop.intel(vendor)
    shop.now = NEXT_UPDATE + timedelta(days=1)
    vendor.replies[TCB_PATH] = [Reply(status=503, headers={"Retry-After": "600"})]
    with pytest.raises(CollateralUnavailable, match="left alone"):
        shop.intel(vendor)
    assert shop.intel(vendor, allow_stale=True).stale[0] == vendor.url + TCB_PATH


def test_a_truncated_answer_is_asked_for_again_and_never_kept(vendor: VendorServer, shop: Shop) -> None:
    vendor.replies[TCB_PATH].insert(0, Reply(b'{"tcbInfo": {', promised=5000))
    assert shop.intel(vendor).stale == ()
    assert vendor.asked.count(TCB_PATH) == 2


def test_an_oversized_answer_is_refused(vendor: VendorServer, shop: Shop) -> None:
    vendor.replies[TCB_PATH] = [Reply(bytes(MAX_BODY_BYTES + 1))]
    with pytest.raises(MalformedEvidence, match="check the address"):
        shop.intel(vendor)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(b"<html>login</html>"),
        Reply(b'{"tcbInfo": {}, "signature": "00"}'),
        Reply(b'{"tcbInfo": {"nextUpdate": "soon"}, "signature": "00"}'),
        Reply(b'{"tcbInfo": {"nextUpdate": "2026-01-01T00:00:00"}, "signature": "00"}'),
        Reply(b'{"tcbInfo": {"nextUpdate": "2026-01-01T00:00:00Z"}, "signature": 5}'),
        Reply(b"[1]"),
        Reply(b'{"tcbInfo": "\xff", "signature": "00"}'),
    ],
)
def test_what_is_no_tcb_info_is_refused(vendor: VendorServer, shop: Shop, reply: Reply) -> None:
    vendor.replies[TCB_PATH] = [reply]
    with pytest.raises(MalformedEvidence):
        shop.intel(vendor)


def test_a_missing_issuer_chain_is_named(vendor: VendorServer, shop: Shop) -> None:
    vendor.replies[TCB_PATH] = [Reply(vendor.replies[TCB_PATH][0].body)]
    with pytest.raises(MalformedEvidence, match="tcb-info-issuer-chain"):
        shop.intel(vendor)


@pytest.mark.parametrize("path", ["cert_chain", "crl", ""])
def test_rubbish_from_amd_is_refused(vendor: VendorServer, shop: Shop, path: str) -> None:
    vendor.replies[f"/vcek/v1/Milan/{path}" if path else MILAN.vcek_path] = [Reply(b"rubbish")]
    with pytest.raises(MalformedEvidence, match=r"The vendor's .* cannot be parsed"):
        amd_collateral(shop.cache, MILAN, service=vendor.url)


def test_an_unknown_chip_is_said_to_be_unknown(vendor: VendorServer, shop: Shop) -> None:
    unknown = AmdPlatform(Product.MILAN, bytes(64), bytes(8))
    with pytest.raises(WrongCollateral, match="404"):
        amd_collateral(shop.cache, unknown, service=vendor.url)


def test_no_redirect_is_followed(vendor: VendorServer, shop: Shop) -> None:
    vendor.replies["/root.der"] = [
        Reply(status=302, headers={"Location": vendor.url + "/sgx/certification/v4/rootcacrl"})
    ]
    with pytest.raises(WrongCollateral, match="302"):
        shop.intel(vendor)


@pytest.mark.parametrize(
    "url", ["http://example.com/crl", "ftp://example.com/crl", "file:///etc/passwd", "https:///crl"]
)
def test_only_this_machine_is_asked_in_the_open(url: str) -> None:
    with pytest.raises(InsecureConnection):
        fetcher()(url)


def test_nobody_there_is_a_lost_connection() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionLost, match="check the network"):
            fetcher()(f"http://127.0.0.1:{unused.getsockname()[1]}/")

import struct
import uuid
from collections.abc import Callable

import pytest

from confide.attest.amd import Product
from confide.attest.collateral_sources import AmdPlatform, IntelPlatform, certificate_table
from confide.attest.evidence import Family
from confide.errors import MalformedEvidence

VLEK = uuid.UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1")
UNKNOWN = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")


def table(*entries: tuple[bytes, bytes]) -> bytes:
    header, content = b"", b""
    start = 24 * (len(entries) + 1)
    for guid, certificate in entries:
        header += struct.pack("<16sII", guid, start + len(content), len(certificate))
        content += certificate
    return header + bytes(24) + content


@pytest.mark.parametrize("order", [lambda guid: guid.bytes, lambda guid: guid.bytes_le], ids=["big", "little"])
def test_reads_the_hosts_certificates(order: Callable[[uuid.UUID], bytes]) -> None:
    blob = table((order(VLEK), b"certificate"), (order(UNKNOWN), b"something else"))
    assert certificate_table(blob) == {"vlek": b"certificate"}
    assert certificate_table(bytes(24)) == {}


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        bytes(23),
        table((VLEK.bytes, b"certificate"))[:-1],
        struct.pack("<16sII", VLEK.bytes, 2**32 - 1, 2**32 - 1) + bytes(24),
        struct.pack("<16sII", UNKNOWN.bytes, 0, 0) * 100,
    ],
)
def test_refuses_a_table_that_is_cut_off(blob: bytes) -> None:
    with pytest.raises(MalformedEvidence, match="cut off"):
        certificate_table(blob)


def test_turin_names_its_levels_and_chips_differently() -> None:
    turin = AmdPlatform(Product.TURIN, bytes(range(64)), bytes([1, 2, 3, 4, 0, 0, 0, 72]))
    assert turin.vcek_path == ("/vcek/v1/Turin/0001020304050607?fmcSPL=01&blSPL=02&teeSPL=03&snpSPL=04&ucodeSPL=72")


@pytest.mark.parametrize("fmspc", ["", "b0c06f00000", "b0c06f00000g", "../../../etc/", "b0c06f000000&"])
def test_an_fmspc_cannot_change_the_address(fmspc: str) -> None:
    with pytest.raises(MalformedEvidence, match="no FMSPC"):
        IntelPlatform(fmspc, "platform", Family.TDX)


def test_platforms_that_do_not_exist_are_refused() -> None:
    with pytest.raises(MalformedEvidence):
        IntelPlatform("b0c06f000000", "platform", Family.SNP)
    with pytest.raises(MalformedEvidence):
        IntelPlatform("b0c06f000000", "other", Family.SGX)  # type: ignore[arg-type]
    with pytest.raises(MalformedEvidence):
        AmdPlatform(Product.MILAN, bytes(63), bytes(8))

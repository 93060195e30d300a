"""The launch digest of an SEV-SNP machine, by the library and by the specification."""

import hashlib
import struct
from pathlib import Path
from uuid import UUID

import pytest

from confide.attest.policy_toml import any_policy_from_toml, to_toml
from confide.attest.requirements.hardware import Snp, SnpTcb
from confide.deploy.predict.snp import SnpBoot
from confide.errors import ConfideError, DeployError, InvalidImage

pytest.importorskip("sevsnpmeasure")

PAGE = 4096
KERNEL, INITRD, LINE = b"kernel", b"initrd", "console=ttyS0 ro"
TABLE_AT = 0x80D400
SECTIONS = ((0x800000, PAGE, 1), (0x80C000, PAGE, 2), (0x80E000, PAGE, 3), (0x80D000, PAGE, 0x10))


def entry(guid: str, data: bytes) -> bytes:
    return data + struct.pack("<H", len(data) + 18) + UUID(guid).bytes_le


def firmware(sections: tuple[tuple[int, int, int], ...] = SECTIONS) -> bytes:
    """One page, with the table of GUIDs and SEV's metadata of OVMF."""
    page = bytearray(index % 251 for index in range(PAGE))
    items = b"".join(struct.pack("<III", *section) for section in sections)
    page[1024 : 1040 + len(items)] = b"ASEV" + struct.pack("<III", 16 + len(items), 1, len(sections)) + items
    entries = (
        entry("dc886566-984a-4798-a75e-5585a7bf67cc", struct.pack("<I", PAGE - 1024))
        + entry("7255371f-3a3b-4b04-927b-1da6efa8d454", struct.pack("<II", TABLE_AT, 0x400))
        + entry("00f771de-1a7e-4fcb-890e-68c77e2fb44e", struct.pack("<I", 0x80B004))
    )
    footer = struct.pack("<H", len(entries) + 18) + UUID("96b582de-1fb2-45f7-baea-a366c55a082d").bytes_le
    page[-32 - len(entries + footer) : -32] = entries + footer
    return bytes(page)


@pytest.fixture
def boot(tmp_path: Path) -> SnpBoot:
    for name, content in (("ovmf", firmware()), ("kernel", KERNEL), ("initrd", INITRD)):
        (tmp_path / name).write_bytes(content)
    return SnpBoot(tmp_path / "ovmf", tmp_path / "kernel", LINE, tmp_path / "initrd", processors=2)


def hashes() -> bytes:
    """The page with the hashes of command line, RAM disk and kernel, as QEMU writes it."""

    def hashed(guid: str, content: bytes) -> bytes:
        return UUID(guid).bytes_le + struct.pack("<H", 50) + hashlib.sha256(content).digest()

    parts = (
        hashed("97d02dd8-bd20-4c94-aa78-e7714d36ab2a", LINE.encode() + b"\0")
        + hashed("44baf731-3a2f-4bd7-9af1-41e29169781d", INITRD)
        + hashed("4de79437-abd2-427f-b835-d5b172d2045b", KERNEL)
    )
    table = UUID("9438d606-4f22-4cc9-b479-a793d411fd21").bytes_le + struct.pack("<H", 18 + len(parts)) + parts
    return (bytes(TABLE_AT % PAGE) + table).ljust(PAGE, b"\0")


def page_info(before: bytes, contents: bytes, kind: int, address: int) -> bytes:
    """PAGE_INFO of AMD 56860, 8.17.2, over which the digest goes on."""
    info = before + contents + struct.pack("<HBBBBBBQ", 0x70, kind, 0, 0, 0, 0, 0, address)
    return hashlib.sha384(info).digest()


def test_the_digest_is_that_of_the_specification(boot: SnpBoot) -> None:
    """But for the state of the processors, which is the library's."""
    from sevsnpmeasure.sev_mode import SevMode
    from sevsnpmeasure.vcpu_types import CPU_SIGS
    from sevsnpmeasure.vmm_types import VMMType
    from sevsnpmeasure.vmsa import VMSA

    digest = page_info(bytes(48), hashlib.sha384(firmware()).digest(), 1, (1 << 32) - PAGE)
    for address, kind in ((0x800000, 3), (0x80C000, 5), (0x80E000, 6)):
        digest = page_info(digest, bytes(48), kind, address)
    digest = page_info(digest, hashlib.sha384(hashes()).digest(), 1, 0x80D000)
    states = VMSA(SevMode.SEV_SNP, 0x80B004, CPU_SIGS["EPYC-Milan"], 1, VMMType.QEMU)
    for state in states.pages(2):
        digest = page_info(digest, hashlib.sha384(state).digest(), 2, 0xFFFFFFFFF000)
    assert boot.predict().measurements["measurement"] == digest


@pytest.mark.parametrize("change", ["ovmf", "kernel", "initrd", "line", "processors", "processor"])
def test_every_input_is_measured(boot: SnpBoot, tmp_path: Path, change: str) -> None:
    before = boot.predict().measurements["measurement"]
    match change:
        case "line":
            boot = SnpBoot(boot.firmware, boot.kernel, LINE + " init=/bin/sh", boot.initrd, processors=2)
        case "processors":
            boot = SnpBoot(boot.firmware, boot.kernel, LINE, boot.initrd, processors=3)
        case "processor":
            boot = SnpBoot(boot.firmware, boot.kernel, LINE, boot.initrd, processors=2, processor="EPYC-Genoa")
        case name:
            content = (tmp_path / name).read_bytes()
            (tmp_path / name).write_bytes(bytes([content[0] ^ 1]) + content[1:])
    assert boot.predict().measurements["measurement"] != before


def test_the_policy_demands_it(boot: SnpBoot) -> None:
    prediction = boot.predict(SnpTcb(snp=22, microcode=213))
    (required,) = any_policy_from_toml(to_toml(prediction.policy())).requirements
    assert isinstance(required, Snp)
    assert required.measurement == prediction.measurements["measurement"].hex()
    assert (required.vmpl, required.host_data) == (0, "00" * 32)
    assert "min_tcb" not in prediction.unpredicted
    assert "min_tcb" in boot.predict().unpredicted


@pytest.mark.parametrize(
    "content",
    [
        b"",
        bytes(PAGE),
        firmware()[:-1],
        firmware(SECTIONS[:3]),
        firmware(((0, 0xFFFFF000, 1), SECTIONS[3])),
        firmware(((0x800000, PAGE, 99), SECTIONS[3])),
        firmware().replace(b"ASEV", b"ASEW"),
    ],
    ids=["empty", "zeros", "cut", "no room for hashes", "huge", "unknown kind", "no metadata"],
)
def test_firmware_that_measures_no_kernel_is_refused(boot: SnpBoot, content: bytes) -> None:
    boot.firmware.write_bytes(content)
    with pytest.raises(InvalidImage):
        boot.predict()


def test_what_else_is_refused(boot: SnpBoot, tmp_path: Path) -> None:
    paths = (boot.firmware, boot.kernel)
    for made in (
        lambda: SnpBoot(*paths, "a\nb"),
        lambda: SnpBoot(*paths, "x" * 3000),
        lambda: SnpBoot(*paths, LINE, processors=0),
        lambda: SnpBoot(*paths, LINE, host_data=b"short"),
        lambda: SnpBoot(*paths, LINE, processor="Pentium").predict(),
        lambda: SnpBoot(tmp_path / "nothing", boot.kernel, LINE),
    ):
        with pytest.raises(ConfideError) as refused:
            made()
        assert isinstance(refused.value, (InvalidImage, DeployError))

"""A small firmware, kernel and ACPI tables, made here: right in their shape and nothing else."""

import struct
from uuid import UUID

from confide.deploy.predict.tdx import AcpiTables, DirectBoot

ACPI = AcpiTables(b"loader" * 20, b"RSD PTR " + bytes(28), b"FACP" * 30)
PAGE = 4096
CODE_AT, CONFIGURATION_AT = 0xFFFFE000, 0xFFFFC000
HOB_AT, TEMPORARY_AT = 0x809000, 0x80B000
GIGABYTE = 1 << 30


def section(offset: int, raw: int, address: int, size: int, kind: int, attributes: int) -> bytes:
    """A TDVF_SECTION."""
    return struct.pack("<IIQQII", offset, raw, address, size, kind, attributes)


SECTIONS = (
    section(PAGE, PAGE, CODE_AT, PAGE, 0, 1),
    section(0, PAGE, CONFIGURATION_AT, PAGE, 1, 0),
    section(0, 0, HOB_AT, 2 * PAGE, 2, 0),
    section(0, 0, TEMPORARY_AT, PAGE, 3, 0),
)


def firmware(sections: tuple[bytes, ...] = SECTIONS, *, table: bool = True) -> bytes:
    """Configuration in the first page, code in the second; metadata and the table of GUIDs near the end."""
    code = bytearray(index % 251 for index in range(PAGE))
    metadata = b"TDVF" + struct.pack("<III", 16 + 32 * len(sections), 1, len(sections)) + b"".join(sections)
    code[2048 : 2048 + len(metadata)] = metadata
    if table:
        entry = struct.pack("<IH", 2048, 22) + UUID("e47a6535-984a-4798-865e-4685a7bf8ec2").bytes_le
        other = b"data" + struct.pack("<H", 22) + UUID(int=7).bytes_le
        entries = entry + other
        footer = struct.pack("<H", len(entries) + 18) + UUID("96b582de-1fb2-45f7-baea-a366c55a082d").bytes_le
        code[-32 - len(entries + footer) : -32] = entries + footer
    else:
        code[-32:-28] = struct.pack("<I", PAGE + 2048)
    return (b"configuration" * 400)[:PAGE] + bytes(code)


def kernel(
    *, sections: tuple[tuple[int, int], ...] = ((0x200, 0x300), (0x500, 0x100)), signature: bytes = b""
) -> bytes:
    """A PE32+ image with these sections (offset and length in the file), and a signature behind them."""
    image = bytearray(max(start + length for start, length in sections))
    for index in range(0x200, len(image)):
        image[index] = index % 253
    image[:2], image[0x3C:0x40] = b"MZ", struct.pack("<I", 0x40)
    image[0x40:0x58] = b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664, len(sections), 0, 0, 0, 160, 0x22)
    image[0x58:0x5A] = struct.pack("<H", 0x20B)
    image[0x58 + 60 : 0x58 + 64] = struct.pack("<I", 0x200)
    image[0x58 + 64 : 0x58 + 68] = b"sum!"
    image[0x58 + 108 : 0x58 + 112] = struct.pack("<I", 6)
    if signature:
        image[0x58 + 144 : 0x58 + 152] = struct.pack("<II", len(image), len(signature))
    for index, (start, length) in enumerate(sections):
        at = 0x58 + 160 + 40 * index
        image[at : at + 40] = struct.pack("<8sIIIIIIHHI", b".text", length, start, length, start, 0, 0, 0, 0, 0)
    return bytes(image) + signature


def boot(**changes: object) -> DirectBoot:
    """A machine with all of it."""
    inputs: dict[str, object] = {
        "firmware": firmware(),
        "kernel": kernel(),
        "command_line": "console=ttyS0 ro",
        "initrd": b"initrd",
        "memory": 4 * GIGABYTE,
        "acpi": ACPI,
    }
    return DirectBoot(**(inputs | changes))  # type: ignore[arg-type]

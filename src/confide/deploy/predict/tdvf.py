"""Firmware of a TDX machine (TDVF): its metadata, the MRTD that loading it leads to, and the TD HOB it is handed.

Sources: Intel TDX Virtual Firmware Design Guide 1.01, section 11 (metadata); Intel TDX Module Base Architecture
Specification, TDH.MEM.PAGE.ADD and TDH.MR.EXTEND (what MRTD covers); UEFI Platform Initialization 1.8, volume 3 (HOBs);
QEMU's `tdvf-hob.c` and `pc_q35.c`, which decide what a TD HOB says.
"""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final, Self
from uuid import UUID

from confide.deploy.predict.pe import number
from confide.errors import InvalidImage

MAX_FIRMWARE_BYTES: Final = 64 << 20
MAX_SECTIONS: Final = 64
MAX_PAGES: Final = 1 << 16
"""Of all sections together; OVMF's have about a thousand."""

PAGE: Final = 4096
_CHUNK: Final = 256
_EXTEND, _AUGMENT = 1, 2
_TABLE_FOOTER: Final = UUID("96b582de-1fb2-45f7-baea-a366c55a082d").bytes_le
_METADATA_OFFSET: Final = UUID("e47a6535-984a-4798-865e-4685a7bf8ec2").bytes_le
_BEHIND_TABLE: Final = 32
_ENTRY: Final = 18
"""The length and the GUID that end each entry of the table, in bytes; entries are read backwards."""


class SectionType(IntEnum):
    """What a section of the firmware is for (Design Guide, table 11-3)."""

    CODE = 0
    CONFIGURATION = 1
    TD_HOB = 2
    TEMPORARY_MEMORY = 3
    PERMANENT_MEMORY = 4
    PAYLOAD = 5
    PAYLOAD_PARAMETER = 6


class PageOrder(StrEnum):
    """When a host has content measured: after each page, as Linux 6.16's KVM, or after all pages of a section."""

    PAGE = "page"
    SECTION = "section"


@dataclass(frozen=True)
class Section:
    """A section: where its bytes lie in the file, and where in the guest's memory. Sizes in bytes."""

    kind: int
    raw: bytes
    address: int
    size: int
    measured: bool
    added: bool

    @property
    def pages(self) -> range:
        """The addresses of its pages."""
        return range(self.address, self.address + self.size, PAGE)

    def chunks(self, page: int) -> Iterator[tuple[int, bytes]]:
        """The addresses and contents, 256 bytes each, of what is measured of a page; zeros behind the file's bytes."""
        for at in range(page - self.address, page - self.address + PAGE, _CHUNK):
            yield self.address + at, self.raw[at : at + _CHUNK].ljust(_CHUNK, b"\0")


@dataclass(frozen=True)
class Firmware:
    """A firmware's sections, in the order of its metadata."""

    sections: tuple[Section, ...]

    @classmethod
    def parse(cls, image: bytes) -> Self:
        """Read the metadata of a firmware file. InvalidImage if it has none, or if it asks for more than there is."""
        if len(image) > MAX_FIRMWARE_BYTES:
            raise InvalidImage(f"The firmware has {len(image)} bytes; at most {MAX_FIRMWARE_BYTES} are read.")
        at = _descriptor(image)
        if image[at : at + 4] != b"TDVF" or number(image, at + 8, 4) != 1:
            raise InvalidImage("The firmware has no TDX metadata of version 1; build OVMF with TDX (OvmfPkg/IntelTdx).")
        count = number(image, at + 12, 4)
        if count > MAX_SECTIONS:
            raise InvalidImage(f"The firmware has {count} sections; at most {MAX_SECTIONS} are read.")
        sections = tuple(_section(image, at + 16 + 32 * index) for index in range(count))
        if sum(section.size for section in sections) > MAX_PAGES * PAGE:
            raise InvalidImage("The firmware asks for more memory than any does; give it as it was built.")
        return cls(sections)

    def mrtd(self, order: PageOrder = PageOrder.PAGE) -> bytes:
        """The measurement of the machine as it is built, 48 bytes."""
        digest = hashlib.sha384()
        for section in self.sections:
            batches = [[page] for page in section.pages] if order is PageOrder.PAGE else [list(section.pages)]
            for batch in batches:
                if section.added:
                    for page in batch:
                        digest.update(_operation(b"MEM.PAGE.ADD", page))
                if section.measured:
                    for address, content in (chunk for page in batch for chunk in section.chunks(page)):
                        digest.update(_operation(b"MR.EXTEND", address) + content)
        return digest.digest()

    def one(self, kind: SectionType) -> Section:
        """The only section of a kind. InvalidImage where there are none or several."""
        found = [section for section in self.sections if section.kind == kind]
        if len(found) != 1:
            raise InvalidImage(f"The firmware has {len(found)} sections of the kind {kind.name}, not one.")
        return found[0]

    def td_hob(self, memory: int) -> bytes:
        """The list that QEMU 10.1's q35 hands over, as far as it is measured: all but its last entry.

        memory: of the machine, in bytes. InvalidImage where the firmware's memory lies outside it.
        """
        ranges = _memory(memory)
        for section in self.sections:
            if section.kind in (SectionType.TD_HOB, SectionType.TEMPORARY_MEMORY):
                ranges = list(_accepted(ranges, section))
        described = b"".join(
            struct.pack("<HHI16xIIQQ", 3, 48, 0, _ADDED if added else _UNACCEPTED, _PRESENT, start, end - start)
            for start, end, added in sorted(ranges)
        )
        hob = self.one(SectionType.TD_HOB)
        end = hob.address + 56 + len(described) + 8
        if end > hob.address + hob.size:
            raise InvalidImage("The machine's memory takes more entries than the firmware has room for.")
        return struct.pack("<HHIIIQQQQQ", 1, 56, 0, 9, 0, 0, 0, 0, 0, end) + described


_ADDED, _UNACCEPTED, _PRESENT = 0, 7, 7
_LOW_MEMORY, _LOW_MEMORY_OF_LARGE = 0xB0000000, 0x80000000
_FOUR_GIGABYTES: Final = 1 << 32
_Range = tuple[int, int, bool]
"""Of the guest's memory: first byte, end, and whether it is there from the start."""


def _memory(size: int) -> list[_Range]:
    """How q35 lays memory out around the hole below 4 GiB."""
    low = min(size, _LOW_MEMORY_OF_LARGE if size >= _LOW_MEMORY else _LOW_MEMORY)
    above = [(_FOUR_GIGABYTES, _FOUR_GIGABYTES + size - low, False)] if size > low else []
    return [(0, low, False), *above]


def _accepted(ranges: list[_Range], section: Section) -> Iterator[_Range]:
    first, last = section.address, section.address + section.size
    if not any(start <= first and last <= end and not added for start, end, added in ranges):
        raise InvalidImage("The firmware's own memory is not within the machine's; give the machine more memory.")
    for start, end, added in ranges:
        if added or last <= start or end <= first:
            yield start, end, added
            continue
        yield first, last, True
        if start < first:
            yield start, first, False
        if last < end:
            yield last, end, False


def _operation(name: bytes, address: int) -> bytes:
    """128 bytes: an operation's name, and from byte 16 the guest's address."""
    return name.ljust(16, b"\0") + address.to_bytes(8, "little") + bytes(104)


def _descriptor(image: bytes) -> int:
    """Where the metadata starts: by OVMF's table of GUIDs, else by the offset 32 bytes before the end."""
    footer = len(image) - _BEHIND_TABLE
    if image[max(footer - 16, 0) : max(footer, 0)] != _TABLE_FOOTER:
        return number(image, footer, 4)
    start = footer - number(image, footer - _ENTRY, 2)
    end = footer - _ENTRY
    while end - _ENTRY >= max(start, 0):
        length = number(image, end - _ENTRY, 2)
        if length < _ENTRY:
            break
        if image[end - 16 : end] == _METADATA_OFFSET:
            return len(image) - number(image, end - _ENTRY - 4, 4)
        end -= length
    raise InvalidImage("The firmware's table names no TDX metadata; build OVMF with TDX (OvmfPkg/IntelTdx).")


def _section(image: bytes, at: int) -> Section:
    offset, raw_size = number(image, at, 4), number(image, at + 4, 4)
    address, size = number(image, at + 8, 8), number(image, at + 16, 8)
    kind, attributes = number(image, at + 24, 4), number(image, at + 28, 4)
    if address % PAGE or size % PAGE or raw_size > size or address + size > 1 << 52:
        raise InvalidImage("A section of the firmware is not whole pages, or smaller than its content.")
    if offset + raw_size > len(image):
        raise InvalidImage(f"A section of the firmware ends behind the file's {len(image)} bytes.")
    raw = image[offset : offset + raw_size]
    return Section(kind, raw, address, size, bool(attributes & _EXTEND), not attributes & _AUGMENT)

"""The digest by which firmware measures a program: PE/COFF without what a signature changes.

Source: Microsoft, Windows Authenticode Portable Executable Signature Format, "Calculating the PE Image Hash"; the TCG
PC Client Platform Firmware Profile (1.06, 10.2.3) has firmware extend it.
"""

import hashlib
import struct
from typing import Final

from confide.errors import InvalidImage

_PE32: Final = {0x10B: 96, 0x20B: 112}
"""By the optional header's magic number: where its data directories start, in bytes."""
_CERTIFICATES: Final = 4
"""The index of the data directory whose content is signatures."""


def authenticode(image: bytes) -> bytes:
    """SHA-384 of a PE image as firmware measures it, 48 bytes; InvalidImage if it is none.

    Sections are taken in the order of their place in the file, as the format says, and not in that of the table.
    """
    coff = number(image, 0x3C, 4) + 4
    if image[:2] != b"MZ" or image[coff - 4 : coff] != b"PE\0\0":
        raise InvalidImage("The kernel is no PE image, so firmware cannot start it; build it with CONFIG_EFI_STUB.")
    sections, size = number(image, coff + 2, 2), number(image, coff + 16, 2)
    optional = coff + 20
    directories = _PE32.get(number(image, optional, 2))
    if directories is None or number(image, optional + directories - 4, 4) <= _CERTIFICATES:
        raise InvalidImage("The kernel's PE header is of an unknown kind; give the kernel as it was built.")
    checksum, entry = optional + 64, optional + directories + 8 * _CERTIFICATES
    headers = number(image, optional + 60, 4)
    if not entry + 8 <= headers <= len(image):
        raise InvalidImage("The kernel's PE header does not fit the file; give the kernel as it was built.")
    found = sorted(_section(image, optional + size + 40 * index) for index in range(sections))
    hashed = headers + sum(length for _, length in found)
    behind = len(image) - number(image, entry + 4, 4)
    if hashed > behind or any(start + length > len(image) for start, length in found):
        raise InvalidImage("The kernel's PE sections overlap or are cut off; give the kernel as it was built.")
    digest = hashlib.sha384(image[:checksum] + image[checksum + 4 : entry] + image[entry + 8 : headers])
    for start, length in found:
        digest.update(image[start : start + length])
    # What follows starts where so many bytes end, by the format's own words, even if there are gaps between sections.
    digest.update(image[hashed:behind])
    return digest.digest()


def _section(image: bytes, at: int) -> tuple[int, int]:
    """Where a section's bytes lie in the file: offset and length."""
    return number(image, at + 20, 4), number(image, at + 16, 4)


def number(data: bytes, at: int, size: int) -> int:
    """A little-endian number of 2, 4 or 8 bytes; InvalidImage where it lies outside the file."""
    if not 0 <= at <= len(data) - size:
        raise InvalidImage(f"The file ends at byte {len(data)}, inside a field; give it as it was built.")
    return int(struct.unpack_from({2: "<H", 4: "<I", 8: "<Q"}[size], data, at)[0])

"""Registers of an enclave's image, computed a second time here from AWS's words, and files that are none."""

import hashlib
import io
import tracemalloc
from typing import IO

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from tests.deploy import enclave_image
from tests.deploy.enclave_image import (
    COMMAND_LINE,
    KERNEL,
    METADATA,
    RAM_DISK,
    SECTIONS,
    SIGNATURE,
    certificate,
    image,
    signature,
    signed,
)

from confide.deploy.predict import eif
from confide.deploy.predict.eif import EnclaveImage
from confide.errors import InvalidImage


def read(content: bytes) -> EnclaveImage:
    return EnclaveImage.read(io.BytesIO(content))


def extended(*contents: bytes) -> bytes:
    """sha384(zeros . sha384(contents)), as the specification writes it."""
    return hashlib.sha384(bytes(48) + hashlib.sha384(b"".join(contents)).digest()).digest()


def test_registers_are_those_of_the_specification() -> None:
    kernel, line, _, boot, application = (content for _, content in SECTIONS)
    found = read(image())
    assert found.pcrs == {
        0: extended(kernel, line, boot, application),
        1: extended(kernel, line, boot),
        2: extended(application),
    }
    assert found.size == len(image())
    der = certificate().public_bytes(Encoding.DER)
    assert read(signed()).pcrs == found.pcrs | {8: extended(der)}


def test_a_register_of_a_known_image() -> None:
    """By hand: printf of the four texts to sha384sum, and 48 zeros with that to sha384sum again."""
    small = image(((KERNEL, b"k"), (COMMAND_LINE, b"c"), (METADATA, b"{}"), (RAM_DISK, b"i"), (RAM_DISK, b"a")))
    assert read(small).pcrs[0].hex() == KNOWN


KNOWN = "eb88a34bd2f258d7a2e023955ab00d1da3700b3e49ccef769f607ca9c88e3cfb4b73eebb750ba37b7a508f7a03491859"


def test_what_is_not_measured_changes_nothing_and_the_rest_all() -> None:
    plain = read(image()).pcrs
    assert read(image((*SECTIONS[:2], (METADATA, b'{"ImageName": "x"}'), *SECTIONS[3:]))).pcrs == plain
    for index, registers in ((0, {0, 1}), (1, {0, 1}), (3, {0, 1}), (4, {0, 2})):
        changed = list(SECTIONS)
        changed[index] = (changed[index][0], changed[index][1][:-1] + b"?")
        other = read(image(tuple(changed))).pcrs
        assert {number for number in plain if plain[number] != other[number]} == registers


def test_sections_count_in_the_order_of_the_file() -> None:
    kernel, line, metadata, boot, application = SECTIONS
    swapped = read(image((line, kernel, metadata, boot, application))).pcrs
    assert swapped[1] == extended(line[1], kernel[1], boot[1])
    third = (RAM_DISK, b"and one more")
    assert read(image((kernel, line, metadata, boot, application, third))).pcrs[2] == extended(application[1], third[1])
    alone = read(image((kernel, line, metadata, boot))).pcrs
    assert alone[2] == extended(b"")
    assert read(image((kernel, line, boot, application), version=3)).pcrs == read(image()).pcrs


def test_the_prediction_lists_what_no_file_says() -> None:
    made = read(image()).predict()
    assert set(made.measurements) == {"pcr0", "pcr1", "pcr2"}
    assert set(made.unpredicted) == {"pcr3", "pcr4", "pcr8"}
    assert made.requirement is not None
    assert made.requirement.pcrs == {str(n): v.hex() for n, v in read(image()).pcrs.items()}  # type: ignore[union-attr]
    assert set(read(signed()).predict().unpredicted) == {"pcr3", "pcr4"}


K, C, M, R, A = SECTIONS
BAD_PEM = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    ("content", "says"),
    {
        "nothing": (b"", "ends within"),
        "another file": (b"\x7fELF" + image()[4:], "no enclave image"),
        "version 1": (image(version=1), "no enclave image"),
        "version 5": (image(version=5), "no enclave image"),
        "no sections": (image(()), "has 0 sections"),
        "one section": (image((K,)), "has 1 sections"),
        "33 sections": (image(count=33), "has 33 sections"),
        "65535 sections": (image(count=65535), "has 65535 sections"),
        "one more than there are": (image(count=6), "ends within"),
        "one less than there are": (image(count=4), "something behind"),
        "a gap": (image(offset=1), "not where"),
        "an overlap": (image(offset=-1), "not where"),
        "two sizes": (image(longer=1), "not where"),
        "cut off": (image()[:-1], "ends within"),
        "something behind": (image(behind=b"\0"), "something behind"),
        "another checksum": (image(crc=0), "checksum"),
        "an invalid section": (image((K, C, M, R, (0, b""))), "unknown kind"),
        "a section of the future": (image((K, C, M, R, (6, b""))), "unknown kind"),
        "two kernels": (image((K, K, C, M, R)), "one twice"),
        "two command lines": (image((K, C, C, M, R)), "one twice"),
        "two metadata": (image((K, C, M, M, R)), "one twice"),
        "a RAM disk first": (image((R, K, C, M, A)), "before its kernel"),
        "no kernel": (image((C, M)), "kernel"),
        "no command line": (image((K, M, R)), "command line"),
        "no RAM disk": (image((K, C, M)), "ram disk"),
        "no metadata": (image((K, C, R, A)), "metadata"),
        "a long signature": (image((*SECTIONS, (SIGNATURE, bytes(32769)))), "more than 32768"),
        "an empty signature": (image((*SECTIONS, (SIGNATURE, b""))), "no certificate"),
        "a signature of nobody": (image((*SECTIONS, (SIGNATURE, b"\x80"))), "no certificate"),
        "no numbers": (image((*SECTIONS, (SIGNATURE, signature(b"").replace(b"\x80", b"\x81\x61a", 1)))), "no certif"),
        "no certificate": (signed(b"PEM"), "no certificate"),
        "a broken one": (signed(BAD_PEM), "no certificate"),
    }.values(),
    ids=range(32),
)
def test_what_is_no_image_is_refused(content: bytes, says: str) -> None:
    with pytest.raises(InvalidImage, match=says):
        read(content)


@pytest.mark.parametrize("at", [0, 5, 7, 27, 30, 300, 543, 547, 548, 560, 700, -1])
def test_one_bit_is_noticed(at: int) -> None:
    """Whatever is not measured is in the checksum."""
    content = bytearray(image())
    content[at] ^= 1
    with pytest.raises(InvalidImage):
        read(bytes(content))


class Endless(io.RawIOBase):
    """A file that says that its RAM disk has 2**63 bytes, of which some megabytes come."""

    def __init__(self, head: bytes, most: int) -> None:
        self.head, self.left = io.BytesIO(head), most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        part = self.head.read(len(view)) or bytes(min(len(view), self.left))
        self.left -= 0 if self.head.tell() < len(self.head.getvalue()) else len(part)
        view[: len(part)] = part
        return len(part)


def test_a_file_is_never_held() -> None:
    content = image()
    last = len(SECTIONS[-1][1])
    size = (1 << 63).to_bytes(8, "big")
    head = bytearray(content[:-last])
    head[-8:] = size
    head[28 + 256 + 8 * 4 : 28 + 256 + 8 * 5] = size
    file: IO[bytes] = io.BufferedReader(Endless(bytes(head), 32 << 20))  # type: ignore[assignment]
    tracemalloc.start()
    try:
        with pytest.raises(InvalidImage, match="ends within"):
            EnclaveImage.read(file)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_the_sizes_are_the_specification_s() -> None:
    assert (eif.HEADER.size, eif.SECTION.size) == (548, 12)
    assert enclave_image.image()[:4] == b".eif"

"""What a Nitro enclave measures of its image file (EIF): PCRs 0, 1 and 2, and 8 of an image that is signed.

Source: AWS, aws-nitro-enclaves-image-format, "Enclave Image File (EIF) Specification" of 2024-06-21: the header, the
sections, and "EIF Measurements". Everything is big-endian. A file is read front to back and never held: it has the
whole root in it. Where the specification leaves room, as for bytes between sections, what AWS's own tools write is
demanded, so that nothing is in a file that a reader may take for something else.
"""

import hashlib
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import IO, Final, Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from confide.attest.cbor import decode
from confide.attest.requirements import Nitro
from confide.deploy.predict.prediction import Prediction
from confide.errors import InvalidImage, MalformedEvidence
from confide.errors.certificates import PARSE_ERRORS

MAX_SECTIONS: Final = 32
MAX_SIGNATURE_BYTES: Final = 32768
PCR_BYTES: Final = 48

HEADER: Final = struct.Struct(">4sHHQQHH32Q32QII")
"""Magic number, version, flags, memory, processors, reserved, number of sections, their offsets, their sizes, reserved,
and the CRC-32 of all but itself."""
SECTION: Final = struct.Struct(">HHQ")
"""Type, flags, and the size of what follows."""

_MAGIC: Final = b".eif"
_VERSIONS: Final = range(2, 5)
_WITH_METADATA: Final = 4
_CRC_BYTES: Final = 4
_CHUNK: Final = 1 << 20
_DAMAGED: Final = "build it again"
_UNPREDICTED: Final = {
    "pcr3": "the role of the parent's instance, and no file says it",
    "pcr4": "the parent's instance, and no file says it",
}
_NOT_SIGNED: Final = "the image is not signed, so nothing is measured there"
_ASSUMPTIONS: Final = (
    "The image was built from the Dockerfile that is written here: what is in it is measured, and not looked at.",
    "The enclave is not in debug mode, in which these registers are zeros.",
)


class SectionType(IntEnum):
    """What a section is."""

    KERNEL = 1
    COMMAND_LINE = 2
    RAM_DISK = 3
    SIGNATURE = 4
    METADATA = 5


_KINDS: Final = frozenset(SectionType)


@dataclass(frozen=True)
class EnclaveImage:
    """What an image leads to. pcrs: SHA-384, 48 bytes, by number. size: of the file, in bytes."""

    pcrs: Mapping[int, bytes]
    size: int

    @classmethod
    def read(cls, file: IO[bytes]) -> Self:
        """Measure a file from its start to its end. InvalidImage where it is none, damaged, or has two meanings."""
        head = _taken(file, HEADER.size)
        magic, version, _, _, _, _, count, *rest = HEADER.unpack(head)
        offsets, sizes, crc = rest[:MAX_SECTIONS], rest[MAX_SECTIONS : 2 * MAX_SECTIONS], rest[-1]
        if magic != _MAGIC or version not in _VERSIONS:
            raise InvalidImage("The file is no enclave image of version 2 to 4; give what `nitro-cli` built.")
        if not 2 <= count <= MAX_SECTIONS:
            raise InvalidImage(f"The enclave image has {count} sections, and not 2 to {MAX_SECTIONS}; {_DAMAGED}.")
        measured = _Measured(zlib.crc32(head[:-_CRC_BYTES]))
        at = HEADER.size
        for offset, size in zip(offsets[:count], sizes[:count], strict=True):
            section = _taken(file, SECTION.size)
            kind, _, length = SECTION.unpack(section)
            if offset != at or length != size:
                raise InvalidImage(f"A section of the enclave image is not where its header says; {_DAMAGED}.")
            measured.crc = zlib.crc32(section, measured.crc)
            measured.take(kind, file, length)
            at += SECTION.size + length
        if file.read(1):
            raise InvalidImage(f"The enclave image has something behind its last section; {_DAMAGED}.")
        pcrs = measured.pcrs(with_metadata=version >= _WITH_METADATA)
        if measured.crc != crc:
            raise InvalidImage(f"The enclave image is damaged: its checksum is another; {_DAMAGED}.")
        return cls(pcrs, at)

    def predict(self) -> Prediction:
        """Its registers, and which of an enclave's are not the image's."""
        measured = {f"pcr{number}": value for number, value in self.pcrs.items()}
        unpredicted = _UNPREDICTED | ({} if 8 in self.pcrs else {"pcr8": _NOT_SIGNED})
        required = Nitro(pcrs={str(number): value.hex() for number, value in self.pcrs.items()})
        return Prediction(measured, unpredicted, _ASSUMPTIONS, (), required)


class _Measured:
    """What was read so far. crc: of all of it."""

    def __init__(self, crc: int) -> None:
        self.crc = crc
        self._seen: list[int] = []
        self._image, self._boot, self._application = (hashlib.sha384() for _ in range(3))
        self._signature = b""

    def take(self, kind: int, file: IO[bytes], length: int) -> None:
        """A section's content: into the registers that it belongs to."""
        alone = kind != SectionType.RAM_DISK
        if kind not in _KINDS or (alone and kind in self._seen):
            raise InvalidImage(f"The enclave image has a section of an unknown kind, or one twice; {_DAMAGED}.")
        if not alone and SectionType.KERNEL not in self._seen:
            raise InvalidImage(f"The enclave image has a RAM disk before its kernel; {_DAMAGED}.")
        if kind == SectionType.SIGNATURE and length > MAX_SIGNATURE_BYTES:
            raise InvalidImage(f"The enclave image's signature has more than {MAX_SIGNATURE_BYTES} bytes; {_DAMAGED}.")
        hashes = []
        if kind in (SectionType.KERNEL, SectionType.COMMAND_LINE, SectionType.RAM_DISK):
            first = alone or SectionType.RAM_DISK not in self._seen
            hashes = [self._image, self._boot if first else self._application]
        self._seen.append(kind)
        left = length
        while left:
            part = _taken(file, min(left, _CHUNK))
            left -= len(part)
            self.crc = zlib.crc32(part, self.crc)
            for one in hashes:
                one.update(part)
            if kind == SectionType.SIGNATURE:
                self._signature = part  # shorter than one chunk

    def pcrs(self, *, with_metadata: bool) -> dict[int, bytes]:
        """The registers, once all was read."""
        needed = {SectionType.KERNEL, SectionType.COMMAND_LINE, SectionType.RAM_DISK}
        needed |= {SectionType.METADATA} if with_metadata else set()
        if missing := needed - set(self._seen):
            names = ", ".join(sorted(SectionType(kind).name.lower().replace("_", " ") for kind in missing))
            raise InvalidImage(f"The enclave image lacks a section ({names}); {_DAMAGED}.")
        contents = {0: self._image, 1: self._boot, 2: self._application}
        if SectionType.SIGNATURE in self._seen:
            contents[8] = hashlib.sha384(_certificate(self._signature))
        return {number: hashlib.sha384(bytes(PCR_BYTES) + one.digest()).digest() for number, one in contents.items()}


def _taken(file: IO[bytes], size: int) -> bytes:
    part = file.read(size)
    if len(part) != size:
        raise InvalidImage(f"The enclave image ends within a section; {_DAMAGED}.")
    return part


def _certificate(signature: bytes) -> bytes:
    """The DER form of the certificate that signed PCR 0: of the first of the signatures, which alone counts."""
    try:
        match decode(signature, "enclave image's signature"):
            case [{"signing_certificate": list(pem)}, *_]:
                return x509.load_pem_x509_certificate(bytes(pem)).public_bytes(Encoding.DER)
    except (MalformedEvidence, *PARSE_ERRORS):
        pass
    raise InvalidImage("The enclave image's signature has no certificate; sign it again.")

"""NVIDIA's SPDM measurement report: the two messages as bytes, and what the opaque data in them say.

Formats: DMTF DSP0274 (SPDM) 1.1, tables "GET_MEASUREMENTS request message format", "Successful MEASUREMENTS response
message format", "Measurement block format" and "DMTF measurement specification format"; numbers are little-endian.
The opaque data are NVIDIA's, as its attestation SDK reads them: fields of a type and a size (2 bytes each) and data.
Nothing here is verified.
"""

import re
from dataclasses import dataclass
from typing import Final, Self

from confide.attest.cursor import Cursor
from confide.errors import MalformedEvidence

NONCE_BYTES: Final = 32
SIGNATURE_BYTES: Final = 96
MAX_REPORT_BYTES: Final = 1 << 16
"""NVML's own buffer has 8 KiB; what is behind the report in it are zeros."""

_SPDM_1_1: Final = 0x11
_GET_MEASUREMENTS: Final = 0xE0
_MEASUREMENTS: Final = 0x60
_SIGNED: Final = 0x01
_DMTF: Final = 0x01

_DRIVER_VERSION, _VBIOS_VERSION, _NVDEC, _CHIP_SKU, _PROJECT, _PROJECT_SKU = 3, 6, 11, 15, 17, 18
_FIRMWARE_ID, _CHIP, _FEATURE = 20, 35, 36
_NVDEC_OFF: Final = 0x55
_PLAIN: Final = re.compile(r"[A-Za-z0-9.\-]{1,32}")
"""What goes into an address: the report comes from outside."""


@dataclass(frozen=True)
class Report:
    """What the messages hold.

    signed: both messages as they were signed, without the signature. signature: r and s, 48 bytes each, big-endian.
    nonce: the requester's, 32 bytes. blocks: measurements by SPDM's index, from 1. opaque: fields by type.
    """

    signed: bytes
    signature: bytes
    nonce: bytes
    blocks: dict[int, bytes]
    opaque: dict[int, bytes]

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Read request and response, with zeros behind them or not; MalformedEvidence if they are not SPDM 1.1."""
        if len(raw) > MAX_REPORT_BYTES:
            raise MalformedEvidence(f"A GPU report has at most {MAX_REPORT_BYTES >> 10} KiB; send the report alone.")
        cursor = Cursor(raw, "GPU report", "little")
        nonce = _request(cursor)
        if cursor.number(1) != _SPDM_1_1 or cursor.number(1) != _MEASUREMENTS:
            raise MalformedEvidence("The GPU report has no SPDM 1.1 MEASUREMENTS response; fetch it again.")
        cursor.take(2)
        count, record = cursor.number(1), cursor.sized(3)
        cursor.take(NONCE_BYTES)
        opaque = cursor.sized(2)
        signed = raw[: cursor.at]
        signature = cursor.take(SIGNATURE_BYTES)
        if any(raw[cursor.at :]):
            raise MalformedEvidence("Behind the GPU report is more than zeros; send the report alone.")
        return cls(signed, signature, nonce, _blocks(record, count), _fields(opaque))

    @property
    def firmware_id(self) -> bytes | None:
        """The digest of the firmware that reports; None where it does not say."""
        return self.opaque.get(_FIRMWARE_ID)

    @property
    def driver_version(self) -> str:
        """Such as 550.90.07; empty where it is not said."""
        return self._text(_DRIVER_VERSION)

    @property
    def vbios_version(self) -> str:
        """Such as 96.00.9F.00.01; empty where it is not said."""
        vbios = self.opaque.get(_VBIOS_VERSION, b"")
        # The two numbers are little-endian, the most significant first when written.
        return ".".join(f"{byte:02X}" for byte in vbios[3::-1] + vbios[4:5]) if len(vbios) == 8 else ""

    @property
    def feature(self) -> int:
        """NVIDIA's feature flag, see `nvidia.MODES`; -1 where it is not said."""
        flag = self.opaque.get(_FEATURE)
        return -1 if flag is None else int.from_bytes(flag[:8], "little")

    @property
    def nvdec_is_off(self) -> bool:
        """Whether the first video decoder is off: then measurement 35 of the reference manifest has no counterpart."""
        return self.opaque.get(_NVDEC) == bytes([_NVDEC_OFF])

    def driver_manifest(self, product: str) -> str | None:
        """What NVIDIA's service calls the reference manifest of this driver; None where the report does not say.

        product: of the GPU, such as GH100, as its certificate names it.
        """
        if product == "GH100":
            return _named("NV_GPU_DRIVER_GH100", self.driver_version)
        chip = self._text(_CHIP) or (product if _PLAIN.fullmatch(product) else "")
        return _named("NV_GPU_CC_DRIVER", chip, self.driver_version)

    def vbios_manifest(self) -> str | None:
        """The same of this VBIOS."""
        board = (self._text(_PROJECT), self._text(_PROJECT_SKU), self._text(_CHIP_SKU))
        return _named("NV_GPU_VBIOS", *(part.upper() for part in board), self.vbios_version.replace(".", ""))

    def _text(self, kind: int) -> str:
        text = self.opaque.get(kind, b"").partition(b"\0")[0].decode("ascii", "replace").strip()
        return text if _PLAIN.fullmatch(text) else ""


def _named(*parts: str) -> str | None:
    return "_".join(parts) if all(parts) else None


def _request(cursor: Cursor) -> bytes:
    """GET_MEASUREMENTS, 37 bytes, asking for a signature: the nonce of it."""
    head = cursor.take(4)
    if head[0] != _SPDM_1_1 or head[1] != _GET_MEASUREMENTS or not head[2] & _SIGNED:
        raise MalformedEvidence("The GPU report begins with no SPDM 1.1 GET_MEASUREMENTS request; send both messages.")
    nonce = cursor.take(NONCE_BYTES)
    cursor.take(1)
    return nonce


def _blocks(record: bytes, count: int) -> dict[int, bytes]:
    """Measurement blocks: index, specification, size, then DMTF's value type and value."""
    cursor = Cursor(record, "GPU's measurement record", "little")
    blocks: dict[int, bytes] = {}
    for _ in range(count):
        index, specification = cursor.number(1), cursor.number(1)
        block = Cursor(cursor.sized(2), "GPU's measurement block", "little")
        block.take(1)
        value = block.sized(2)
        block.finish()
        if index in blocks or specification != _DMTF:
            raise MalformedEvidence("The GPU's measurements are repeated or not DMTF's; fetch the report again.")
        blocks[index] = value
    cursor.finish()
    return blocks


def _fields(opaque: bytes) -> dict[int, bytes]:
    cursor = Cursor(opaque, "GPU's opaque data", "little")
    fields: dict[int, bytes] = {}
    while not cursor.done:
        kind = cursor.number(2)
        if kind in fields:
            raise MalformedEvidence("The GPU's opaque data repeat a field; fetch the report again.")
        fields[kind] = cursor.sized(2)
    return fields

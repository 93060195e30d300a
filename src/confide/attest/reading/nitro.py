"""Documents of an AWS Nitro enclave, which its security module (NSM) signs on demand through /dev/nsm.

Formats: Linux, include/uapi/linux/nsm.h (one ioctl, with the addresses of a question and of room for its answer);
AWS, aws-nitro-enclaves-nsm-api, Request and Response (what is in them, in CBOR). A document has room for user data, a
nonce and a public key. Report data is the user data; the nonce and the keys are in the statement whose digest it is.
"""

import ctypes
import fcntl
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cbor2

from confide.attest.cbor import decode
from confide.attest.evidence import Evidence, Family
from confide.attest.reading.reader import full_report_data
from confide.errors import EvidenceUnavailable, MalformedEvidence, NoTrustedEnvironment

DEVICE: Final = Path("/dev/nsm")
ANSWER_BYTES: Final = 0x3000
"""NSM_RESPONSE_MAX_SIZE."""

MESSAGE: Final = struct.Struct("=QQQQ")
"""struct nsm_raw: address and length of the question, and of the room for the answer, whose length comes back."""
ASK: Final = 3 << 30 | MESSAGE.size << 16 | 0x0A << 8
"""NSM_IOCTL_RAW: _IOWR(0x0A, 0, struct nsm_raw)."""

_SAID: Final = 64


@dataclass(frozen=True)
class Nsm:
    """Reads through the module's device. ioctl: as `fcntl.ioctl`, which fills the message that it is given."""

    device: Path = DEVICE
    ioctl: Callable[[int, int, bytearray], object] = fcntl.ioctl
    name: str = "nitro"

    def read(self, report_data: bytes) -> Evidence:
        """A document with these 64 bytes as its user data."""
        full_report_data(report_data)
        answer = self._ask({"Attestation": {"user_data": report_data, "nonce": None, "public_key": None}})
        match answer:
            case {"Attestation": {"document": bytes(document)}} if document:
                return Evidence(Family.NITRO, document)
            case {"Error": str(reason)}:
                said = reason[:_SAID].encode("ascii", "backslashreplace").decode()
                raise EvidenceUnavailable(f"The Nitro security module made no document ({said!r}); ask it again.")
        raise EvidenceUnavailable("The Nitro security module answered with no document; update the enclave's kernel.")

    def check(self) -> None:
        """Nothing where the device is; otherwise a typed error that says what to change."""
        os.close(self._open())

    def _open(self) -> int:
        try:
            return os.open(self.device, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NoTrustedEnvironment(
                f"There is no {self.device}: run inside a Nitro enclave, or use `confide tee simulate init` to try "
                "things out."
            ) from error
        except OSError as error:
            raise EvidenceUnavailable(
                f"{self.device} cannot be opened ({error.strerror}); run as a user who may use it."
            ) from error

    def _ask(self, question: dict[str, Any]) -> Any:
        sent = cbor2.dumps(question)
        asked, room = ctypes.create_string_buffer(sent, len(sent)), ctypes.create_string_buffer(ANSWER_BYTES)
        message = bytearray(
            MESSAGE.pack(ctypes.addressof(asked), len(asked), ctypes.addressof(room), len(room)),
        )
        device = self._open()
        try:
            self.ioctl(device, ASK, message)
        except OSError as error:
            raise EvidenceUnavailable(
                f"The Nitro security module does not answer ({error.strerror}); ask it again, or read the kernel's log."
            ) from error
        finally:
            os.close(device)
        _, _, _, length = MESSAGE.unpack(message)
        try:
            return decode(room.raw[: min(length, ANSWER_BYTES)], "Nitro security module's answer")
        except MalformedEvidence as error:
            raise EvidenceUnavailable(str(error)) from None

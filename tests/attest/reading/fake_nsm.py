"""A fake of the Nitro security module's driver: it reads and writes at the addresses that it is given, as that does."""

import ctypes
import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cbor2
from tests.attest.families.forged_nitro import Fields, document, enclave

from confide.attest.reading import nitro

ASK = 0xC0200A00
"""NSM_IOCTL_RAW, as the kernel's headers have it on x86-64 and on ARM."""


def signed(question: Any) -> bytes:
    """The answer of a module under the forged root: a document with what was asked for in it."""
    asked = question["Attestation"]
    return cbor2.dumps({"Attestation": {"document": document(Fields(payload=asked), enclave())}})


@dataclass
class FakeNsm:
    """fails: the error's number, instead of an answer. longer: how much more the driver says that it wrote."""

    answer: Callable[[Any], bytes] = signed
    fails: int = 0
    longer: int = 0
    asked: list[Any] = field(default_factory=list)

    def ioctl(self, device: int, command: int, message: bytearray) -> int:
        """As fcntl.ioctl with a bytearray: what the driver changes comes back in it."""
        if command != ASK:
            raise OSError(errno.EINVAL, "Invalid argument")
        if self.fails:
            raise OSError(self.fails, "the driver gave up")
        address, length, room, size = nitro.MESSAGE.unpack(message)
        self.asked.append(cbor2.loads(ctypes.string_at(address, length)))
        answer = self.answer(self.asked[-1])[:size]  # a driver writes no more than there is room for
        ctypes.memmove(room, answer, len(answer))
        message[:] = nitro.MESSAGE.pack(address, length, room, len(answer) + self.longer)
        return 0

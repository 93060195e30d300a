"""Event logs of TDX: what firmware and kernel extended into RTMR0 to RTMR3, replayed and compared with a quote.

The format is TCG's crypto-agile log, as the CCEL table of ACPI holds it: one TCG_PCR_EVENT that names the digests'
sizes, then TCG_PCR_EVENT2s, little-endian. A register's index is 1 for RTMR0 to 4 for RTMR3; 0 is MRTD, which nothing
extends. The area behind the last event is filled, with bytes of 0x00 or 0xff.

Sources: TCG PC Client Platform Firmware Profile Specification 1.06, section 10 (the log's format); UEFI Specification
2.10, section 38.4.1 (the indices of TDX); ACPI Specification 6.5, section 5.2.33 (CCEL).
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from confide.attest.claims import Claims
from confide.attest.families.dcap_quote import Reader
from confide.errors import EventLogMismatch, MalformedEvidence

PART: Final = "event_log"
"""The name of the log among the evidence's parts."""

MAX_LOG_BYTES: Final = 1 << 20
MAX_EVENTS: Final = 1 << 14
MAX_ALGORITHMS: Final = 8

REGISTERS: Final = ("rtmr0", "rtmr1", "rtmr2", "rtmr3")

_SIGNATURE: Final = b"Spec ID Event03\0"
_NO_ACTION: Final = 3
_SHA384: Final = 0x000C
_SHA384_BYTES: Final = 48
_SHA1_BYTES: Final = 20
_FILLING_BYTES: Final = 8
"""No event starts with so many equal bytes: a register and the event's type, which is 3 where the register is 0."""


_KINDS: Final[Mapping[int, str]] = {
    0x00000001: "post code",
    0x00000003: "no action",
    0x00000004: "separator",
    0x00000005: "action",
    0x00000006: "tag",
    0x00000008: "CRTM version",
    0x0000000A: "platform configuration",
    0x0000000C: "compact hash",
    0x0000000D: "boot loader",
    0x80000001: "EFI variable, driver's configuration",
    0x80000002: "EFI variable, boot",
    0x80000003: "EFI program for booting",
    0x80000004: "EFI driver for booting",
    0x80000006: "partition table",
    0x80000007: "EFI action",
    0x80000008: "firmware",
    0x80000009: "hand-off tables",
    0x8000000A: "firmware",
    0x8000000B: "hand-off tables",
    0x8000000C: "EFI variable, boot",
    0x800000E0: "EFI variable, authority",
}
"""Types of events, for people (PC Client Platform Firmware Profile, 10.4.1, table "Events")."""


@dataclass(frozen=True)
class Event:
    """One event. register: 0 to 4, MRTD and then RTMR0 to RTMR3. digest: SHA-384, 48 bytes. data: as it was logged."""

    register: int
    kind: int
    digest: bytes
    data: bytes

    @property
    def name(self) -> str:
        """Its type in words, or as a number."""
        return _KINDS.get(self.kind, f"type {self.kind:#x}")

    @property
    def words(self) -> str:
        """The data as a text, where they are one. Whoever logged them chose it: make it printable before it is shown.

        Nothing vouches for it but its digest, and for some types that is of something else than the data.
        """
        for encoding in ("utf-16-le", "ascii"):
            text = self.data.decode(encoding, "replace").rstrip("\0")
            if text and all(" " <= letter <= "~" for letter in text):
                return text
        return ""


@dataclass(frozen=True)
class EventLog:
    """A log that was replayed: its events, and the registers that they lead to, 48 bytes each, by name."""

    events: tuple[Event, ...]
    registers: Mapping[str, bytes]

    def check(self, claims: Claims) -> None:
        """The hardware signed the registers that this log leads to; EventLogMismatch if not."""
        wrong = [name for name in REGISTERS if claims.measurements.get(name) != self.registers[name]]
        if wrong:
            raise EventLogMismatch(f"The event log does not lead to {', '.join(wrong)} of the quote; fetch both again.")


def replay(log: bytes) -> EventLog:
    """Read a log and extend its digests; MalformedEvidence if it is no whole log or is too large."""
    if len(log) > MAX_LOG_BYTES:
        raise MalformedEvidence(f"The event log has {len(log)} bytes; at most {MAX_LOG_BYTES} are read.")
    reader = Reader(log)
    sizes = _digest_sizes(reader)
    events: list[Event] = []
    while _more(reader):
        if len(events) == MAX_EVENTS:
            raise MalformedEvidence(f"The event log has more than {MAX_EVENTS} events; fetch it again.")
        events.append(_event(reader, sizes))
    steps = ((event.register, event.digest) for event in events if event.kind != _NO_ACTION)
    return EventLog(tuple(events), extended(steps))


def _digest_sizes(reader: Reader) -> dict[int, int]:
    """The first event: which digests the others carry, as bytes by TCG's number of the algorithm."""
    reader.take(4 + 4 + _SHA1_BYTES)
    header = Reader(reader.take(reader.number(4)))
    if header.take(len(_SIGNATURE)) != _SIGNATURE:
        raise MalformedEvidence("The event log is not in TCG's crypto-agile format; fetch the CCEL table's log.")
    header.take(8)
    count = header.number(4)
    if count > MAX_ALGORITHMS:
        raise MalformedEvidence(f"The event log names {count} algorithms; fetch it again.")
    sizes = {header.number(2): header.number(2) for _ in range(count)}
    if sizes.get(_SHA384) != _SHA384_BYTES:
        raise MalformedEvidence("The event log carries no SHA-384 digests, which TDX extends; fetch the CCEL table's.")
    return sizes


def _more(reader: Reader) -> bool:
    """Whether another event follows, rather than the end or the filling, which goes on to the end."""
    ahead = reader.peek(_FILLING_BYTES)
    if not ahead or set(ahead) not in ({0x00}, {0xFF}):
        return bool(ahead)
    if set(reader.rest) != set(ahead):
        raise MalformedEvidence("The event log goes on behind its end; fetch it again.")
    return False


def _event(reader: Reader, sizes: Mapping[int, int]) -> Event:
    register, kind, count = reader.number(4), reader.number(4), reader.number(4)
    if register > len(REGISTERS) or (register == 0 and kind != _NO_ACTION):
        raise MalformedEvidence(f"The event log extends register {register}, which TDX does not have; fetch it again.")
    if count > len(sizes):
        raise MalformedEvidence(f"An event has {count} digests, where the log names {len(sizes)}; fetch it again.")
    digests = dict(_digest(reader, sizes) for _ in range(count))
    if _SHA384 not in digests:
        raise MalformedEvidence("An event carries no SHA-384 digest, which TDX extends; fetch the log again.")
    return Event(register, kind, digests[_SHA384], reader.take(reader.number(4)))


def _digest(reader: Reader, sizes: Mapping[int, int]) -> tuple[int, bytes]:
    algorithm = reader.number(2)
    if algorithm not in sizes:
        raise MalformedEvidence(f"An event has a digest of the kind {algorithm:#06x}, which the log does not name.")
    return algorithm, reader.take(sizes[algorithm])


def extended(steps: Iterable[tuple[int, bytes]]) -> dict[str, bytes]:
    """The registers after these digests, each with its register (1 for RTMR0), 48 bytes each by name.

    Every register starts with zeros, and becomes SHA-384 of itself and the next digest.
    """
    registers = [bytes(_SHA384_BYTES)] * len(REGISTERS)
    for register, digest in steps:
        registers[register - 1] = hashlib.sha384(registers[register - 1] + digest).digest()
    return dict(zip(REGISTERS, registers, strict=True))

"""Events that firmware, boot loader and kernel extend into RTMR0 to RTMR3, each with its digest from its inputs.

The registers that they lead to are predicted before a machine runs; its log is held against them afterwards, and what
differs has a name. The kinds are TCG's numbers, which a log has too.

Sources: TCG PC Client Platform Firmware Profile Specification 1.06, section 10.4 (what each event's digest covers);
Intel TDX Virtual Firmware Design Guide 1.01, section 8 (which register); EDK2's SecurityPkg and OvmfPkg; Linux,
`efi-stub-helper.c`.
"""

import hashlib
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal
from uuid import UUID

import msgspec

from confide.attest.families.eventlog import MAX_EVENTS, REGISTERS, Event, EventLog, extended
from confide.deploy.predict.pe import authenticode
from confide.errors import InvalidImage

RTMR0, RTMR1, RTMR2 = 1, 2, 3
"""Registers as logs number them."""

NO_ACTION, SEPARATOR, TAG, CONFIGURATION, BOOT_LOADER, ACTION = 0x3, 0x4, 0x6, 0xA, 0xD, 0x80000007
VARIABLE, BOOT_VARIABLE, AUTHORITY = 0x80000001, 0x80000002, 0x800000E0
PROGRAM, PARTITIONS, FIRMWARE, HAND_OFF = 0x80000003, 0x80000006, 0x8000000A, 0x8000000B

GLOBAL_VARIABLES: Final = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
IMAGE_SECURITY: Final = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")

CALLING: Final = "Calling EFI Application from Boot Option"
EXIT_INVOKED: Final = "Exit Boot Services Invocation"
EXIT_DONE: Final = "Exit Boot Services Returned with Success"

_HEAD: Final = struct.Struct("<16sQQ")
"""Of UEFI_VARIABLE_DATA: the vendor's GUID, the name's length in characters, the value's in bytes."""
_WHOLE: Final = (SEPARATOR, ACTION, VARIABLE, AUTHORITY, PARTITIONS)
_COMMANDS: Final = (b"grub_cmd: ", b"kernel_cmdline: ", b"module_cmdline: ")


@dataclass(frozen=True)
class BootEvent:
    """One event. name: what it measures, in words. register: 1 to 4, RTMR0 to RTMR3. digest: SHA-384, 48 bytes.

    given: the digest itself was an input, since what it is of is not at hand.
    """

    name: str
    register: int
    kind: int
    digest: bytes
    given: bool = False


def bytes_event(name: str, register: int, kind: int, data: bytes) -> BootEvent:
    """An event whose digest is that of these bytes."""
    return BootEvent(name, register, kind, hashlib.sha384(data).digest())


def given(name: str, register: int, kind: int, digest: bytes) -> BootEvent:
    """An event of which only the digest is known."""
    return BootEvent(name, register, kind, digest, given=True)


def variable(vendor: UUID, name: str, value: bytes, kind: int = VARIABLE, register: int = RTMR0) -> BootEvent:
    """A variable of the firmware's, by which secure boot is configured: vendor, name and value are measured."""
    head = _HEAD.pack(vendor.bytes_le, len(name), len(value))
    return bytes_event(f"variable {name}", register, kind, head + name.encode("utf-16-le") + value)


def boot_variable(name: str, value: bytes) -> BootEvent:
    """BootOrder or a boot option: only the value is measured, though the log has the name."""
    return bytes_event(f"variable {name}", RTMR0, BOOT_VARIABLE, value)


def separator(register: int) -> BootEvent:
    """The end of what came before the operating system."""
    return bytes_event("separator", register, SEPARATOR, bytes(4))


def action(text: str) -> BootEvent:
    """What firmware says that it does."""
    return bytes_event(text, RTMR1, ACTION, text.encode("ascii"))


def program(name: str, image: bytes) -> BootEvent:
    """A PE image that firmware starts. InvalidImage."""
    return BootEvent(name, RTMR1, PROGRAM, authenticode(image))


def partitions(header: bytes, entries: Sequence[bytes]) -> BootEvent:
    """The partition table that was booted from: GPT's header, 92 bytes, and its used entries, 128 bytes each."""
    return bytes_event(
        "partition table", RTMR1, PARTITIONS, header + struct.pack("<Q", len(entries)) + b"".join(entries)
    )


def load_options(command_line: str) -> BootEvent:
    """The kernel's command line, as its EFI stub measures it: UTF-16 with the zero behind it."""
    return bytes_event("kernel command line", RTMR2, TAG, (command_line + "\0").encode("utf-16-le"))


def initrd(content: bytes) -> BootEvent:
    """The initial RAM disk, as the kernel's EFI stub measures it."""
    return bytes_event("initial RAM disk", RTMR2, TAG, content)


def grub_command(text: str, prefix: str = "grub_cmd: ") -> BootEvent:
    """A command that GRUB ran, or a command line that it passed on: without the prefix that its log has."""
    return bytes_event(f"{prefix}{text}", RTMR2, BOOT_LOADER, text.encode())


def registers(events: Sequence[BootEvent]) -> dict[str, bytes]:
    """The registers that these events lead to, 48 bytes each, by name."""
    return extended((event.register, event.digest) for event in events)


def from_data(event: Event) -> bytes | None:
    """What a logged event's digest must be for the data that it was logged with; None where it is of something else.

    Firmware's volumes, programs, ACPI tables and files are logged by name or address and not by content.
    """
    data = event.data
    if event.kind == BOOT_VARIABLE:
        return _digest_of_value(data)
    if event.kind == BOOT_LOADER:
        command = next((data.removeprefix(prefix) for prefix in _COMMANDS if data.startswith(prefix)), None)
        return None if command is None else hashlib.sha384(command.removesuffix(b"\0")).digest()
    return hashlib.sha384(data).digest() if event.kind in _WHOLE else None


def _digest_of_value(data: bytes) -> bytes | None:
    if len(data) < _HEAD.size:
        return None
    _, characters, size = _HEAD.unpack_from(data)
    start = _HEAD.size + 2 * characters
    return hashlib.sha384(data[start:]).digest() if start + size == len(data) else None


@dataclass(frozen=True)
class Difference:
    """Where a log leaves a prediction. expected, seen: the events' names, None where there is none. index: from 0."""

    register: str
    index: int
    expected: str | None
    seen: str | None


def differences(events: Sequence[BootEvent], log: EventLog, among: Collection[str] = REGISTERS) -> Iterator[Difference]:
    """What a machine did otherwise than predicted, in the order of the registers. among: those that were predicted.

    Of each register what both begin with, and what both end with, is left out. Names out of a log are its writer's
    words: make them printable.
    """
    for number, name in enumerate(REGISTERS, 1):
        wanted = [event for event in events if event.register == number]
        found = [event for event in log.events if event.register == number and event.kind != NO_ACTION]
        if name not in among:
            continue
        start = 0
        while start < min(len(wanted), len(found)) and wanted[start].digest == found[start].digest:
            start += 1
        end = 0
        while end < min(len(wanted), len(found)) - start and wanted[-1 - end].digest == found[-1 - end].digest:
            end += 1
        left, right = wanted[start : len(wanted) - end], found[start : len(found) - end]
        for index in range(max(len(left), len(right))):
            yield Difference(
                name,
                start + index,
                left[index].name if index < len(left) else None,
                _said(right[index]) if index < len(right) else None,
            )


def _said(event: Event) -> str:
    return f"{event.name} {event.words[:80]}".strip()


def as_json(events: Sequence[BootEvent]) -> list[Mapping[str, object]]:
    """The events for `expected.json`."""
    return [
        {
            "register": REGISTERS[event.register - 1],
            "name": event.name,
            "digest": event.digest.hex(),
            "from": "a digest that was given" if event.given else "its inputs",
        }
        for event in events
    ]


class _Entry(msgspec.Struct, frozen=True):
    """An event of `expected.json`."""

    register: Literal["rtmr0", "rtmr1", "rtmr2", "rtmr3"]
    name: Annotated[str, msgspec.Meta(max_length=200)]
    digest: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{96}\Z")]


class _Expected(msgspec.Struct, frozen=True):
    events: Annotated[tuple[_Entry, ...], msgspec.Meta(max_length=MAX_EVENTS)]
    measurements: dict[str, str]


def from_json(content: bytes) -> tuple[tuple[BootEvent, ...], tuple[str, ...]]:
    """The events of an `expected.json`, and the registers that were predicted. InvalidImage where it is none."""
    try:
        found = msgspec.json.decode(content, type=_Expected)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise InvalidImage("The file is no expected.json of `confide deploy`; give what it wrote.") from None
    events = tuple(
        BootEvent(one.name, REGISTERS.index(one.register) + 1, 0, bytes.fromhex(one.digest)) for one in found.events
    )
    return events, tuple(name for name in REGISTERS if name in found.measurements)

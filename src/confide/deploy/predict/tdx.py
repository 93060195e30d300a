"""What a TDX machine measures that QEMU boots directly: OVMF, a kernel with its command line, and an initial RAM disk.

Sources: Intel TDX Virtual Firmware Design Guide 1.01, section 8; EDK2, `SecTdxHelper.c`, `TdTcg2Dxe.c`,
`GenericQemuLoadImageLib.c` and `AcpiPlatformDxe`; QEMU 10.1, `tdx.c`; Linux, `efi-stub-helper.c`. Nothing of this was
held against a machine: only its single events were, with the log of one at Google.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from confide.attest.families.eventlog import REGISTERS
from confide.attest.requirements import Tdx
from confide.deploy.predict import events
from confide.deploy.predict.events import RTMR0, RTMR1, BootEvent
from confide.deploy.predict.prediction import Prediction
from confide.deploy.predict.tdvf import Firmware, PageOrder, SectionType
from confide.errors import InvalidImage

MAX_KERNEL_BYTES: Final = 1 << 28
MAX_INITRD_BYTES: Final = 1 << 31
MAX_ACPI_BYTES: Final = 4 << 20
MAX_COMMAND_LINE: Final = 2047
"""Characters: what Linux on x86 takes (COMMAND_LINE_SIZE, with the zero behind it)."""

_INITRD_OPTION: Final = " initrd=initrd"
"""What OVMF puts behind the command line where there is an initial RAM disk."""
_SECURE_BOOT: Final = (
    (events.GLOBAL_VARIABLES, "SecureBoot"),
    (events.GLOBAL_VARIABLES, "PK"),
    (events.GLOBAL_VARIABLES, "KEK"),
    (events.IMAGE_SECURITY, "db"),
    (events.IMAGE_SECURITY, "dbx"),
)
_UI_VOLUME: Final = UUID("7cb8bdc9-f8eb-4f34-aaea-3ee4af6516a1")
_UI_PROGRAM: Final = UUID("462caa21-7614-4503-836e-8ab6f4662331")
_ASSUMPTIONS: Final = (
    "QEMU 10.1 or later with a q35 machine, and Linux 6.16 or later as its host.",
    "OVMF of 2025.02 or later, which takes the kernel as it lies in the file and not as QEMU patches it.",
    "The firmware's variables are empty: no secure boot keys are enrolled.",
    "The kernel's EFI stub measures command line and initial RAM disk (Linux 6.3 or later).",
    "Nothing extends RTMR3 before evidence is made.",
)


@dataclass(frozen=True)
class AcpiTables:
    """What QEMU hands over of ACPI, as its fw_cfg files: etc/table-loader, etc/acpi/rsdp and etc/acpi/tables."""

    loader: bytes
    rsdp: bytes
    tables: bytes


@dataclass(frozen=True)
class DirectBoot:
    """What such a machine is started with. memory: in bytes. Without memory and ACPI tables RTMR0 is not predicted.

    config_id: 48 bytes that the host puts into MRCONFIGID. page_order: how the host has the firmware measured.
    """

    firmware: bytes
    kernel: bytes
    command_line: str
    initrd: bytes = b""
    memory: int | None = None
    acpi: AcpiTables | None = None
    config_id: bytes = bytes(48)
    page_order: PageOrder = PageOrder.PAGE

    def __post_init__(self) -> None:
        if len(self.kernel) > MAX_KERNEL_BYTES or len(self.initrd) > MAX_INITRD_BYTES:
            raise InvalidImage("The kernel or the initial RAM disk is larger than any; give the file that is booted.")
        if not (self.command_line.isascii() and self.command_line.isprintable()):
            raise InvalidImage("The kernel's command line has to be one line of ASCII; write it without others.")
        if len(self.command_line + _INITRD_OPTION) > MAX_COMMAND_LINE:
            raise InvalidImage(f"The kernel's command line has more than {MAX_COMMAND_LINE} characters; shorten it.")
        if len(self.config_id) != 48:
            raise InvalidImage(f"MRCONFIGID has 48 bytes and not {len(self.config_id)}; give 96 hexadecimal digits.")

    def predict(self) -> Prediction:
        """All registers that these inputs decide. InvalidImage where one of them is not what it should be."""
        firmware = Firmware.parse(self.firmware)
        missing = self._missing()
        first = () if missing else tuple(self._first(firmware))
        log = (*first, *self._second(), *self._third())
        registers = events.registers(log)
        if missing:
            del registers["rtmr0"]
        measured = registers | {"mrtd": firmware.mrtd(self.page_order), "mrconfigid": self.config_id}
        required = Tdx(
            mrtd=measured["mrtd"].hex(),
            rtmrs=tuple(registers[name].hex() if name in registers else "" for name in REGISTERS),
            mrconfigid=self.config_id.hex(),
        )
        unpredicted = {"rtmr0": f"needs {missing}"} if missing else {}
        unpredicted |= dict.fromkeys(("mrseam", "td_attributes", "xfam"), "the host's, and no file says it")
        return Prediction(measured, unpredicted, _ASSUMPTIONS, log, required)

    def _missing(self) -> str:
        wanted = {"the machine's memory": self.memory, "its ACPI tables": self.acpi}
        return " and ".join(name for name, value in wanted.items() if value is None)

    def _first(self, firmware: Firmware) -> Iterator[BootEvent]:
        """RTMR0: what the host hands the firmware, and how that is configured."""
        if self.memory is None or self.acpi is None:
            return
        yield events.bytes_event("TD HOB", RTMR0, events.HAND_OFF, firmware.td_hob(self.memory))
        volume = firmware.one(SectionType.CONFIGURATION)
        content = volume.raw.ljust(volume.size, b"\0")
        yield events.bytes_event("configuration volume", RTMR0, events.FIRMWARE, content)
        for vendor, name in _SECURE_BOOT:
            yield events.variable(vendor, name, b"")
        yield events.separator(RTMR0)
        for name, table in (("loader", self.acpi.loader), ("rsdp", self.acpi.rsdp), ("tables", self.acpi.tables)):
            yield events.bytes_event(f"ACPI {name}", RTMR0, events.CONFIGURATION, table)
        yield events.boot_variable("BootOrder", bytes(2))
        yield events.boot_variable("Boot0000", ui_option())

    def _second(self) -> Iterator[BootEvent]:
        """RTMR1: the kernel, and the way to it."""
        yield events.program("kernel", self.kernel)
        yield events.action(events.CALLING)
        yield events.separator(RTMR1)
        yield events.action(events.EXIT_INVOKED)
        yield events.action(events.EXIT_DONE)

    def _third(self) -> Iterator[BootEvent]:
        """RTMR2: what the kernel was told."""
        yield events.load_options(self.command_line + (_INITRD_OPTION if self.initrd else ""))
        if self.initrd:
            yield events.initrd(self.initrd)


def ui_option() -> bytes:
    """The boot option that OVMF always has: its own user interface, as an EFI_LOAD_OPTION (UEFI 2.10, 3.1.3)."""
    path = b"".join(
        (
            struct.pack("<BBH16s", 4, 7, 20, _UI_VOLUME.bytes_le),
            struct.pack("<BBH16s", 4, 6, 20, _UI_PROGRAM.bytes_le),
            struct.pack("<BBH", 0x7F, 0xFF, 4),
        )
    )
    active_hidden_application = 0x109
    return struct.pack("<IH", active_hidden_application, len(path)) + "UiApp\0".encode("utf-16-le") + path

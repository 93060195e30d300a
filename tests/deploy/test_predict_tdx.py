"""What a TDX machine will measure: every digest from its inputs, by the specifications, and held against a real log."""

import hashlib
import struct
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.deploy import machine
from tests.deploy.machine import GIGABYTE, PAGE, boot

from confide.attest.families.dcap_signature import parse
from confide.attest.families.eventlog import Event, EventLog, replay
from confide.attest.policy_toml import any_policy_from_toml, to_toml
from confide.deploy.predict import events
from confide.deploy.predict.pe import authenticode
from confide.deploy.predict.tdvf import Firmware, PageOrder
from confide.deploy.predict.tdx import ui_option
from confide.errors import InvalidImage


def sha384(*parts: bytes) -> bytes:
    return hashlib.sha384(b"".join(parts)).digest()


def add(address: int) -> bytes:
    return b"MEM.PAGE.ADD\0\0\0\0" + struct.pack("<Q", address) + b"\0" * 104


def extend(address: int, content: bytes) -> bytes:
    return b"MR.EXTEND" + b"\0" * 7 + struct.pack("<Q", address) + b"\0" * 104 + content


def test_mrtd_covers_every_page_and_the_content_of_the_code() -> None:
    """The operations of TDH.MEM.PAGE.ADD and TDH.MR.EXTEND, written down one by one."""
    image = machine.firmware()
    code = image[PAGE:]
    chunks = [extend(machine.CODE_AT + at, code[at : at + 256]) for at in range(0, PAGE, 256)]
    expected = sha384(add(0xFFFFE000), *chunks, add(0xFFFFC000), add(0x809000), add(0x80A000), add(0x80B000))
    assert Firmware.parse(image).mrtd() == expected
    assert Firmware.parse(machine.firmware(table=False)).mrtd() != expected  # its bytes differ at the end


def test_content_is_measured_page_by_page_or_after_the_section() -> None:
    two = machine.section(0, PAGE, machine.CODE_AT, 2 * PAGE, 0, 1)
    firmware = Firmware.parse(machine.firmware((two,)))
    content = machine.firmware((two,))[:PAGE] + bytes(PAGE)
    chunks = [extend(machine.CODE_AT + at, content[at : at + 256]) for at in range(0, 2 * PAGE, 256)]
    pages = [add(machine.CODE_AT), add(machine.CODE_AT + PAGE)]
    assert firmware.mrtd(PageOrder.PAGE) == sha384(pages[0], *chunks[:16], pages[1], *chunks[16:])
    assert firmware.mrtd(PageOrder.SECTION) == sha384(*pages, *chunks)


def test_memory_that_is_added_later_is_not_measured() -> None:
    later = machine.section(0, 0, 0x1000000, PAGE, 4, 2)
    assert Firmware.parse(machine.firmware((later,))).mrtd() == sha384()


def test_td_hob() -> None:
    """The list of the UEFI PI specification: PHIT, and a descriptor for every range of memory."""
    low = 0x80000000
    ranges = [
        (0, 0x809000, 7),
        (0x809000, 0x80B000, 0),
        (0x80B000, 0x80C000, 0),
        (0x80C000, low, 7),
        (1 << 32, (1 << 32) + 4 * GIGABYTE - low, 7),
    ]
    end = 0x809000 + 56 + 48 * 5 + 8
    expected = struct.pack("<HHI", 1, 56, 0) + struct.pack("<II", 9, 0) + bytes(32) + struct.pack("<Q", end)
    for start, stop, kind in ranges:
        expected += struct.pack("<HHI", 3, 48, 0) + bytes(16) + struct.pack("<IIQQ", kind, 7, start, stop - start)
    assert Firmware.parse(machine.firmware()).td_hob(4 * GIGABYTE) == expected


@pytest.mark.parametrize(
    ("memory", "low", "above"),
    [(GIGABYTE, GIGABYTE, 0), (0xAFFFF000, 0xAFFFF000, 0), (0xB0000000, 0x80000000, 0x30000000)],
)
def test_memory_around_the_hole(memory: int, low: int, above: int) -> None:
    """QEMU's q35: 2 GiB below the hole from 2.75 GiB on, and all of it before."""
    hob = Firmware.parse(machine.firmware()).td_hob(memory)
    found = [struct.unpack_from("<QQ", hob, at + 32) for at in range(56, len(hob), 48)]
    assert sum(length for start, length in found if start < 1 << 32) == low
    assert [entry for entry in found if entry[0] >= 1 << 32] == ([(1 << 32, above)] if above else [])


def test_firmware_outside_the_memory() -> None:
    with pytest.raises(InvalidImage, match="more memory"):
        Firmware.parse(machine.firmware()).td_hob(PAGE)


@pytest.mark.parametrize(
    "image",
    [
        b"",
        bytes(100),
        machine.firmware()[:-1],
        machine.firmware().replace(b"TDVF", b"TDVG"),
        machine.firmware((machine.section(0, PAGE, 0x1001, PAGE, 0, 1),)),
        machine.firmware((machine.section(0, PAGE, 0x1000, PAGE + 1, 0, 1),)),
        machine.firmware((machine.section(0, 2 * PAGE, 0x1000, PAGE, 0, 1),)),
        machine.firmware((machine.section(PAGE, PAGE + 1, 0x1000, 2 * PAGE, 0, 1),)),
        machine.firmware((machine.section(0, 0, 0, 1 << 40, 0, 1),)),
        machine.firmware((machine.section(0, 0, 1 << 63, PAGE, 0, 1),)),
    ],
    ids=range(10),
)
def test_what_is_no_firmware(image: bytes) -> None:
    with pytest.raises(InvalidImage):
        Firmware.parse(image)


def test_more_sections_than_there_are() -> None:
    image = bytearray(machine.firmware())
    at = image.index(b"TDVF") + 12
    for count in (65, 0xFFFFFFFF, 64):
        image[at : at + 4] = struct.pack("<I", count)
        with pytest.raises(InvalidImage):
            Firmware.parse(bytes(image))


@settings(max_examples=50)
@given(st.binary(max_size=200), st.integers(0, 8191))
def test_any_firmware_is_read_or_refused(data: bytes, at: int) -> None:
    image = bytearray(machine.firmware())
    image[at : at + len(data)] = data
    try:
        Firmware.parse(bytes(image)).mrtd()
    except InvalidImage:
        return


# -- the kernel --------------------------------------------------------------------------------------------------------


def test_authenticode_leaves_out_checksum_and_signature() -> None:
    plain, signed = machine.kernel(), machine.kernel(signature=b"signature")
    entry, checksum = 0x58 + 144, 0x58 + 64
    left = plain[:checksum] + plain[checksum + 4 : entry] + plain[entry + 8 :]
    assert authenticode(plain) == sha384(left)
    assert authenticode(signed) == authenticode(plain)
    changed = bytearray(signed)
    changed[checksum] ^= 1
    assert authenticode(bytes(changed)) == authenticode(plain)
    changed[0x210] ^= 1
    assert authenticode(bytes(changed)) != authenticode(plain)


def test_what_is_between_sections_and_signature_is_hashed() -> None:
    """It starts where the headers' and sections' lengths end, and stops where the signature does."""
    with_more, entry, checksum = machine.kernel() + b"appended", 0x58 + 144, 0x58 + 64
    left = with_more[:checksum] + with_more[checksum + 4 : entry] + with_more[entry + 8 :]
    assert authenticode(with_more) == sha384(left)
    signed = bytearray(with_more + b"signature")
    signed[entry : entry + 8] = struct.pack("<II", len(with_more), 9)
    assert authenticode(bytes(signed)) == authenticode(with_more)


def test_sections_are_taken_by_their_place_in_the_file() -> None:
    ordered = machine.kernel(sections=((0x200, 0x300), (0x500, 0x100)))
    other = machine.kernel(sections=((0x500, 0x100), (0x200, 0x300)))
    at = 0x58 + 160
    left = other[: 0x58 + 64] + other[0x58 + 68 : 0x58 + 144] + other[0x58 + 152 : 0x600]
    assert authenticode(other) == sha384(left)
    assert ordered[at : at + 80] != other[at : at + 80]


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        (
            "t64.exe",
            "231ae1088297427fdbf0aeb384eae8b35da00770a53f3d8307f0cf7d97eae42f23cfc39c25ad3a6703a7d91897946edb",
        ),
        (
            "w32.exe",
            "fb34cbd0ffd90fad6439bb3df9368ffaf93a2f67b629d091e63469d21a88decb739915b0b8632b97ceafe1e166e55ecf",
        ),
    ],
)
def test_real_programs_have_the_digest_that_another_reader_gives(name: str, digest: str) -> None:
    """Launchers of distlib 0.4.4, of 64 and of 32 bits; the digests are by LIEF 1.0, `authentihash` with SHA-384."""
    distlib = pytest.importorskip("distlib")
    if version("distlib") != "0.4.4":
        pytest.skip("the digests are of distlib 0.4.4")
    assert authenticode((Path(distlib.__file__).parent / name).read_bytes()).hex() == digest


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"MZ" + bytes(100),
        machine.kernel()[:-1],
        machine.kernel()[:0x80],
        machine.kernel().replace(b"PE\0\0", b"PE\0\1"),
        machine.kernel(sections=((0x200, 0x300), (0x200, 0x300), (0x200, 0x300))),
        machine.kernel(signature=b"x" * 2000)[:-1500],
    ],
    ids=range(7),
)
def test_what_is_no_kernel(image: bytes) -> None:
    with pytest.raises(InvalidImage):
        authenticode(image)


@settings(max_examples=50)
@given(st.binary(max_size=100), st.integers(0, 0x300))
def test_any_kernel_is_read_or_refused(data: bytes, at: int) -> None:
    image = bytearray(machine.kernel())
    image[at : at + len(data)] = data
    try:
        authenticode(bytes(image))
    except InvalidImage:
        return


# -- the whole machine -------------------------------------------------------------------------------------------------


def test_the_kernels_own_measurements() -> None:
    """RTMR2: what Linux's EFI stub extends, as OVMF hands it over."""
    line = "console=ttyS0 ro initrd=initrd".encode("utf-16-le") + b"\0\0"
    register = sha384(sha384(bytes(48), sha384(line)), sha384(b"initrd"))
    assert boot().predict().measurements["rtmr2"] == register
    alone = sha384(bytes(48), sha384("console=ttyS0 ro\0".encode("utf-16-le")))
    assert boot(initrd=b"").predict().measurements["rtmr2"] == alone


def variable_event(vendor: str, name: str) -> bytes:
    """The digest of a variable that is empty."""
    return sha384(UUID(vendor).bytes_le, struct.pack("<QQ", len(name), 0), name.encode("utf-16-le"))


def test_the_whole_of_rtmr0_and_rtmr1() -> None:
    """Every event in its order, as OVMF extends them."""
    everywhere, images = "8be4df61-93ca-11d2-aa0d-00e098032b8c", "d719b2cb-3d3a-4596-a3bc-dad00e67656f"
    image, separator, acpi = machine.firmware(), sha384(bytes(4)), machine.ACPI
    first = (
        sha384(Firmware.parse(image).td_hob(4 * GIGABYTE)),
        sha384(image[:PAGE]),
        *(variable_event(everywhere, name) for name in ("SecureBoot", "PK", "KEK")),
        *(variable_event(images, name) for name in ("db", "dbx")),
        separator,
        *(sha384(table) for table in (acpi.loader, acpi.rsdp, acpi.tables)),
        sha384(b"\0\0"),
        sha384(ui_option()),
    )
    second = (
        authenticode(machine.kernel()),
        sha384(b"Calling EFI Application from Boot Option"),
        separator,
        sha384(b"Exit Boot Services Invocation"),
        sha384(b"Exit Boot Services Returned with Success"),
    )
    measured = boot().predict().measurements
    for name, digests in (("rtmr0", first), ("rtmr1", second)):
        register = bytes(48)
        for digest in digests:
            register = sha384(register, digest)
        assert measured[name] == register
    assert measured["rtmr3"] == bytes(48)


def test_every_input_is_in_the_register_that_it_belongs_to() -> None:
    usual = boot().predict().measurements
    acpi = machine.ACPI
    for changes, moved in (
        ({"kernel": machine.kernel(sections=((0x200, 0x300),))}, {"rtmr1"}),
        ({"command_line": "console=ttyS0 rw"}, {"rtmr2"}),
        ({"initrd": b"another"}, {"rtmr2"}),
        ({"memory": 8 * GIGABYTE}, {"rtmr0"}),
        ({"acpi": replace(acpi, tables=b"x")}, {"rtmr0"}),
        ({"acpi": replace(acpi, loader=b"x")}, {"rtmr0"}),
        ({"acpi": replace(acpi, rsdp=b"x")}, {"rtmr0"}),
        ({"config_id": b"\1" * 48}, {"mrconfigid"}),
        ({"page_order": PageOrder.SECTION}, set()),  # its one page of code
    ):
        now = boot(**changes).predict().measurements
        assert {name for name in usual if now[name] != usual[name]} == moved, changes
    configured = bytearray(machine.firmware())
    configured[0] ^= 1  # a variable that the host could have written
    now = boot(firmware=bytes(configured)).predict().measurements
    assert {name for name in usual if now[name] != usual[name]} == {"rtmr0"}


def test_what_cannot_be_predicted_has_a_name() -> None:
    whole, bare = boot().predict(), boot(memory=None, acpi=None).predict()
    assert "rtmr0" not in whole.unpredicted
    assert "rtmr0" not in bare.measurements
    assert bare.unpredicted["rtmr0"] == "needs the machine's memory and its ACPI tables"
    assert boot(acpi=None).predict().unpredicted["rtmr0"] == "needs its ACPI tables"
    assert {"mrseam", "td_attributes", "xfam"} <= set(whole.unpredicted)


def test_the_policy_demands_what_was_predicted() -> None:
    for prediction in (boot().predict(), boot(memory=None).predict()):
        policy = any_policy_from_toml(to_toml(prediction.policy()))
        (required,) = policy.requirements
        expected = dict(required.expected())  # type: ignore[union-attr]
        assert expected == {name: value.hex() for name, value in prediction.measurements.items()}


@pytest.mark.parametrize(
    "changes",
    [{"command_line": "a\nb"}, {"command_line": "ä"}, {"command_line": "x" * 2040}, {"config_id": b"short"}],
    ids=["lines", "letters", "long", "configuration"],
)
def test_inputs_that_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InvalidImage):
        boot(**changes)


# -- a machine's log ---------------------------------------------------------------------------------------------------


def log_of(made: tuple[events.BootEvent, ...]) -> EventLog:
    logged = tuple(Event(event.register, event.kind, event.digest, event.name.encode()) for event in made)
    return EventLog(logged, events.registers(made))


def test_a_log_as_predicted_has_no_difference() -> None:
    made = boot().predict().events
    assert list(events.differences(made, log_of(made))) == []


def test_what_differs_is_named() -> None:
    expected = boot().predict().events
    other = boot(command_line="console=ttyS0 ro init=/bin/sh").predict().events
    (difference,) = events.differences(expected, log_of(other))
    assert (difference.register, difference.index) == ("rtmr2", 0)
    assert difference.expected == "kernel command line"
    more = (*expected, events.bytes_event("late", events.RTMR2, events.BOOT_LOADER, b"module"))
    (difference,) = events.differences(expected, log_of(more))
    assert (difference.expected, difference.seen) == (None, "boot loader late")
    first = expected[1:]
    (difference,) = events.differences(expected, log_of(first))
    assert (difference.register, difference.expected, difference.seen) == ("rtmr0", "TD HOB", None)


def test_registers_that_were_not_predicted_are_not_compared() -> None:
    made = boot().predict().events
    assert list(events.differences(made[1:], log_of(made), ("rtmr1", "rtmr2", "rtmr3"))) == []
    assert list(events.differences(made[1:], log_of(made))) != []


@pytest.fixture
def google(test_data: Path) -> tuple[EventLog, dict[str, bytes]]:
    folder = test_data / "evidence/gcp"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    quote = parse((folder / "tdx_quote_v4.bin").read_bytes())
    return replay((folder / "ccel.bin").read_bytes()), dict(quote.measurements)


def value_of(event: Event) -> tuple[UUID, str, bytes]:
    vendor, length, size = struct.unpack_from("<16sQQ", event.data)
    name = event.data[32 : 32 + 2 * length].decode("utf-16-le")
    return UUID(bytes_le=vendor), name, event.data[32 + 2 * length : 32 + 2 * length + size]


def predicted(event: Event) -> events.BootEvent:
    """An event from what the log says its inputs were; with its logged digest only where they are not in the log."""
    register, words = event.register, event.data.rstrip(b"\0").decode("ascii", "replace")
    match event.kind:
        case events.VARIABLE | events.AUTHORITY:
            return events.variable(*value_of(event), kind=event.kind, register=register)
        case events.BOOT_VARIABLE:
            _, name, value = value_of(event)
            return events.boot_variable(name, value)
        case events.SEPARATOR:
            return events.separator(register)
        case events.ACTION:
            return events.action(words)
        case events.PARTITIONS:
            header, entries = event.data[:92], event.data[100:]
            return events.partitions(header, [entries[at : at + 128] for at in range(0, len(entries), 128)])
        case events.BOOT_LOADER if words.startswith("grub_cmd: "):
            return events.grub_command(words.removeprefix("grub_cmd: "))
        case events.BOOT_LOADER if words.startswith("kernel_cmdline: "):
            return events.grub_command(words.removeprefix("kernel_cmdline: "), "kernel_cmdline: ")
    return events.given(words, register, event.kind, event.digest)


def test_the_registers_of_a_machine_at_google(google: tuple[EventLog, dict[str, bytes]]) -> None:
    """31 of its 43 events from their inputs; of 12 the inputs are not in the log, and they are these."""
    log, quote = google
    made = tuple(map(predicted, log.events))
    registers = events.registers(made)
    assert registers == {name: quote[name] for name in registers}
    assert list(events.differences(made, log)) == []
    not_predicted = [log.events[at].name for at, event in enumerate(made) if event.given]
    assert not_predicted == [
        "hand-off tables",
        "firmware",
        *["platform configuration"] * 3,
        "EFI program for booting",
        *["boot loader"] * 3,
        "EFI program for booting",
        *["boot loader"] * 2,
    ]


def test_one_input_of_it_that_differs_is_named(google: tuple[EventLog, dict[str, bytes]]) -> None:
    log, quote = google
    made = [predicted(event) for event in log.events]
    made[2] = events.variable(events.GLOBAL_VARIABLES, "SecureBoot", b"\1")
    assert events.registers(made)["rtmr0"] != quote["rtmr0"]
    (difference,) = events.differences(made, log)
    assert (difference.register, difference.index, difference.expected) == ("rtmr0", 2, "variable SecureBoot")


def test_our_boot_option_is_the_one_that_google_measured(google: tuple[EventLog, dict[str, bytes]]) -> None:
    log, _ = google
    option = events.boot_variable("Boot0000", ui_option())
    assert option.digest in {event.digest for event in log.events if event.kind == events.BOOT_VARIABLE}


def test_words_that_the_digest_does_not_vouch_for(google: tuple[EventLog, dict[str, bytes]]) -> None:
    log, _ = google
    vouched = [events.from_data(event) for event in log.events]
    assert all(found in (None, event.digest) for found, event in zip(vouched, log.events, strict=True))
    assert sum(found is not None for found in vouched) == 31
    forged = replace(log.events[40], data=b"kernel_cmdline: harmless\0")
    assert events.from_data(forged) != forged.digest
    short = Event(1, events.BOOT_VARIABLE, bytes(48), b"short")
    assert events.from_data(short) is None

"""Event logs: replayed into the registers, compared with the quote, and refused with one error for each reason."""

import hashlib
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.attest.families.conftest import Case

from confide.attest.families import eventlog
from confide.attest.families.dcap_signature import parse
from confide.attest.families.eventlog import replay
from confide.attest.simulated import SimulatedTee
from confide.errors import EventLogMismatch, MalformedEvidence

SHA256, SHA384 = (0x000B, 32), (0x000C, 48)
Entry = tuple[int, int, bytes]
ENTRIES: list[Entry] = [(0, 3, b"no action"), (1, 8, b"one"), (2, 13, b"two"), (1, 4, b"\0" * 4), (4, 13, b"four")]


def log_of(entries: list[Entry], algorithms: tuple[tuple[int, int], ...] = (SHA256, SHA384)) -> bytes:
    """A log over these registers, types and data."""
    pairs = b"".join(struct.pack("<HH", *pair) for pair in algorithms)
    head = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(algorithms)) + pairs + b"\0"
    log = struct.pack("<II20sI", 0, 3, b"", len(head)) + head
    for register, kind, data in entries:
        log += struct.pack("<III", register, kind, len(algorithms))
        for number, _ in algorithms:
            log += struct.pack("<H", number) + hashlib.new("sha256" if number == 0x000B else "sha384", data).digest()
        log += struct.pack("<I", len(data)) + data
    return log


def extended(*datas: bytes) -> bytes:
    """A register after these events."""
    value = bytes(48)
    for data in datas:
        value = hashlib.sha384(value + hashlib.sha384(data).digest()).digest()
    return value


@pytest.mark.parametrize("filling", [b"", bytes(3), bytes(100), b"\xff" * 100])
def test_it_leads_to_the_registers(filling: bytes) -> None:
    log = replay(log_of(ENTRIES) + filling)
    assert log.registers == {
        "rtmr0": extended(b"one", b"\0" * 4),
        "rtmr1": extended(b"two"),
        "rtmr2": bytes(48),
        "rtmr3": extended(b"four"),
    }
    assert [event.data for event in log.events] == [data for _, _, data in ENTRIES]


def test_a_quote_with_its_log(tee: SimulatedTee, simulated: Case) -> None:
    log = log_of(ENTRIES)
    registers = dict(replay(log).registers)
    good = Case(
        tee.quote(bytes(64), measurements=registers, parts={"event_log": log}),
        simulated.collateral,
        simulated.roots,
        simulated.now,
    )
    assert good.verify().measurements["rtmr0"] == registers["rtmr0"]


@pytest.mark.parametrize("name", eventlog.REGISTERS)
def test_another_log_is_refused(tee: SimulatedTee, simulated: Case, name: str) -> None:
    log = log_of(ENTRIES)
    registers = dict(replay(log).registers) | {name: b"x" * 48}
    evidence = tee.quote(bytes(64), measurements=registers, parts={"event_log": log})
    with pytest.raises(EventLogMismatch, match=name):
        Case(evidence, simulated.collateral, simulated.roots, simulated.now).verify()


def test_every_truncation_is_refused_or_ends_with_an_event() -> None:
    log = log_of(ENTRIES)
    ends = [len(log_of(ENTRIES[:count])) for count in range(len(ENTRIES) + 1)]
    for length in range(len(log)):
        whole = max((end for end in ends if end <= length), default=0)
        if not whole or log[whole:length].strip(b"\0"):
            with pytest.raises(MalformedEvidence):
                replay(log[:length])
        else:
            assert len(replay(log[:length]).events) == ends.index(whole)


@pytest.mark.parametrize(
    "log",
    [
        b"",
        bytes(100),
        bytes(eventlog.MAX_LOG_BYTES + 1),
        log_of(ENTRIES, (SHA256,)),
        log_of(ENTRIES, (SHA384,) * 9),
        log_of([(5, 8, b"")]),
        log_of([(0, 8, b"")]),
        log_of([(1, 8, b"")] * 2) + bytes(20) + b"x",
        log_of([(1, 8, b"")] * (eventlog.MAX_EVENTS + 1), (SHA384,))[: eventlog.MAX_LOG_BYTES + 1],
        log_of([]) + struct.pack("<III", 1, 8, 0) + bytes(4),
        log_of([]) + struct.pack("<III", 1, 8, 0xFFFF),
        log_of([]) + struct.pack("<IIIH", 1, 8, 1, 0x0004) + bytes(100),
        log_of([]) + struct.pack("<IIIH48sI", 1, 8, 1, 0x000C, b"", 0xFFFFFFFF),
    ],
)
def test_what_is_no_log(log: bytes) -> None:
    with pytest.raises(MalformedEvidence):
        replay(log)


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_give_a_log_or_the_one_error(data: bytes, headed: bool) -> None:
    try:
        replay(log_of([]) + data if headed else data)
    except MalformedEvidence:
        return


def test_the_log_of_a_machine_at_google_leads_to_its_quote(test_data: Path) -> None:
    folder = test_data / "evidence/gcp"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    log, quote = replay((folder / "ccel.bin").read_bytes()), parse((folder / "tdx_quote_v4.bin").read_bytes())
    assert {name: quote.measurements[name] for name in eventlog.REGISTERS} == log.registers
    assert len(log.events) == 43
    assert any(event.words.startswith("grub_cmd: linux") for event in log.events)
    damaged = bytearray((folder / "ccel.bin").read_bytes())
    damaged[200] ^= 1  # in the first digest
    assert replay(bytes(damaged)).registers["rtmr0"] != quote.measurements["rtmr0"]

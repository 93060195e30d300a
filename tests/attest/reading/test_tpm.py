import hashlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from confide.attest.evidence import Family, qualifying_data
from confide.attest.reading import tpm
from confide.attest.reading.tpm import Tpm, parse_registers
from confide.errors import EvidenceUnavailable, NoTrustedEnvironment

REPORT_DATA = bytes(range(64))
ZEROS, ONES = "00" * 32, "FF" * 32


class FakeTools:
    """Plays tpm2-tools: leaves the files that its options name."""

    def __init__(self, registers: Sequence[str] = (ZEROS,)) -> None:
        self.commands: list[list[str]] = []
        self.registers = list(registers)

    def __call__(self, command: Sequence[str]) -> bytes:
        self.commands.append(list(command))
        match command[0]:
            case "tpm2_readpublic":
                Path(command[command.index("-o") + 1]).write_bytes(b"key")
            case "tpm2_quote":
                Path(command[command.index("-m") + 1]).write_bytes(b"attest")
                Path(command[command.index("-s") + 1]).write_bytes(b"signature")
            case "tpm2_pcrread":
                value = self.registers.pop(0) if len(self.registers) > 1 else self.registers[0]
                return f"  sha256:\n    0 : 0x{value}\n    7 : 0x{ONES}\n".encode()
        return b""


def test_quotes_and_collects_the_parts() -> None:
    tools = FakeTools()
    evidence = Tpm(registers=(0, 7), runner=tools).read(REPORT_DATA)
    assert (evidence.family, evidence.raw) == (Family.TPM, b"attest")
    registers = bytes(32) + b"\xff" * 32
    assert evidence.parts == {"signature": b"signature", "ak": b"key", "pcrs": registers, "selection": b"0,7"}
    quote = next(command for command in tools.commands if command[0] == "tpm2_quote")
    assert quote[quote.index("-q") + 1] == hashlib.sha256(REPORT_DATA).hexdigest()
    assert all(command[1:3] == ["-T", "device:/dev/tpmrm0"] for command in tools.commands)


def test_uses_a_key_that_is_there_already() -> None:
    tools = FakeTools()
    Tpm(registers=(0, 7), key="0x81010002", runner=tools).read(REPORT_DATA)
    programs = [command[0] for command in tools.commands]
    assert programs == ["tpm2_readpublic", "tpm2_pcrread", "tpm2_quote", "tpm2_pcrread"]
    assert tools.commands[2][3:5] == ["-c", "0x81010002"]


def test_quotes_again_when_a_register_was_extended_in_between() -> None:
    tools = FakeTools([ZEROS, ONES, ONES])
    assert Tpm(registers=(0, 7), runner=tools).read(REPORT_DATA).parts["pcrs"] == b"\xff" * 64
    assert sum(command[0] == "tpm2_quote" for command in tools.commands) == 2


def test_gives_up_on_registers_that_keep_changing() -> None:
    tools = FakeTools([f"{value:064x}" for value in range(20)])
    with pytest.raises(EvidenceUnavailable, match="keep changing"):
        Tpm(registers=(0, 7), runner=tools).read(REPORT_DATA)


def test_a_missing_register_is_named() -> None:
    with pytest.raises(EvidenceUnavailable, match=r"missing: \[1\]"):
        parse_registers(f"  sha256:\n    0 : 0x{ZEROS}\n".encode(), (0, 1))


@pytest.mark.parametrize("registers", [(), (1, 0), (0, 0), (24,)])
def test_refuses_registers_that_make_no_sense(registers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="rising order"):
        Tpm(registers=registers)


def test_the_runner_reports_what_went_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoTrustedEnvironment, match="install tpm2-tools"):
        tpm.run(["confide-has-no-such-command"])
    with pytest.raises(EvidenceUnavailable, match="no such file"):
        tpm.run(["sh", "-c", "echo no such file >&2; exit 1"])
    monkeypatch.setattr(tpm, "SECONDS", 0.05)
    with pytest.raises(EvidenceUnavailable, match="in use"):
        tpm.run(["sleep", "5"])


@pytest.fixture
def swtpm(tmp_path: Path) -> Iterator[str]:
    if not (shutil.which("swtpm") and shutil.which("tpm2_quote")):
        pytest.skip("needs swtpm and tpm2-tools")
    process, port = start_swtpm(tmp_path)
    yield f"swtpm:port={port}"
    process.terminate()
    process.wait(60)


def start_swtpm(folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    """It wants two ports in a row; where somebody else takes one in between it ends, and another pair is tried."""
    for _ in range(10):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        server, control = f"--server=type=tcp,port={port}", f"--ctrl=type=tcp,port={port + 1}"
        command = ["swtpm", "socket", "--tpm2", "--flags=startup-clear", f"--tpmstate=dir={folder}", server, control]
        process = subprocess.Popen(command)
        deadline = time.monotonic() + 10
        while process.poll() is None and time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port + 1)) == 0:
                    time.sleep(0.1)  # the other port comes first; if it was taken, the process is gone by now
                    break
            time.sleep(0.05)
        if process.poll() is None:
            return process, port
    pytest.fail("swtpm did not start")


def test_a_software_tpm_really_quotes(swtpm: str) -> None:
    evidence = Tpm(tcti=swtpm, registers=(0, 7)).read(REPORT_DATA)
    assert evidence.raw.startswith(b"\xffTCG\x80\x18")
    assert qualifying_data(REPORT_DATA) in evidence.raw
    assert hashlib.sha256(evidence.parts["pcrs"]).digest() in evidence.raw
    load_pem_public_key(evidence.parts["ak"])
    again = Tpm(tcti=swtpm, registers=(0, 7)).read(REPORT_DATA)
    assert again.parts["ak"] == evidence.parts["ak"]

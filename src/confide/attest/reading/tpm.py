"""Quotes of a TPM 2.0, through the commands of tpm2-tools 5.

Formats: TPM 2.0 Library, part 2: TPMS_ATTEST (the message) and TPMT_SIGNATURE; the manual pages of tpm2_createprimary,
tpm2_readpublic, tpm2_quote and tpm2_pcrread.

The attestation key is a restricted signing key, primary in the endorsement hierarchy. A TPM derives such a key from its
seed and the template, so it is the same at every call and after every start, without anything being kept: enrolled
once, it stays enrolled. (tpm2_createak makes another one each time.) A key that somebody else provided, and certified,
is used by its handle. Whether a key lives in a real TPM is for the verifier to find out.

The evidence: raw is TPMS_ATTEST. Its parts: `signature` (TPMT_SIGNATURE), `ak` (PEM public key), and `pcrs`, the values
that the quote digests: concatenated SHA-256 registers in rising order of `selection`, which is a list such as b"0,1,7".
"""

import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from confide.attest.evidence import Evidence, Family, qualifying_data
from confide.attest.reading.reader import full_report_data, read_file
from confide.errors import EvidenceUnavailable, NoTrustedEnvironment

DEVICE: Final = Path("/dev/tpmrm0")
BOOT_REGISTERS: Final = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
KEY: Final = "ecc256:ecdsa-sha256:null"
ATTRIBUTES: Final = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign"
SECONDS: Final = 60
ATTEMPTS: Final = 3
_REGISTER: Final = re.compile(r"^\s*(\d{1,2})\s*:\s*0x([0-9A-Fa-f]{64})\s*$", re.MULTILINE)

Runner = Callable[[Sequence[str]], bytes]
"""Runs one command without a shell and gives its standard output; EvidenceUnavailable where it fails."""


def run(command: Sequence[str]) -> bytes:
    """Run one of tpm2-tools' commands."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=True)  # noqa: S603
    except FileNotFoundError as error:
        raise NoTrustedEnvironment(
            f"{command[0]} is missing: install tpm2-tools, or use `confide tee simulate init` to try things out."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise EvidenceUnavailable(f"{command[0]} took more than {SECONDS} s; see whether the TPM is in use.") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode("utf-8", "replace").strip().splitlines()
        raise EvidenceUnavailable(f"{command[0]} failed: {said[0][:200] if said else 'no reason given'}.") from error
    return done.stdout


@dataclass(frozen=True)
class Tpm:
    """Quotes with a TPM. tcti: where it is, in tpm2-tools' words, such as device:/dev/tpmrm0 or swtpm:port=2321.

    key: the handle of an attestation key that is there already, such as 0x81010002.
    """

    tcti: str = f"device:{DEVICE}"
    registers: tuple[int, ...] = BOOT_REGISTERS
    key: str | None = None
    runner: Runner = run
    name: str = "tpm"

    def __post_init__(self) -> None:
        if not self.registers or tuple(sorted(set(self.registers))) != self.registers or self.registers[-1] > 23:
            raise ValueError("Name the TPM registers once each, in rising order, between 0 and 23.")

    def read(self, report_data: bytes) -> Evidence:
        """A quote whose qualifying data is the SHA-256 of these 64 bytes (see `qualifying_data`)."""
        nonce = qualifying_data(full_report_data(report_data))
        with tempfile.TemporaryDirectory(prefix="confide-tpm-") as folder:
            return self._quote(Path(folder), self._load_key(Path(folder)), nonce)

    def _load_key(self, folder: Path) -> str:
        """What tpm2-tools call the key by; its public half goes to a file."""
        key = self.key or str(folder / "ak.ctx")
        if self.key is None:
            self._run("tpm2_createprimary", "-C", "e", "-g", "sha256", "-G", KEY, "-a", ATTRIBUTES, "-c", key)
            self._run("tpm2_flushcontext", "-t")  # a TPM without a resource manager has room for three objects
        self._run("tpm2_readpublic", "-c", key, "-f", "pem", "-o", str(folder / "ak.pem"))
        return key

    def _quote(self, folder: Path, key: str, nonce: bytes) -> Evidence:
        """A register can be extended between reading it and quoting it: then both are done again."""
        for _attempt in range(ATTEMPTS):
            before = self._read_registers()
            what = ("-c", key, "-l", self._selection, "-q", nonce.hex(), "-g", "sha256")
            self._run("tpm2_quote", *what, "-m", str(folder / "quote"), "-s", str(folder / "signature"))
            if self._read_registers() == before:
                return self._evidence(folder, before)
        raise EvidenceUnavailable("The TPM's registers keep changing; try again when the machine has started up.")

    def _evidence(self, folder: Path, registers: bytes) -> Evidence:
        try:
            quote, signature, key = (read_file(folder / name, 1 << 16) for name in ("quote", "signature", "ak.pem"))
        except OSError as error:
            raise EvidenceUnavailable("tpm2-tools left no quote behind; use version 5 of them.") from error
        selection = ",".join(map(str, self.registers)).encode()
        return Evidence(
            Family.TPM, quote, {"signature": signature, "ak": key, "pcrs": registers, "selection": selection}
        )

    @property
    def _selection(self) -> str:
        return "sha256:" + ",".join(map(str, self.registers))

    def _read_registers(self) -> bytes:
        return parse_registers(self._run("tpm2_pcrread", self._selection), self.registers)

    def _run(self, program: str, *arguments: str) -> bytes:
        return self.runner([program, "-T", self.tcti, *arguments])


def parse_registers(output: bytes, registers: Sequence[int]) -> bytes:
    """The concatenated SHA-256 values of what tpm2_pcrread printed; EvidenceUnavailable where one is missing."""
    found = {int(index): bytes.fromhex(value) for index, value in _REGISTER.findall(output.decode("ascii", "replace"))}
    missing = [register for register in registers if register not in found]
    if missing or len(found) != len(registers):
        raise EvidenceUnavailable(
            f"tpm2_pcrread did not show the registers asked for (missing: {missing}); switch on the TPM's SHA-256 bank."
        )
    return b"".join(found[register] for register in registers)

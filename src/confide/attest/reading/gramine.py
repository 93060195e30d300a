"""SGX quotes inside Gramine, through /dev/attestation.

Format: Gramine's documentation, "Attestation and Secret Provisioning": attestation_type says none, dcap or, in old
versions, epid; 64 bytes are written to user_report_data, then quote is read. The files belong to the process, so a lock
keeps its threads apart.
"""

from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Final

from confide.attest.evidence import Evidence, Family
from confide.attest.reading.reader import full_report_data, read_file, write_file
from confide.errors import EvidenceUnavailable, NoTrustedEnvironment

DEVICE_FOLDER: Final = Path("/dev/attestation")
_one_at_a_time = Lock()


@dataclass(frozen=True)
class Gramine:
    """Reads the pseudo-files that Gramine gives an enclave."""

    folder: Path = DEVICE_FOLDER
    name: str = field(default="gramine")

    def read(self, report_data: bytes) -> Evidence:
        """A DCAP quote over these 64 bytes."""
        full_report_data(report_data)
        self.check()
        try:
            with _one_at_a_time:
                write_file(self.folder / "user_report_data", report_data)
                quote = read_file(self.folder / "quote")
        except OSError as error:
            raise EvidenceUnavailable(
                f"Gramine gave no quote ({error.strerror}); check that the quoting service (aesmd) runs on the host."
            ) from error
        if not quote:
            raise EvidenceUnavailable("Gramine gave an empty quote; check that aesmd runs on the host.")
        return Evidence(Family.SGX, quote)

    def check(self) -> None:
        """Nothing where DCAP quotes can be had; otherwise a typed error that says what to change."""
        try:
            kind = read_file(self.folder / "attestation_type", limit=64).decode("ascii", "replace").strip()
        except OSError as error:
            raise NoTrustedEnvironment(
                f"There is no {self.folder / 'attestation_type'}: run under gramine-sgx, or use "
                "`confide tee simulate init` to try things out."
            ) from error
        if kind != "dcap":
            raise NoTrustedEnvironment(
                f'Gramine attests by {kind!r}; set sgx.remote_attestation = "dcap" in the manifest and run gramine-sgx.'
            )

"""What every reader of evidence does, and what several of them need."""

import os
from pathlib import Path
from typing import Final, Protocol

from confide.attest.evidence import MAX_EVIDENCE_BYTES, Evidence
from confide.disk.files import FileTooLarge, read_bounded
from confide.errors import EvidenceUnavailable

REPORT_DATA_BYTES: Final = 64
"""SGX, TDX and SNP all sign 64 bytes of the caller's choice."""


class EvidenceReader(Protocol):
    """Something that makes evidence about the machine or enclave that it runs in."""

    @property
    def name(self) -> str:
        """What a human calls this source."""

    def read(self, report_data: bytes) -> Evidence:
        """Fresh evidence that carries 64 bytes of the caller's choice; EvidenceUnavailable where it fails."""


def full_report_data(report_data: bytes) -> bytes:
    """The same bytes, or ValueError: a length that is not 64 is a mistake of the caller's, and is never padded."""
    if len(report_data) != REPORT_DATA_BYTES:
        raise ValueError(f"Give {REPORT_DATA_BYTES} bytes of report data, such as a SHA-512, not {len(report_data)}.")
    return report_data


def read_file(path: Path, limit: int = MAX_EVIDENCE_BYTES) -> bytes:
    """A whole small file that a kernel makes up; EvidenceUnavailable where it is longer than it can honestly be."""
    try:
        return read_bounded(path, limit)
    except FileTooLarge as error:
        raise EvidenceUnavailable(
            f"{path} gave more than {limit} bytes, which no evidence needs; update its driver."
        ) from error


def write_file(path: Path, content: bytes) -> None:
    """Write a file that a kernel reads, in one piece; it has to exist already."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, content)
    finally:
        os.close(descriptor)

"""TDX quotes and SNP reports from Linux 6.7 and later, through /sys/kernel/config/tsm/report.

Format: Documentation/ABI/testing/configfs-tsm-report in the kernel's sources. Making a folder there makes an entry with
the files inblob (write: up to 64 bytes), outblob (read: the evidence), provider, generation, and auxblob where the
provider has one. The kernel takes inblob when that file is closed and reports no failure then; generation, which rises
by one with every write, is what tells that exactly this caller's write took effect and nobody else's.
"""

import errno
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from confide.attest.evidence import Evidence, Family
from confide.attest.reading.reader import full_report_data, read_file, write_file
from confide.errors import EvidenceUnavailable, NoTrustedEnvironment

REPORT_FOLDER: Final = Path("/sys/kernel/config/tsm/report")
FAMILIES: Final[Mapping[str, Family]] = {"tdx_guest": Family.TDX, "sev_guest": Family.SNP}
ATTEMPTS: Final = 4
PAUSE_SECONDS: Final = 0.05
_PASSING: Final = frozenset({errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ETIMEDOUT})


class _Disturbed(Exception):
    """Something else wrote to the entry, or the provider asks for patience."""


@dataclass(frozen=True)
class ConfigfsTsm:
    """Reads through configfs-tsm. event_log: a CCEL table to send along as the part `event_log`, where wanted."""

    folder: Path = REPORT_FOLDER
    event_log: Path | None = None
    make: Callable[[Path], None] = os.mkdir
    remove: Callable[[Path], None] = os.rmdir
    sleep: Callable[[float], None] = time.sleep
    name: str = "configfs-tsm"

    def read(self, report_data: bytes) -> Evidence:
        """Make an entry, ask through it, and remove it; asked again where something came in between."""
        full_report_data(report_data)
        for attempt in range(ATTEMPTS):
            if attempt:
                self.sleep(PAUSE_SECONDS * 2**attempt)
            try:
                with self._entry() as entry:
                    return self._ask(entry, report_data)
            except _Disturbed:
                continue
        raise EvidenceUnavailable(
            f"The kernel's evidence changed under way {ATTEMPTS} times in {self.folder}; find what else writes there."
        )

    def provider(self) -> Family:
        """Whose evidence comes from here; NoTrustedEnvironment where it is nobody's that Confide knows."""
        try:
            with self._entry() as entry:
                return _family(entry)
        except OSError as error:
            raise _unavailable(self.folder, error) from error

    @contextmanager
    def _entry(self) -> Iterator[Path]:
        entry = self.folder / f"confide-{os.getpid()}-{secrets.token_hex(8)}"
        try:
            self.make(entry)
        except OSError as error:
            raise _unavailable(self.folder, error) from error
        try:
            yield entry
        finally:
            with suppress(OSError):  # nothing depends on it, and the evidence matters more
                self.remove(entry)

    def _ask(self, entry: Path, report_data: bytes) -> Evidence:
        try:
            family = _family(entry)
            before = _generation(entry)
            write_file(entry / "inblob", report_data)
            raw = read_file(entry / "outblob")
            parts = self._parts(entry)
            undisturbed = _generation(entry) == before + 1
        except OSError as error:
            if error.errno in _PASSING:
                raise _Disturbed from error
            raise _unavailable(self.folder, error) from error
        if not undisturbed:
            raise _Disturbed
        if not raw:
            raise EvidenceUnavailable(f"The kernel gave an empty report in {entry}; read its log for the reason.")
        return Evidence(family, raw, parts)

    def _parts(self, entry: Path) -> dict[str, bytes]:
        sources = {"auxblob": entry / "auxblob"} | ({"event_log": self.event_log} if self.event_log else {})
        found = {name: _optional(path) for name, path in sources.items()}
        return {name: content for name, content in found.items() if content}


def _family(entry: Path) -> Family:
    provider = read_file(entry / "provider", limit=256).decode("ascii", "replace").strip()
    if provider not in FAMILIES:
        raise NoTrustedEnvironment(
            f"The kernel's evidence comes from {provider!r}; Confide reads {' and '.join(FAMILIES)}. Use one of those, "
            "or `confide tee simulate init` to try things out."
        )
    return FAMILIES[provider]


def _generation(entry: Path) -> int:
    text = read_file(entry / "generation", limit=64).decode("ascii", "replace").strip()
    if not text.isdecimal():
        raise EvidenceUnavailable(f"{entry / 'generation'} holds {text!r}, which is no number; update the kernel.")
    return int(text)


def _optional(path: Path) -> bytes:
    """Empty where it is missing; the kernel also answers ENXIO and the like for what a provider does not have."""
    try:
        return read_file(path)
    except OSError as error:
        if error.errno in _PASSING:
            raise
        return b""


def _unavailable(folder: Path, error: OSError) -> EvidenceUnavailable | NoTrustedEnvironment:
    if isinstance(error, FileNotFoundError):
        return NoTrustedEnvironment(
            f"There is no evidence to read in {folder}: run inside a TDX or SEV-SNP machine with Linux 6.7 or later "
            "and configfs mounted, or use `confide tee simulate init` to try things out."
        )
    if isinstance(error, PermissionError):
        return EvidenceUnavailable(f"This account must not write to {folder}; run as root, or allow it there.")
    return EvidenceUnavailable(f"The kernel refused a report ({error.strerror}); read its log and try again.")

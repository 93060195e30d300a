"""What evidence can be had on this machine, and why the rest cannot."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from confide.attest.reading.azure import ASSET_TAG, AzureCvm
from confide.attest.reading.configfs_tsm import REPORT_FOLDER, ConfigfsTsm
from confide.attest.reading.gramine import DEVICE_FOLDER, Gramine
from confide.attest.reading.nitro import DEVICE as NSM
from confide.attest.reading.nitro import Nsm
from confide.attest.reading.reader import EvidenceReader
from confide.attest.reading.tpm import DEVICE, Tpm
from confide.errors import AttestationError, NoTrustedEnvironment


@dataclass(frozen=True)
class Detected:
    """The readers that are here, strongest first, and by name why others are not."""

    readers: tuple[EvidenceReader, ...]
    absent: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def best(self) -> EvidenceReader:
        """The first reader; NoTrustedEnvironment with every reason where there is none."""
        if not self.readers:
            reasons = " ".join(f"{name}: {reason}" for name, reason in self.absent.items())
            raise NoTrustedEnvironment(
                "This machine has no trusted execution environment that Confide can read. Move there, or make a "
                f"simulated one with `confide tee simulate init`. Looked at {reasons}"
            )
        return self.readers[0]


def detect(
    tsm: Path = REPORT_FOLDER,
    gramine: Path = DEVICE_FOLDER,
    tpm: Path = DEVICE,
    asset_tag: Path = ASSET_TAG,
    nsm: Path = NSM,
) -> Detected:
    """Look at each place in turn: an enclave, a confidential virtual machine, a TPM. Asks for no evidence."""
    candidates: tuple[Callable[[], EvidenceReader], ...] = (
        lambda: _gramine(gramine),
        lambda: _nitro(nsm),
        lambda: _tsm(tsm),
        lambda: _azure(asset_tag),
        lambda: _tpm(tpm),
    )
    names = ("gramine", "nitro", "configfs-tsm", "azure-cvm", "tpm")
    readers: list[EvidenceReader] = []
    absent: dict[str, str] = {}
    for name, candidate in zip(names, candidates, strict=True):
        try:
            readers.append(candidate())
        except AttestationError as error:
            absent[name] = str(error)
    return Detected(tuple(readers), MappingProxyType(absent))


def _gramine(folder: Path) -> Gramine:
    reader = Gramine(folder)
    reader.check()
    return reader


def _nitro(device: Path) -> Nsm:
    reader = Nsm(device)
    reader.check()
    return reader


def _tsm(folder: Path) -> ConfigfsTsm:
    reader = ConfigfsTsm(folder)
    reader.provider()
    return reader


def _azure(asset_tag: Path) -> AzureCvm:
    reader = AzureCvm(asset_tag=asset_tag)
    reader.check()
    return reader


def _tpm(device: Path) -> Tpm:
    if not device.exists():
        raise NoTrustedEnvironment(f"There is no {device}: switch the TPM on, or give the machine a virtual one.")
    return Tpm(f"device:{device}")

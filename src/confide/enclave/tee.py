"""The trusted execution environment that this process runs in, by what a person calls it."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from confide.attest.collateral import Collateral
from confide.attest.evidence import Family
from confide.attest.reading.azure import AzureCvm
from confide.attest.reading.configfs_tsm import ConfigfsTsm
from confide.attest.reading.detect import Detected, detect
from confide.attest.reading.gpus import Gpus, WithGpus, find_gpus
from confide.attest.reading.gramine import Gramine
from confide.attest.reading.nitro import Nsm
from confide.attest.reading.reader import EvidenceReader
from confide.attest.simulated import SimulatedTee
from confide.errors import NoTrustedEnvironment


class TeeKind(StrEnum):
    """auto: whatever real one is there. simulated: none at all, for development."""

    AUTO = "auto"
    SIMULATED = "simulated"
    TDX = "tdx"
    SGX = "sgx"
    SNP = "snp"
    AZURE = "azure"
    NITRO = "nitro"


_FAMILIES = {
    TeeKind.TDX: Family.TDX,
    TeeKind.SGX: Family.SGX,
    TeeKind.SNP: Family.SNP,
    TeeKind.AZURE: Family.AZURE,
    TeeKind.NITRO: Family.NITRO,
}
_WITHOUT_DEVICES = (Family.SGX, Family.NITRO)


@dataclass(frozen=True)
class Tee:
    """Where evidence comes from. collateral: what can be sent along with it. name: for people, such as sev-snp.

    gpus: why the machine's GPUs are not in the evidence; empty where they are, or where there is none.
    """

    name: str
    reader: EvidenceReader
    collateral: Callable[[], Collateral] = Collateral
    gpus: str = ""

    @property
    def simulated(self) -> bool:
        """Whether it protects nothing."""
        return isinstance(self.reader, SimulatedTee)

    @property
    def root(self) -> bytes | None:
        """The simulated root that its evidence ends in, in DER; None where that is a vendor's."""
        return self.reader.roots().certificates[Family.TDX] if isinstance(self.reader, SimulatedTee) else None


def open_tee(
    kind: TeeKind,
    simulated: Path | None = None,
    found: Callable[[], Detected] = detect,
    gpus: Callable[[], Gpus] = find_gpus,
) -> Tee:
    """The environment asked for; NoTrustedEnvironment, with what to do, where it is not here.

    simulated: the folder that `confide tee simulate init` made, needed for that kind and refused for all others: what
    protects nothing is never what happens to be there.
    """
    if (kind is TeeKind.SIMULATED) != (simulated is not None):
        raise NoTrustedEnvironment(
            "A simulated TEE is only used where it is asked for: give --tee simulated and --simulated-tee DIR "
            "together, DIR being what `confide tee simulate init` made; or neither, inside a real one."
        )
    if simulated is not None:
        tee = SimulatedTee.open(simulated)
        return Tee("simulated", tee, tee.collateral)
    detected = found()
    for reader in detected.readers:
        family = _family(reader)
        if family and kind in (TeeKind.AUTO, next((one for one, of in _FAMILIES.items() if of is family), None)):
            return _with_gpus(family, reader, gpus)
    reasons = " ".join(f"{name}: {reason}" for name, reason in detected.absent.items())
    wanted = "trusted execution environment" if kind is TeeKind.AUTO else f"{kind.upper()} environment"
    raise NoTrustedEnvironment(
        f"There is no {wanted} here, and nothing is served without one. To try it out without the hardware, make a "
        "simulated one with `confide tee simulate init DIR` and give --tee simulated --simulated-tee DIR, which "
        f"protects nothing. Looked at {reasons}"
    )


def _with_gpus(family: Family, reader: EvidenceReader, gpus: Callable[[], Gpus]) -> Tee:
    """A virtual machine's evidence takes its GPUs along. An enclave has no devices."""
    if family in _WITHOUT_DEVICES:
        return Tee(family.value, reader)
    found = gpus()
    if found.nvml is None:
        return Tee(family.value, reader, gpus=found.absent)
    return Tee(f"{family.value} with {Family.NVIDIA.value}", WithGpus(reader, found.nvml))


def _family(reader: EvidenceReader) -> Family | None:
    """Whose evidence a reader gives; None for a TPM, which protects no memory."""
    if isinstance(reader, Gramine):
        return Family.SGX
    if isinstance(reader, Nsm):
        return Family.NITRO
    if isinstance(reader, AzureCvm):
        return Family.AZURE
    return reader.provider() if isinstance(reader, ConfigfsTsm) else None

"""The machine's evidence together with that of its NVIDIA GPUs, bound to one another: see `families.composite`.

GPUs are asked through NVML, NVIDIA's management library, by the functions of its Python binding (`nvidia-ml-py`, the
extra `gpu`): nvmlDeviceGetConfComputeGpuAttestationReport and ...GpuCertificate. The machine reports first, and the
SHA-256 of that report is the nonce for every GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Protocol, cast

from confide.attest.evidence import Evidence, Family
from confide.attest.families.composite import MAX_GPUS, gpu_nonce
from confide.attest.reading.reader import EvidenceReader
from confide.errors import EvidenceUnavailable

DRIVER: Final = Path("/proc/driver/nvidia/version")
"""There while NVIDIA's driver is loaded."""


class Nvml(Protocol):
    """What is used of `pynvml`. It raises `NVMLError`; structures have ctypes arrays, with their sizes beside them."""

    NVMLError: type[Exception]

    def nvmlInit(self) -> None:
        """Before anything else."""

    def nvmlSystemGetConfComputeState(self) -> Any:
        """ccFeature: 0 where confidential computing is off."""

    def nvmlDeviceGetCount(self) -> int:
        """How many GPUs there are."""

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        """One of them."""

    def nvmlDeviceGetConfComputeGpuAttestationReport(self, device: Any, c_nonce: bytes) -> Any:
        """attestationReport, attestationReportSize, for a nonce of 32 bytes."""

    def nvmlDeviceGetConfComputeGpuCertificate(self, device: Any) -> Any:
        """attestationCertChain (PEM, the leaf first), attestationCertChainSize."""


@dataclass(frozen=True)
class WithGpus:
    """Reads the machine's evidence and then that of every GPU. machine: the reader of the former."""

    machine: EvidenceReader
    nvml: Nvml

    @property
    def name(self) -> str:
        """Both sources."""
        return f"{self.machine.name} and NVML"

    def read(self, report_data: bytes) -> Evidence:
        """A composite whose first member carries the report data; EvidenceUnavailable where a part cannot be had."""
        machine = self.machine.read(report_data)
        nonce = gpu_nonce(machine)
        try:
            devices = _devices(self.nvml)
            gpus = tuple(_gpu(self.nvml, device, nonce) for device in devices)
        except self.nvml.NVMLError as error:
            raise EvidenceUnavailable(
                f"A GPU gave no attestation report ({error}); see that its confidential computing mode is on, and "
                "read the driver's log."
            ) from error
        return Evidence(Family.COMPOSITE, b"", members=(machine, *gpus))


@dataclass(frozen=True)
class Gpus:
    """What there is. nvml: to ask them with, None where they cannot attest. absent: why not; empty without any GPU."""

    nvml: Nvml | None
    absent: str = ""


def find_gpus(nvml: Nvml | None = None, driver: Path = DRIVER) -> Gpus:
    """Look for GPUs that can attest, through `pynvml` unless told otherwise."""
    if nvml is None:
        if not driver.exists():
            return Gpus(None)
        try:
            nvml = cast(Nvml, import_module("pynvml"))
        except ImportError:
            return Gpus(None, "NVIDIA's driver is here and its Python binding is not; install confide[gpu].")
    try:
        nvml.nvmlInit()
        if not _devices(nvml):
            return Gpus(None)
        if not nvml.nvmlSystemGetConfComputeState().ccFeature:
            return Gpus(None, "The GPU's confidential computing mode is off; what it computes is open to its host.")
    except nvml.NVMLError as error:
        return Gpus(None, f"NVIDIA's driver cannot be asked ({error}); read its log.")
    return Gpus(nvml)


def _devices(nvml: Nvml) -> Sequence[Any]:
    count = nvml.nvmlDeviceGetCount()
    if count > MAX_GPUS:
        raise EvidenceUnavailable(f"There are {count} GPUs, and evidence holds {MAX_GPUS}; give the machine fewer.")
    return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]


def _gpu(nvml: Nvml, device: Any, nonce: bytes) -> Evidence:
    report = nvml.nvmlDeviceGetConfComputeGpuAttestationReport(device, nonce)
    chain = nvml.nvmlDeviceGetConfComputeGpuCertificate(device)
    return Evidence(
        Family.NVIDIA,
        bytes(report.attestationReport)[: report.attestationReportSize],
        {"chain": bytes(chain.attestationCertChain)[: chain.attestationCertChainSize].rstrip(b"\0")},
    )

"""NVML with GPUs of nobody: the structures are those of `pynvml`, the reports are signed under a root of the tests."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

from tests.attest.families.authorities import Party, pem
from tests.attest.families.forged_nvidia import DEVICE, LEAF, ROOT, Messages


class NVMLError(Exception):
    """As in pynvml."""


@dataclass
class FakeNvml:
    """leaves: one for each GPU. asked: the nonces, in order. broken: functions that fail."""

    leaves: Sequence[Party] = (LEAF,)
    confidential: bool = True
    broken: frozenset[str] = frozenset()
    asked: list[bytes] = field(default_factory=list)
    NVMLError: type[Exception] = NVMLError

    def nvmlInit(self) -> None:
        self._fail("nvmlInit")

    def nvmlSystemGetConfComputeState(self) -> SimpleNamespace:
        return SimpleNamespace(environment=2, ccFeature=int(self.confidential), devToolsMode=0)

    def nvmlDeviceGetCount(self) -> int:
        return len(self.leaves)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Party:
        return self.leaves[index]

    def nvmlDeviceGetConfComputeGpuAttestationReport(self, device: Party, c_nonce: bytes) -> object:
        """Of the real size, with zeros behind the report."""
        import pynvml

        self._fail("report")
        self.asked.append(bytes(c_nonce))
        raw = Messages(nonce=bytes(c_nonce)).signed(device.key)  # type: ignore[arg-type]
        structure = pynvml.c_nvmlConfComputeGpuAttestationReport_t()
        structure.attestationReportSize = len(raw)
        structure.attestationReport[: len(raw)] = raw
        return structure

    def nvmlDeviceGetConfComputeGpuCertificate(self, device: Party) -> object:
        import pynvml

        self._fail("certificate")
        chain = pem(device, DEVICE, ROOT)
        structure = pynvml.c_nvmlConfComputeGpuCertificate_t()
        structure.attestationCertChainSize = len(chain)
        structure.attestationCertChain[: len(chain)] = chain
        return structure

    def _fail(self, name: str) -> None:
        if name in self.broken:
            raise NVMLError(f"{name} failed")

"""What an SEV-SNP machine measures that QEMU boots directly, with the kernel's hashes in the firmware.

Computed by `sev-snp-measure`, of AMD's and IBM's virtee project; here are its inputs' bounds. Sources: AMD 56860, SEV
Secure Nested Paging Firmware ABI Specification, 8.17.2 (the launch digest); EDK2, `OvmfPkg/AmdSev`; QEMU, `sev.c`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from confide.attest.requirements import Snp
from confide.attest.requirements.hardware import SnpTcb
from confide.deploy.predict.prediction import Prediction
from confide.deploy.predict.tdvf import MAX_FIRMWARE_BYTES, MAX_PAGES, PAGE
from confide.deploy.predict.tdx import MAX_COMMAND_LINE, MAX_INITRD_BYTES, MAX_KERNEL_BYTES
from confide.errors import DeployError, InvalidImage
from confide.extras import named_extras

MAX_PROCESSORS: Final = 512
_ACTIVE: Final = 1
"""SEV_FEATURES of a guest that is SNP's and asks for nothing more."""

_ASSUMPTIONS: Final = (
    "QEMU 9.1 or later with `kernel-hashes=on`, and processors as `-smp` and `-cpu` say here.",
    "OVMF of OvmfPkg/AmdSev, whose metadata has room for the kernel's hashes.",
    "SEV_FEATURES 1: no debug swap, no secure TSC, no restricted injection.",
)


@dataclass(frozen=True)
class SnpBoot:
    """What such a machine is started with. The files are paths, since the library reads them.

    processor: QEMU's name of its model, such as EPYC-Milan. host_data: 32 bytes that the host commits to.
    """

    firmware: Path
    kernel: Path
    command_line: str
    initrd: Path | None = None
    processors: int = 1
    processor: str = "EPYC-Milan"
    host_data: bytes = bytes(32)

    def __post_init__(self) -> None:
        limits = ((self.firmware, MAX_FIRMWARE_BYTES), (self.kernel, MAX_KERNEL_BYTES), (self.initrd, MAX_INITRD_BYTES))
        for path, limit in limits:
            if path is not None and _size(path) > limit:
                raise InvalidImage(f"{path} has more than {limit} bytes; give the file that is booted.")
        if not (self.command_line.isascii() and self.command_line.isprintable()):
            raise InvalidImage("The kernel's command line has to be one line of ASCII; write it without others.")
        if len(self.command_line) > MAX_COMMAND_LINE:
            raise InvalidImage(f"The kernel's command line has more than {MAX_COMMAND_LINE} characters; shorten it.")
        if not 1 <= self.processors <= MAX_PROCESSORS:
            raise DeployError(f"A machine has 1 to {MAX_PROCESSORS} processors and not {self.processors}.")
        if len(self.host_data) != 32:
            raise InvalidImage(f"HOST_DATA has 32 bytes and not {len(self.host_data)}; give 64 hexadecimal digits.")

    def predict(self, min_tcb: SnpTcb | None = None) -> Prediction:
        """The launch digest. InvalidImage for a firmware that is not what it should be, NotInstalled without library.

        min_tcb: the versions that a platform must have. AMD publishes no list, so without it the policy passes nothing.
        """
        measured = {"measurement": self._launch_digest(), "host_data": self.host_data}
        required = Snp(
            measurement=measured["measurement"].hex(), host_data=self.host_data.hex(), vmpl=0, min_tcb=min_tcb
        )
        unpredicted = dict.fromkeys(("platform_info", "guest policy"), "the host's, and no file says it")
        if min_tcb is None:
            unpredicted["min_tcb"] = "AMD publishes no list; take snp and microcode from its bulletins for your product"
        return Prediction(measured, unpredicted, _ASSUMPTIONS, (), required)

    def _launch_digest(self) -> bytes:
        with named_extras():
            from sevsnpmeasure import guest, vcpu_types
            from sevsnpmeasure.ovmf import OVMF
            from sevsnpmeasure.sev_mode import SevMode
        if self.processor not in vcpu_types.CPU_SIGS:
            known = ", ".join(sorted(vcpu_types.CPU_SIGS))
            raise DeployError(f"QEMU has no processor {self.processor!r} with SEV-SNP; take one of {known}.")
        signature = vcpu_types.CPU_SIGS[self.processor]
        paths = (str(self.firmware), str(self.kernel), str(self.initrd or ""))
        try:
            firmware = OVMF(paths[0])
            if firmware.size() % PAGE or sum(item.size for item in firmware.metadata_items()) > MAX_PAGES * PAGE:
                raise InvalidImage(f"{self.firmware} is not whole pages, or asks for more memory than any firmware.")
            made = guest.calc_launch_digest(
                SevMode.SEV_SNP, self.processors, signature, *paths, self.command_line, _ACTIVE
            )
        except (RuntimeError, ValueError, LookupError, AssertionError, TypeError) as error:
            raise InvalidImage(
                f"{self.firmware} is no firmware for a measured boot ({str(error)[:100]}); build OvmfPkg/AmdSev."
            ) from None
        except OSError as error:
            raise DeployError(f"{error.filename} cannot be read ({error.strerror}).") from None
        return bytes(made)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DeployError(f"{path} cannot be read ({error.strerror}).") from None

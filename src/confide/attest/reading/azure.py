"""Evidence of an Azure confidential virtual machine, through its virtual TPM and the commands of tpm2-tools 5.

The paravisor keeps the HCL report in the TPM's NV index 0x01400001, and its attestation key under the handle
0x81000003; see `families.azure` for what they are. Source: Microsoft, "Confidential VM guest attestation design"
(https://learn.microsoft.com/azure/confidential-computing/guest-attestation-confidential-virtual-machines-design).

For TDX the TD quote is made by Azure's metadata service, which is asked over a network that this may not use: whoever
has such a quote passes `td_quote`. Nothing here was run on a machine at Azure.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from confide.attest.evidence import Evidence, Family
from confide.attest.families.azure import TD_QUOTE, HclReport
from confide.attest.reading.reader import full_report_data, read_file
from confide.attest.reading.tpm import DEVICE, Runner, Tpm, run
from confide.errors import EvidenceUnavailable, MalformedEvidence, NoTrustedEnvironment

HCL_INDEX: Final = "0x01400001"
ATTESTATION_KEY: Final = "0x81000003"
ASSET_TAG: Final = Path("/sys/class/dmi/id/chassis_asset_tag")
AZURES_TAG: Final = "7783-7084-3265-9085-8269-3286-77"
"""What every machine of Azure's has for its chassis. The host writes it, so that it only says where to look."""


@dataclass(frozen=True)
class AzureCvm:
    """Quotes of the virtual TPM with the report that binds its key.

    td_quote: makes a TD quote of the first 1024 bytes of the HCL report's hardware report (TDREPORT), for TDX.
    """

    tcti: str = f"device:{DEVICE}"
    runner: Runner = run
    asset_tag: Path = ASSET_TAG
    td_quote: Callable[[bytes], bytes] | None = None
    name: str = field(default="azure-cvm")

    def read(self, report_data: bytes) -> Evidence:
        """The HCL report, and a quote whose qualifying data is the SHA-256 of these 64 bytes."""
        full_report_data(report_data)
        raw = self.hcl_report()
        parts = self._td_quote(HclReport.parse(raw))
        quote = Tpm(self.tcti, key=ATTESTATION_KEY, runner=self.runner).read(report_data)
        parts |= {"quote": quote.raw, "signature": quote.parts["signature"], "pcrs": quote.parts["pcrs"]}
        return Evidence(Family.AZURE, raw, parts)

    def check(self) -> None:
        """Nothing where this is such a machine; NoTrustedEnvironment with the reason where it is none."""
        try:
            tag = read_file(self.asset_tag, limit=256).decode("ascii", "replace").strip()
        except OSError:
            tag = ""
        if tag != AZURES_TAG:
            raise NoTrustedEnvironment("This is no machine at Azure: use one, or the reader for what this is.")
        try:
            HclReport.parse(self.hcl_report())
        except (EvidenceUnavailable, MalformedEvidence) as error:
            raise NoTrustedEnvironment(
                f"This machine at Azure has no HCL report in its TPM, so it is no confidential one ({error}) Make a "
                "confidential virtual machine."
            ) from error

    def hcl_report(self) -> bytes:
        """What the paravisor left in the TPM."""
        return self.runner(["tpm2_nvread", "-T", self.tcti, "-C", "o", HCL_INDEX])

    def _td_quote(self, hcl: HclReport) -> dict[str, bytes]:
        if hcl.processor is Family.SNP:
            return {}
        if self.td_quote is None:
            raise EvidenceUnavailable(
                "A TD quote at Azure comes from its metadata service, which Confide does not ask; use a machine of "
                "SEV-SNP, or give what asks the service."
            )
        return {TD_QUOTE: self.td_quote(hcl.hardware[:1024])}

"""What verified evidence says: the same words for every family, so that one policy language serves all."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType

from confide.attest.check import Check
from confide.attest.evidence import Family


class RootKind(StrEnum):
    """Whether a chain ends with a vendor or with a root that a person made for tests."""

    PRODUCTION = "production"
    SIMULATED = "simulated"


class TcbStatus(StrEnum):
    """How current a platform is, best first, in Intel's words.

    Unknown is what nobody has a list for: AMD certifies versions and publishes no list of levels, and a TPM and a GPU
    have nothing to be compared with.
    """

    UP_TO_DATE = "UpToDate"
    SW_HARDENING_NEEDED = "SWHardeningNeeded"
    TD_RELAUNCH_ADVISED = "TDRelaunchAdvised"
    CONFIGURATION_NEEDED = "ConfigurationNeeded"
    CONFIGURATION_AND_SW_HARDENING_NEEDED = "ConfigurationAndSWHardeningNeeded"
    TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED = "TDRelaunchAdvisedConfigurationNeeded"
    OUT_OF_DATE = "OutOfDate"
    OUT_OF_DATE_CONFIGURATION_NEEDED = "OutOfDateConfigurationNeeded"
    REVOKED = "Revoked"
    UNKNOWN = "Unknown"


@dataclass(frozen=True)
class Claims:
    """Verified facts. Everything here is signed by the hardware, or follows from the vendor's signed collateral.

    report_data: what the attested software put in (64 bytes for SGX, TDX and SNP, the qualifying data of a TPM quote,
    the nonce of a GPU report). measurements: by the family's own names, such as mrtd, rtmr0, mrenclave, measurement,
    pcr7. identity: by name, such as ppid, chip_id, fmspc. tcb_date: of the platform's level in the
    vendor's list. tcb_superseded: of the level that replaced it, where it is out of date. tcb_evaluation: Intel's
    tcbEvaluationDataNumber of the collateral, the least of its lists. issued_at: of the oldest list in use, TCB and
    revocation alike. valid_until: the end of the shortest validity in use. members: for a composite, of each part, the
    virtual machine first. versions: security versions by component, which only grow, for families whose vendor has no
    list of levels. verified_by: empty for evidence that was verified here, and otherwise the identity of the service
    whose word this is. checks: what verification looked at, or could not look at; the policy decides what that means.
    speaks: whether this evidence can speak for a workload, because report_data is that workload's own, inside a
    processor's trusted execution environment: never for a GPU, and for a TPM only where its key is bound to such
    evidence.
    """

    family: Family
    root: RootKind
    report_data: bytes
    debug: bool
    tcb_status: TcbStatus
    measurements: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))
    identity: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))
    advisories: tuple[str, ...] = ()
    tcb_date: datetime | None = None
    tcb_superseded: datetime | None = None
    tcb_evaluation: int | None = None
    issued_at: datetime | None = None
    valid_until: datetime | None = None
    members: tuple["Claims", ...] = ()
    versions: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    verified_by: str = ""
    checks: tuple[Check, ...] = ()
    speaks: bool = False

    def everyone(self) -> tuple["Claims", ...]:
        """These claims and those of all members, theirs included."""
        return (self, *(claims for member in self.members for claims in member.everyone()))

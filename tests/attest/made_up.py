"""Claims that nobody attested, and a verifier that hands them out."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from confide.attest.claims import Claims, RootKind, TcbStatus
from confide.attest.collateral import Collateral
from confide.attest.configuration import Build, Configuration
from confide.attest.evidence import Evidence, Family
from confide.errors import AttestationError

NOW = datetime(2026, 2, 19, 12, tzinfo=UTC)
MRTD = bytes(range(48))
CONFIGURATION = Configuration(Build("0.1.0", "ee" * 32))
"""Of a workload that has loaded nothing."""


def tdx_claims(**changes: Any) -> Claims:
    """A machine that there is nothing to say against."""
    claims = Claims(
        family=Family.TDX,
        root=RootKind.PRODUCTION,
        report_data=bytes(64),
        debug=False,
        tcb_status=TcbStatus.UP_TO_DATE,
        measurements={"mrtd": MRTD, **{f"rtmr{index}": bytes([index]) * 48 for index in range(4)}},
        identity={"ppid": bytes(16)},
        advisories=("INTEL-SA-00001",),
        tcb_date=datetime(2026, 2, 1, tzinfo=UTC),
        valid_until=datetime(2026, 3, 1, tzinfo=UTC),
        speaks=True,
        tcb_evaluation=18,
    )
    return replace(claims, **changes)


@dataclass(frozen=True)
class StubVerifier:
    """Finds what it was told to find."""

    found: Claims | AttestationError

    def verify(self, evidence: Evidence, collateral: Collateral, now: datetime) -> Claims:
        """The claims, or the error."""
        if isinstance(self.found, AttestationError):
            raise self.found
        return self.found

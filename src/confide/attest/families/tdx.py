"""Intel TDX: DCAP quotes of version 4 and 5.

Measurements: mrtd, rtmr0 to rtmr3, mrseam, mrconfigid, mrowner and others.

Collateral: the document `dcap`, the JSON of QuoteCollateralV3. Parts: `event_log`, see `eventlog`.
"""

from datetime import datetime

from confide.attest.claims import Claims
from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence, Family
from confide.attest.families import dcap, eventlog
from confide.attest.roots import Roots


def verify(evidence: Evidence, collateral: Collateral, roots: Roots, now: datetime) -> Claims:
    """What a quote of TDX says at this time; an AttestationError with the reason where it says nothing.

    An event log that came along must lead to the quote's registers.
    """
    claims = dcap.verify(Family.TDX, evidence, collateral, roots, now)
    if eventlog.PART in evidence.parts:
        eventlog.replay(evidence.parts[eventlog.PART]).check(claims)
    return claims

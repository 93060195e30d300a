"""Intel SGX: DCAP quotes of version 3.

Measurements: mrenclave, mrsigner, isvprodid, isvsvn, attributes, miscselect.

Collateral: the document `dcap`, the JSON of QuoteCollateralV3.
"""

from datetime import datetime

from confide.attest.claims import Claims
from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence, Family
from confide.attest.families import dcap
from confide.attest.roots import Roots


def verify(evidence: Evidence, collateral: Collateral, roots: Roots, now: datetime) -> Claims:
    """What a quote of SGX says at this time; an AttestationError with the reason where it says nothing."""
    return dcap.verify(Family.SGX, evidence, collateral, roots, now)

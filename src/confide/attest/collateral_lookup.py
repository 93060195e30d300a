"""The collateral that a piece of evidence asks for, from its vendor or the cache, where it came without.

The evidence is not verified yet: all that is taken from it is which platform to ask for.
"""

from contextlib import suppress
from typing import Final, Literal

import dcap_qvl

from confide.attest.amd import Product
from confide.attest.collateral import Collateral
from confide.attest.collateral_cache import CollateralCache
from confide.attest.collateral_sources import (
    AmdPlatform,
    IntelPlatform,
    amd_collateral,
    certificate_table,
    intel_collateral,
)
from confide.attest.evidence import Evidence, Family
from confide.attest.families.azure import HclReport
from confide.attest.families.snp import Report
from confide.errors import MalformedEvidence, WrongCollateral

_EMPTY_TABLE: Final = bytes(24)
_UNNAMED: Final = (Product.MILAN, Product.GENOA)
"""Where to look for the chip of a report of version 2, which does not say what made it: AMD knows each chip once."""


def find_collateral(cache: CollateralCache, evidence: Evidence) -> Collateral:
    """What verifying this evidence needs; for composites, of each member.

    MalformedEvidence, WrongCollateral where no vendor publishes any, CollateralUnavailable where none can be had now.
    """
    match evidence.family:
        case Family.SGX | Family.TDX:
            return intel_collateral(cache, _intel_platform(evidence)).collateral
        case Family.SNP:
            return _amd(cache, evidence)
        case Family.AZURE:
            return find_collateral(cache, HclReport.parse(evidence.raw).evidence(evidence.parts))
        case Family.COMPOSITE:
            return Collateral(members=tuple(find_collateral(cache, member) for member in evidence.members))
        case Family.TOKEN | Family.NITRO:
            return Collateral()
        case Family.TPM | Family.NVIDIA:
            raise WrongCollateral(f"No vendor publishes collateral for {evidence.family}; send it with the evidence.")


def _intel_platform(evidence: Evidence) -> IntelPlatform:
    try:
        quote = dcap_qvl.Quote.parse(evidence.raw)
        ca: Literal["processor", "platform"] = "processor" if quote.ca() == "processor" else "platform"
        return IntelPlatform(quote.fmspc(), ca, evidence.family)
    except ValueError as error:
        raise MalformedEvidence("This is no DCAP quote with its platform's certificate; make it again.") from error


def _amd(cache: CollateralCache, evidence: Evidence) -> Collateral:
    report = Report.parse(evidence.raw)
    vlek = _provided_vlek(evidence) if report.signer == "vlek" else None
    *others, last = [report.product] if report.product else _UNNAMED
    for product in others:
        with suppress(WrongCollateral):
            return _amd_product(cache, report, product, vlek)
    return _amd_product(cache, report, last, vlek)


def _amd_product(cache: CollateralCache, report: Report, product: Product, vlek: bytes | None) -> Collateral:
    return amd_collateral(cache, AmdPlatform(product, report.chip_id, report.reported_tcb), vlek=vlek).collateral


def _provided_vlek(evidence: Evidence) -> bytes:
    vlek = certificate_table(evidence.parts.get("auxblob", _EMPTY_TABLE)).get("vlek")
    if vlek is None:
        raise WrongCollateral("The host gave no VLEK certificate, and AMD does not publish it; ask the cloud for it.")
    return vlek

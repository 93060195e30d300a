"""Who chooses the collateral that evidence is verified with: whoever verifies, from its vendor or the cache.

The evidence is not verified yet when collateral is looked for: all that is taken from it is which platform to ask for.
A workload may send collateral along. All of it is signed, but a workload can choose between two that are valid at once,
so it counts only where no vendor publishes any, or where the verifier was told to work offline; then it is marked.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final, Literal, Protocol

import dcap_qvl

from confide.attest.amd import Product
from confide.attest.claims import Claims
from confide.attest.collateral import Collateral, Provenance
from confide.attest.collateral_cache import CollateralCache
from confide.attest.collateral_nvidia import nvidia_collateral
from confide.attest.collateral_sources import (
    AmdPlatform,
    IntelPlatform,
    amd_collateral,
    certificate_table,
    intel_collateral,
)
from confide.attest.evidence import Evidence, Family
from confide.attest.families import dcap_signature
from confide.attest.families.azure import HclReport
from confide.attest.families.snp import Report
from confide.attest.release import RELEASE
from confide.attest.roots import ProductionRoots, Roots
from confide.attest.scores import SCORES
from confide.attest.training import TRAINING
from confide.errors import AttestationError, MalformedEvidence, WrongCollateral

_OWN: Final = frozenset({RELEASE, SCORES, TRAINING})
_EMPTY_TABLE: Final = bytes(24)
_UNNAMED: Final = (Product.MILAN, Product.GENOA)
"""Where to look for the chip of a report of version 2, which does not say what made it: AMD knows each chip once."""


class CollateralSource(Protocol):
    """Where a verifier takes collateral from."""

    def find(self, evidence: Evidence, sent: Collateral) -> Collateral:
        """What to verify this evidence with. sent: by the workload. An AttestationError where there is none."""
        ...

    def learn(self, claims: Claims, provenance: Provenance) -> None:
        """Remember what was verified with collateral of this source."""
        ...


class SentCollateral:
    """For those who ask no vendor and keep no cache: what workloads send along, marked as theirs."""

    def find(self, evidence: Evidence, sent: Collateral) -> Collateral:
        """What was sent."""
        return replace(sent, provenance=Provenance(sent=True))

    def learn(self, claims: Claims, provenance: Provenance) -> None:
        """Nothing: a workload teaches nobody which collateral is the newest."""


@dataclass(frozen=True)
class VendorCollateral:
    """The vendors, through a cache. offline: take what was sent, or else what the cache has, and say so.

    roots: a vendor is asked only about quotes that are signed up to one of these, so that a stranger's bytes make
    nobody ask anything.
    """

    cache: CollateralCache
    offline: bool = False
    roots: Roots = field(default_factory=ProductionRoots)

    def find(self, evidence: Evidence, sent: Collateral) -> Collateral:
        """As `find_collateral`, with the newest evaluation known; offline what was sent, if there is any.

        A release and certificates are nobody's collateral but the workload's own, and go along: the policy says who has
        to have signed them.
        """
        own = {name: document for name, document in sent.documents.items() if name in _OWN}
        theirs = {name: document for name, document in sent.documents.items() if name not in _OWN}
        found = self._find(evidence, replace(sent, documents=theirs))
        return replace(found, documents={**found.documents, **own}) if own else found

    def _find(self, evidence: Evidence, sent: Collateral) -> Collateral:
        newest = max(filter(None, map(self.cache.newest_evaluation, _platforms(evidence))), default=None)
        if self.offline and (sent.documents or sent.members):
            return replace(sent, provenance=Provenance(sent=True, newest_evaluation=newest))
        for quote in _quotes(evidence):
            dcap_signature.parse(quote.raw, self.roots)
        found = find_collateral(self.cache, evidence, sent)
        return replace(found, provenance=replace(found.provenance, newest_evaluation=newest))

    def learn(self, claims: Claims, provenance: Provenance) -> None:
        """The evaluation number of collateral that was fetched here and holds."""
        if provenance.sent:
            return
        for one in claims.everyone():
            if one.tcb_evaluation is not None and "fmspc" in one.identity:
                self.cache.learn_evaluation(_platform(one.family, one.identity["fmspc"]), one.tcb_evaluation)


def find_collateral(cache: CollateralCache, evidence: Evidence, sent: Collateral | None = None) -> Collateral:
    """What verifying this evidence needs; for composites, of each member. sent: for what no vendor publishes.

    MalformedEvidence, WrongCollateral where no vendor publishes any, CollateralUnavailable where none can be had now.
    """
    given = sent or Collateral()
    match evidence.family:
        case Family.SGX | Family.TDX:
            return intel_collateral(cache, _intel_platform(evidence)).collateral
        case Family.SNP:
            return _amd(cache, evidence, given)
        case Family.AZURE:
            return find_collateral(cache, HclReport.parse(evidence.raw).evidence(evidence.parts), given)
        case Family.COMPOSITE:
            return _members(cache, evidence, given)
        case Family.TOKEN | Family.NITRO:
            return Collateral()
        case Family.NVIDIA:
            return nvidia_collateral(cache, evidence, chain=given.documents.get("chain")).collateral
        case _ if given.documents:
            return replace(given, provenance=Provenance(sent=True))
        case _:
            raise WrongCollateral(f"No vendor publishes collateral for {evidence.family}; send it with the evidence.")


def _members(cache: CollateralCache, evidence: Evidence, sent: Collateral) -> Collateral:
    theirs = sent.members if len(sent.members) == len(evidence.members) else (Collateral(),) * len(evidence.members)
    found = tuple(find_collateral(cache, member, its) for member, its in zip(evidence.members, theirs, strict=True))
    fetched = [one.provenance.fetched for one in found if one.provenance.fetched is not None]
    return Collateral(members=found, provenance=Provenance(fetched=min(fetched, default=None)))


def _platforms(evidence: Evidence) -> Iterator[str]:
    """The Intel platforms in this evidence, as the cache calls them. What cannot be parsed is refused elsewhere."""
    for quote in _quotes(evidence):
        with suppress(AttestationError):
            yield _platform(quote.family, bytes.fromhex(_intel_platform(quote).fmspc))


def _quotes(evidence: Evidence) -> Iterator[Evidence]:
    """Every DCAP quote in this evidence, in whatever it is wrapped. What cannot be parsed is refused elsewhere."""
    if evidence.family in (Family.SGX, Family.TDX):
        yield evidence
    elif evidence.family is Family.AZURE:
        with suppress(AttestationError):
            yield from _quotes(HclReport.parse(evidence.raw).evidence(evidence.parts))
    for member in evidence.members:
        yield from _quotes(member)


def _platform(family: Family, fmspc: bytes) -> str:
    return f"{family.value} {fmspc.hex()}"


def _intel_platform(evidence: Evidence) -> IntelPlatform:
    try:
        quote = dcap_qvl.Quote.parse(evidence.raw)
        ca: Literal["processor", "platform"] = "processor" if quote.ca() == "processor" else "platform"
        return IntelPlatform(quote.fmspc(), ca, evidence.family)
    except ValueError as error:
        raise MalformedEvidence("This is no DCAP quote with its platform's certificate; make it again.") from error


def _amd(cache: CollateralCache, evidence: Evidence, sent: Collateral) -> Collateral:
    report = Report.parse(evidence.raw)
    vlek = _provided_vlek(evidence, sent) if report.signer == "vlek" else None
    *others, last = [report.product] if report.product else _UNNAMED
    for product in others:
        with suppress(WrongCollateral):
            return _amd_product(cache, report, product, vlek)
    return _amd_product(cache, report, last, vlek)


def _amd_product(cache: CollateralCache, report: Report, product: Product, vlek: bytes | None) -> Collateral:
    return amd_collateral(cache, AmdPlatform(product, report.chip_id, report.reported_tcb), vlek=vlek).collateral


def _provided_vlek(evidence: Evidence, sent: Collateral) -> bytes:
    vlek = certificate_table(evidence.parts.get("auxblob", _EMPTY_TABLE)).get("vlek") or sent.documents.get("vlek")
    if vlek is None:
        raise WrongCollateral("The host gave no VLEK certificate, and AMD does not publish it; ask the cloud for it.")
    return vlek

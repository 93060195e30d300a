"""Requirements on the platform: its root, how current it is, which one it is, and who vouches for it."""

import hashlib
from collections.abc import Iterator
from datetime import datetime
from typing import ClassVar, Final

import rfc8785

from confide.attest.check import Check, check
from confide.attest.claims import Claims, RootKind, TcbStatus
from confide.attest.evidence import Family
from confide.attest.requirements.base import (
    ABSENT,
    Requirement,
    Subject,
    day,
    families_of,
    hexadecimal,
    one_of,
    period,
    require_hex,
)
from confide.errors import InvalidPolicy

_WITHIN_GRACE: Final = {
    TcbStatus.OUT_OF_DATE: TcbStatus.UP_TO_DATE,
    TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED: TcbStatus.CONFIGURATION_NEEDED,
}
"""What a status was before the vendor's update. Time heals nothing else."""


class ProductionRoot(Requirement, frozen=True, tag="production-root"):
    """The evidence ends in the vendor's root. Part of every `Policy`, whether named or not."""

    def checks(self, subject: Subject) -> Iterator[Check]:
        yield roots_check(subject, RootKind.PRODUCTION)


class NotDebug(Requirement, frozen=True, tag="not-debug"):
    """Nobody can look into it with a debugger."""

    def checks(self, subject: Subject) -> Iterator[Check]:
        debuggable = [claims.family.value for claims in subject.claims.everyone() if claims.debug]
        yield check("debug", "off", f"on: {', '.join(debuggable)}" if debuggable else "off", not debuggable)


class TcbAtLeast(Requirement, frozen=True, tag="tcb-at-least"):
    """A platform's firmware and microcode are this current, in the vendor's word.

    grace: how old the platform's level may be, such as 90d, although an update is out. Intel publishes lists of levels.
    AMD certifies versions: UpToDate means that it has certified those that the platform reports; for newer ones ask
    with Snp(min_tcb). For others, who do neither, this fails.
    """

    status: str
    grace: str = ""

    def __post_init__(self) -> None:
        if self.status not in set(TcbStatus) - {TcbStatus.REVOKED, TcbStatus.UNKNOWN}:
            raise InvalidPolicy(f"{self.status!r} is no TCB status to ask for; most policies say UpToDate.")
        period(self.grace)

    def checks(self, subject: Subject) -> Iterator[Check]:
        expected = self.status + (f", or a level no older than {self.grace}" if self.grace else "")
        found = subject.of(Family.SGX, Family.TDX, Family.SNP)
        if not found:
            seen = f"{subject.claims.tcb_status.value}: nothing to go by for {families_of(subject.claims)}"
            yield check("tcb-status", expected, seen, ok=False)
        for claims in found:
            seen = claims.tcb_status.value + (f", level of {day(claims.tcb_date)}" if claims.tcb_date else "")
            yield check("tcb-status", expected, f"{claims.family.value}: {seen}", self._enough(claims, subject.now))

    def _enough(self, claims: Claims, now: datetime) -> bool:
        status, order = claims.tcb_status, list(TcbStatus)
        if claims.tcb_date is not None and now - claims.tcb_date <= period(self.grace):
            status = _WITHIN_GRACE.get(status, status)
        return order.index(status) <= order.index(TcbStatus(self.status))


class CollateralValid(Requirement, frozen=True, tag="collateral-valid"):
    """No certificate, list or token in use has expired."""

    def checks(self, subject: Subject) -> Iterator[Check]:
        ends = [claims.valid_until for claims in subject.claims.everyone() if claims.valid_until is not None]
        seen = f"valid until {day(min(ends))}" if ends else "nothing that expires"
        yield check("collateral-valid", f"valid at {day(subject.now)}", seen, all(end >= subject.now for end in ends))


class NoAdvisory(Requirement, frozen=True, tag="no-advisory"):
    """The platform is affected by none of these security advisories, such as INTEL-SA-00837."""

    denied: tuple[str, ...]

    def checks(self, subject: Subject) -> Iterator[Check]:
        present = sorted({name for claims in subject.claims.everyone() for name in claims.advisories})
        hits = [name for name in present if name in self.denied]
        yield check("advisories", f"none of {', '.join(self.denied)}", ", ".join(present) or "none", not hits)


class _Known(Requirement, frozen=True):
    code: ClassVar[str]
    name: ClassVar[str]
    families: ClassVar[tuple[Family, ...]]

    allowed: tuple[str, ...]

    def __post_init__(self) -> None:
        for value in self.allowed:
            require_hex(self.name, value)

    def checks(self, subject: Subject) -> Iterator[Check]:
        found = subject.of(*self.families)
        if not found:
            yield check(self.code, one_of(self.allowed), ABSENT, ok=False)
        for claims in found:
            seen = hexadecimal(claims.identity.get(self.name))
            yield check(self.code, one_of(self.allowed), seen, seen in self.allowed)


class PpidIn(_Known, frozen=True, tag="ppid-in"):
    """An Intel platform of this list, by its PPID."""

    code, name, families = "ppid", "ppid", (Family.SGX, Family.TDX)


class ChipIdIn(_Known, frozen=True, tag="chip-id-in"):
    """An AMD chip of this list."""

    code, name, families = "chip-id", "chip_id", (Family.SNP,)


class VerifierService(Requirement, frozen=True, tag="verifier-service"):
    """Take the word of a verification service, signed with one of these keys, instead of verifying evidence here.

    service: intel-trust-authority, azure-attestation or trustee. issuer: exactly as its tokens name it. keys: its JSON
    Web Key Set, as text; it is never fetched.
    """

    service: str
    issuer: str
    keys: str

    def __post_init__(self) -> None:
        if not self.issuer or not self.keys:
            raise InvalidPolicy(f"Name the issuer and the keys of the verifier {self.service}; neither is looked up.")

    @property
    def identity(self) -> str:
        """The service with everything that its tokens are held against; claims carry it as `verified_by`."""
        pinned = rfc8785.dumps([self.service, self.issuer, self.keys])
        return f"{self.service} at {self.issuer} with keys {hashlib.sha256(pinned).hexdigest()[:16]}"

    def checks(self, subject: Subject) -> Iterator[Check]:
        seen = subject.claims.verified_by
        yield check("verifier-service", self.identity, seen or "verified here", seen == self.identity)


def roots_check(subject: Subject, kind: RootKind) -> Check:
    """Whether all of the evidence ends in roots of this kind."""
    seen = sorted({claims.root.value for claims in subject.claims.everyone()})
    return check("root", kind.value, " and ".join(seen), seen == [kind.value])

"""Requirements on the platform: which one it is, what affects it, and who vouches for it."""

import hashlib
import re
from collections.abc import Iterator
from typing import ClassVar, Final

import rfc8785

from confide.attest.check import Check, check
from confide.attest.claims import TcbStatus
from confide.attest.evidence import Family
from confide.attest.requirements.base import (
    ABSENT,
    Requirement,
    Subject,
    hexadecimal,
    one_of,
    require_hex,
    require_some,
)
from confide.errors import InvalidPolicy

_ADVISORY: Final = re.compile(r"INTEL-SA-[0-9]{5}")


class Default(Requirement, frozen=True):
    """Part of every policy, see `defaults`. To name it at the top of a policy changes nothing."""

    def checks(self, subject: Subject) -> Iterator[Check]:
        yield from ()

    def sentences(self) -> Iterator[str]:
        yield from ()


class ProductionRoot(Default, frozen=True, tag="production-root"):
    """The evidence ends in the vendor's root."""


class NotDebug(Default, frozen=True, tag="not-debug"):
    """Nobody can look into it with a debugger."""


class CollateralValid(Default, frozen=True, tag="collateral-valid"):
    """No certificate, list or token in use has expired or is not valid yet."""


class TcbAtLeast(Default, frozen=True, tag="tcb-at-least"):
    """The platform's firmware and microcode are current. Anything less is an exception, and written as one."""

    status: str
    grace: str = ""

    def __post_init__(self) -> None:
        if self.status != TcbStatus.UP_TO_DATE or self.grace:
            raise InvalidPolicy(
                "Every policy asks for the TCB status UpToDate; for less, write allow-tcb, a list of statuses such as "
                '["SWHardeningNeeded"], or grace, such as "30d", at the top of the policy.'
            )


class NoAdvisory(Requirement, frozen=True, tag="no-advisory"):
    """The platform is affected by none of these security advisories, such as INTEL-SA-00837."""

    denied: tuple[str, ...]

    def __post_init__(self) -> None:
        require_some("denied", self.denied)
        for name in self.denied:
            if not _ADVISORY.fullmatch(name):
                raise InvalidPolicy(f"{name[:40]!r} is no advisory of Intel's; write it as INTEL-SA-00837.")

    def sentences(self) -> Iterator[str]:
        yield f"a platform that none of {', '.join(self.denied)} affects"

    def checks(self, subject: Subject) -> Iterator[Check]:
        present = sorted({name for claims in subject.claims.everyone() for name in claims.advisories})
        hits = [name for name in present if name in self.denied]
        yield check("advisories", f"none of {', '.join(self.denied)}", ", ".join(present) or "none", not hits)


class _Known(Requirement, frozen=True):
    code: ClassVar[str]
    name: ClassVar[str]
    sizes: ClassVar[tuple[int, ...]]
    families: ClassVar[tuple[Family, ...]]

    allowed: tuple[str, ...]

    def __post_init__(self) -> None:
        require_some("allowed", self.allowed)
        for value in self.allowed:
            require_hex(self.name, value)
            if len(value) // 2 not in self.sizes:
                sizes = " or ".join(map(str, self.sizes))
                raise InvalidPolicy(f"A {self.code} has {sizes} bytes, and the policy names one of {len(value) // 2}.")

    def sentences(self) -> Iterator[str]:
        yield f"one of {len(self.allowed)} platforms, by its {self.code}"

    def checks(self, subject: Subject) -> Iterator[Check]:
        found = subject.of(*self.families)
        if not found:
            yield check(self.code, one_of(self.allowed), ABSENT, ok=False)
        for claims in found:
            seen = hexadecimal(claims.identity.get(self.name))
            yield check(self.code, one_of(self.allowed), seen, seen in self.allowed)


class PpidIn(_Known, frozen=True, tag="ppid-in"):
    """An Intel platform of this list, by its PPID."""

    code, name, sizes, families = "ppid", "ppid", (16,), (Family.SGX, Family.TDX)


class FmspcIn(_Known, frozen=True, tag="fmspc-in"):
    """An Intel platform of one of these models, by its FMSPC."""

    code, name, sizes, families = "fmspc", "fmspc", (6,), (Family.SGX, Family.TDX)


class ChipIdIn(_Known, frozen=True, tag="chip-id-in"):
    """An AMD chip of this list. Turin's ids have 8 bytes, all others 64."""

    code, name, sizes, families = "chip-id", "chip_id", (8, 64), (Family.SNP,)


class VerifierService(Requirement, frozen=True, tag="verifier-service"):
    """Take the word of a verification service, signed with one of these keys, instead of verifying evidence here.

    service: intel-trust-authority, azure-attestation, trustee or nvidia-nras. issuer: exactly as its tokens name it.
    keys: its JSON Web Key Set, as text; it is never fetched.
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

    def sentences(self) -> Iterator[str]:
        yield f"the word of {self.service} at {self.issuer}, instead of evidence that is verified here"

    def checks(self, subject: Subject) -> Iterator[Check]:
        seen = subject.claims.verified_by
        yield check("verifier-service", self.identity, seen or "verified here", seen == self.identity)

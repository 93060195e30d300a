"""What every requirement is made of: the `Subject` it looks at, and the words for values that checks show."""

import hmac
import re
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import msgspec

from confide.attest.check import Check, check
from confide.attest.claims import Claims
from confide.attest.collateral import OWN, Provenance
from confide.attest.evidence import Family
from confide.attest.statement import Statement
from confide.errors import InvalidPolicy

if TYPE_CHECKING:
    from confide.attest.certificates import AnyCertificate
    from confide.attest.requirements.composition import AnyRequirement
    from confide.attest.result import AttestationResult

Witness = Callable[["AnyCertificate", tuple["AnyRequirement", ...]], tuple["AttestationResult", ...]]
"""Whoever appraises the subject: the verdicts on a certificate's evidence, for the time when that was made."""

_HEX: Final = re.compile(r"(?:[0-9a-f]{2})+")
ABSENT: Final = "absent"
MAX_PERIOD: Final = timedelta(days=366)
_PERIOD: Final = re.compile(r"([1-9][0-9]{0,5})([dhm])")
_UNITS: Final = {"d": "days", "h": "hours", "m": "minutes"}


@dataclass(frozen=True)
class Subject:
    """What is appraised: verified claims, at a time, with what the workload says of itself if it said anything.

    provenance: of the collateral that the claims were verified with. release, scores, training: the documents of these
    names, see the modules so called, not yet believed. witness: who appraises what certificates hold; without, none
    counts.
    """

    claims: Claims
    now: datetime
    statement: Statement | None = None
    provenance: Provenance = OWN
    release: bytes | None = None
    scores: bytes | None = None
    training: bytes | None = None
    witness: Witness | None = None

    def of(self, *families: Family) -> tuple[Claims, ...]:
        """The claims of these families, members of a composite included."""
        return tuple(claims for claims in self.claims.everyone() if claims.family in families)

    @property
    def speaker(self) -> Claims:
        """Whose report_data it is: of a composite, the virtual machine's."""
        return self.claims.members[0] if self.claims.family is Family.COMPOSITE and self.claims.members else self.claims

    @property
    def signed_statement(self) -> Statement | None:
        """The statement, if the hardware signed it."""
        statement = self.statement
        if statement and statement.is_bound_by(self.speaker.report_data, self.speaker.family):
            return statement
        return None


class Requirement(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="require"):
    """Something that claims must satisfy."""

    def checks(self, subject: Subject) -> Iterator[Check]:
        """What was expected, what was seen, and whether that will do."""
        raise NotImplementedError

    def sentences(self) -> Iterator[str]:
        """What this asks for, in words that follow "asks for"."""
        raise NotImplementedError


def name_of(requirement: Requirement) -> str:
    """What a requirement is called in TOML."""
    return str(requirement.__struct_config__.tag)


def equal(code: str, expected: str, seen: bytes | None) -> Check:
    """Whether bytes of the claims are those expected (hexadecimal), in constant time; absent ones are not."""
    same = seen is not None and hmac.compare_digest(seen, bytes.fromhex(expected))
    return check(code, expected, hexadecimal(seen), same)


def require_hex(name: str, value: str, size: int | None = None) -> None:
    """InvalidPolicy unless this is lower-case hexadecimal, of `size` bytes if that is given."""
    if not _HEX.fullmatch(value) or (size is not None and len(value) != 2 * size):
        length = f"{2 * size} lower-case hexadecimal digits" if size else "pairs of lower-case hexadecimal digits"
        raise InvalidPolicy(f"{name} takes {length}, and the policy says {value[:140]!r}.")


def require_range(name: str, value: int, largest: int) -> None:
    """InvalidPolicy unless this is a number from 0 to `largest`."""
    if not 0 <= value <= largest:
        raise InvalidPolicy(f"{name} is a number from 0 to {largest}, and the policy says {value}.")


def require_some(name: str, values: Sized | None) -> None:
    """InvalidPolicy for a list that is there and empty; None is one that is not there."""
    if values is not None and not values:
        raise InvalidPolicy(f"{name} is empty, which asks for nothing; fill it, or leave it out.")


def code_of(name: str) -> str:
    return name.replace("_", "-")


def families_of(claims: Claims) -> str:
    return ", ".join(dict.fromkeys(one.family.value for one in claims.everyone()))


def one_of(values: tuple[str, ...]) -> str:
    return " or ".join(values) or "nothing"


def hexadecimal(value: bytes | None) -> str:
    return ABSENT if value is None else value.hex()


def number(value: bytes | None) -> str:
    return ABSENT if value is None else str(int.from_bytes(value, "little"))


def day(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def period(text: str) -> timedelta:
    """The time that 30d, 12h or 90m says. InvalidPolicy for anything else, and for more than MAX_PERIOD."""
    match = _PERIOD.fullmatch(text)
    if match is None:
        raise InvalidPolicy(f"{text[:40]!r} is no period; write days, hours or minutes as in 30d, 12h or 90m.")
    length = timedelta(**{_UNITS[match[2]]: int(match[1])})
    if length > MAX_PERIOD:
        raise InvalidPolicy(f"A period of {text} is too long to mean anything; give at most {MAX_PERIOD.days}d.")
    return length

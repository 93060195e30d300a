"""What a policy can ask for. Each requirement is a value: comparable, printable, and the same in Python and TOML.

Digests and other bytes are texts in hexadecimal, as every tool prints them. A requirement looks at a `Subject` and
answers with checks; it never raises, and what is absent from the claims has failed.
"""

import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import ClassVar, Final

import msgspec
import rfc8785

from confide.attest.claims import Claims, RootKind, TcbStatus
from confide.attest.evidence import Family
from confide.attest.result import Check
from confide.attest.statement import DIGEST_BYTES, Statement, same_report_data
from confide.errors import InvalidPolicy

_HEX: Final = re.compile(r"(?:[0-9a-f]{2})+")
_PERIOD: Final = re.compile(r"([0-9]{1,6})([dhm])")
_UNITS: Final = {"d": "days", "h": "hours", "m": "minutes"}
_ABSENT: Final = "absent"
_WITHIN_GRACE: Final = {
    TcbStatus.OUT_OF_DATE: TcbStatus.UP_TO_DATE,
    TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED: TcbStatus.CONFIGURATION_NEEDED,
}
"""What a status was before the vendor's update. Time heals nothing else."""


@dataclass(frozen=True)
class Subject:
    """What is appraised: verified claims, at a time, with what the workload says of itself if it said anything."""

    claims: Claims
    now: datetime
    statement: Statement | None = None

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


# -- hardware ----------------------------------------------------------------------------------------------------


class _Measured(Requirement, frozen=True):
    """Equality with measurements of one family: at least one member of it, and every one of them as asked."""

    family: ClassVar[Family]
    sizes: ClassVar[dict[str, int]]

    def __post_init__(self) -> None:
        for name, size in self.sizes.items():
            for value in _texts(getattr(self, name)):
                _require_hex(name, value, size)

    def expected(self) -> Iterator[tuple[str, str]]:
        """The measurements asked for, by their names in the claims."""
        for name in self.sizes:
            value = getattr(self, name)
            if value:
                yield name, value

    def checks(self, subject: Subject) -> Iterator[Check]:
        found = subject.of(self.family)
        yield Check("family", self.family.value, _families(subject.claims), bool(found))
        for claims in found:
            for name, value in self.expected():
                yield _equal(_code(name), value, claims.measurements.get(name))
            yield from self.further(claims)

    def further(self, claims: Claims) -> Iterator[Check]:
        """Checks other than equality."""
        yield from ()


class Sgx(_Measured, frozen=True, tag="sgx"):
    """An Intel SGX enclave: its measurement, its signer, and the lowest security version of that signer's."""

    family = Family.SGX
    sizes = {"mrenclave": 32, "mrsigner": 32}

    mrenclave: str = ""
    mrsigner: str = ""
    min_isvsvn: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_range("min_isvsvn", self.min_isvsvn, 0xFFFF)
        if self.min_isvsvn and not (self.mrenclave or self.mrsigner):
            raise InvalidPolicy("min_isvsvn counts one signer's versions; name that signer with mrsigner.")

    def further(self, claims: Claims) -> Iterator[Check]:
        if self.min_isvsvn:
            seen = claims.measurements.get("isvsvn")
            version = int.from_bytes(seen, "little") if seen is not None else -1
            yield Check("isvsvn", f"at least {self.min_isvsvn}", _number(seen), version >= self.min_isvsvn)


class Tdx(_Measured, frozen=True, tag="tdx"):
    """An Intel TDX virtual machine. rtmrs: RTMR 0 onwards; an empty text leaves one of them open."""

    family = Family.TDX
    sizes = {"mrtd": 48, "rtmrs": 48, "mrseam": 48, "mrconfigid": 48}

    mrtd: str = ""
    rtmrs: tuple[str, ...] = ()
    mrseam: str = ""
    mrconfigid: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.rtmrs) > 4:
            raise InvalidPolicy(f"A TDX machine has four RTMRs and the policy names {len(self.rtmrs)}; shorten rtmrs.")

    def expected(self) -> Iterator[tuple[str, str]]:
        yield from ((name, value) for name, value in super().expected() if name != "rtmrs")
        yield from ((f"rtmr{index}", value) for index, value in enumerate(self.rtmrs) if value)


class SnpTcb(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Security versions of an AMD platform, each of which must be at least this."""

    bootloader: int = 0
    tee: int = 0
    snp: int = 0
    microcode: int = 0
    fmc: int = 0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            _require_range(name, getattr(self, name), 0xFF)


class Snp(_Measured, frozen=True, tag="sev-snp"):
    """An AMD SEV-SNP virtual machine: its launch measurement, what the host committed to, and the platform."""

    family = Family.SNP
    sizes = {"measurement": 48, "host_data": 32}

    measurement: str = ""
    host_data: str = ""
    min_tcb: SnpTcb = msgspec.field(default_factory=SnpTcb)

    def further(self, claims: Claims) -> Iterator[Check]:
        for name in SnpTcb.__struct_fields__:
            least = getattr(self.min_tcb, name)
            if least:
                seen = claims.versions.get(name)
                shown = _ABSENT if seen is None else str(seen)
                yield Check(f"snp-tcb-{name}", f"at least {least}", shown, seen is not None and seen >= least)


class Tpm(_Measured, frozen=True, tag="tpm"):
    """A TPM 2.0, with the SHA-256 values of its PCRs by number, such as {"7": ...}."""

    family = Family.TPM
    sizes: ClassVar[dict[str, int]] = {}

    pcrs: dict[str, str] = {}

    def __post_init__(self) -> None:
        for number, value in self.pcrs.items():
            if not number.isdecimal() or not 0 <= int(number) < 24 or number != str(int(number)):
                raise InvalidPolicy(f"There is no PCR {number}; a TPM has 0 to 23.")
            _require_hex(f"pcr{number}", value, 32)

    def expected(self) -> Iterator[tuple[str, str]]:
        yield from ((f"pcr{number}", value) for number, value in sorted(self.pcrs.items(), key=lambda pcr: int(pcr[0])))


class Nvidia(_Measured, frozen=True, tag="nvidia-gpu"):
    """NVIDIA GPUs in confidential mode, all of which run one of these drivers and VBIOSes. Empty: any."""

    family = Family.NVIDIA
    sizes: ClassVar[dict[str, int]] = {}

    drivers: tuple[str, ...] = ()
    vbioses: tuple[str, ...] = ()

    def further(self, claims: Claims) -> Iterator[Check]:
        for name, allowed in (("driver", self.drivers), ("vbios", self.vbioses)):
            if allowed:
                seen = claims.identity.get(f"{name}_version")
                text = _ABSENT if seen is None else seen.decode("ascii", "replace")
                yield Check(f"nvidia-{name}", _one_of(allowed), text, text in allowed)


# -- the platform ------------------------------------------------------------------------------------------------


class ProductionRoot(Requirement, frozen=True, tag="production-root"):
    """The evidence ends in the vendor's root. Part of every `Policy`, whether named or not."""

    def checks(self, subject: Subject) -> Iterator[Check]:
        yield roots_check(subject, RootKind.PRODUCTION)


class NotDebug(Requirement, frozen=True, tag="not-debug"):
    """Nobody can look into it with a debugger."""

    def checks(self, subject: Subject) -> Iterator[Check]:
        debuggable = [claims.family.value for claims in subject.claims.everyone() if claims.debug]
        yield Check("debug", "off", f"on: {', '.join(debuggable)}" if debuggable else "off", not debuggable)


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
            seen = f"{subject.claims.tcb_status.value}: nothing to go by for {_families(subject.claims)}"
            yield Check("tcb-status", expected, seen, passed=False)
        for claims in found:
            seen = claims.tcb_status.value + (f", level of {_day(claims.tcb_date)}" if claims.tcb_date else "")
            yield Check("tcb-status", expected, f"{claims.family.value}: {seen}", self._enough(claims, subject.now))

    def _enough(self, claims: Claims, now: datetime) -> bool:
        status, order = claims.tcb_status, list(TcbStatus)
        if claims.tcb_date is not None and now - claims.tcb_date <= period(self.grace):
            status = _WITHIN_GRACE.get(status, status)
        return order.index(status) <= order.index(TcbStatus(self.status))


class CollateralValid(Requirement, frozen=True, tag="collateral-valid"):
    """No certificate, list or token in use has expired."""

    def checks(self, subject: Subject) -> Iterator[Check]:
        ends = [claims.valid_until for claims in subject.claims.everyone() if claims.valid_until is not None]
        seen = f"valid until {_day(min(ends))}" if ends else "nothing that expires"
        yield Check("collateral-valid", f"valid at {_day(subject.now)}", seen, all(end >= subject.now for end in ends))


class NoAdvisory(Requirement, frozen=True, tag="no-advisory"):
    """The platform is affected by none of these security advisories, such as INTEL-SA-00837."""

    denied: tuple[str, ...]

    def checks(self, subject: Subject) -> Iterator[Check]:
        present = sorted({name for claims in subject.claims.everyone() for name in claims.advisories})
        hits = [name for name in present if name in self.denied]
        yield Check("advisories", f"none of {', '.join(self.denied)}", ", ".join(present) or "none", not hits)


class _Known(Requirement, frozen=True):
    code: ClassVar[str]
    name: ClassVar[str]
    families: ClassVar[tuple[Family, ...]]

    allowed: tuple[str, ...]

    def __post_init__(self) -> None:
        for value in self.allowed:
            _require_hex(self.name, value)

    def checks(self, subject: Subject) -> Iterator[Check]:
        found = subject.of(*self.families)
        if not found:
            yield Check(self.code, _one_of(self.allowed), _ABSENT, passed=False)
        for claims in found:
            seen = _hexadecimal(claims.identity.get(self.name))
            yield Check(self.code, _one_of(self.allowed), seen, seen in self.allowed)


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
        yield Check("verifier-service", self.identity, seen or "verified here", seen == self.identity)


# -- the workload ------------------------------------------------------------------------------------------------


class ReportData(Requirement, frozen=True, tag="report-data"):
    """The workload put in exactly these 64 bytes: the digest of a statement."""

    digest: str

    def __post_init__(self) -> None:
        _require_hex("digest", self.digest, DIGEST_BYTES)

    def checks(self, subject: Subject) -> Iterator[Check]:
        claims = subject.speaker
        same = same_report_data(bytes.fromhex(self.digest), claims.report_data, claims.family)
        yield Check("report-data", self.digest, _hexadecimal(claims.report_data), same)


class Fresh(Requirement, frozen=True, tag="fresh"):
    """The evidence was made for this nonce, in hexadecimal: in the signed statement, or else in report_data itself."""

    nonce: str

    def __post_init__(self) -> None:
        _require_hex("nonce", self.nonce)
        if not 16 <= len(self.nonce) // 2 <= DIGEST_BYTES:
            raise InvalidPolicy("A nonce has 16 to 64 bytes, so that none is guessed or used twice; make a new one.")

    def checks(self, subject: Subject) -> Iterator[Check]:
        if subject.statement is not None:
            yield _stated("nonce", self.nonce, subject, lambda statement: statement.nonce)
            return
        nonce, seen = bytes.fromhex(self.nonce), subject.speaker.report_data
        same = hmac.compare_digest(nonce.ljust(len(seen), b"\0"), seen)
        yield Check("nonce", self.nonce, _hexadecimal(seen), same)


class Model(Requirement, frozen=True, tag="model"):
    """The workload's signed statement names this model, by the SHA-256 of its package."""

    sha256: str

    def __post_init__(self) -> None:
        _require_hex("sha256", self.sha256, 32)

    def checks(self, subject: Subject) -> Iterator[Check]:
        yield _stated("model", self.sha256, subject, lambda statement: statement.model_digest)


class PolicyVersion(Requirement, frozen=True, tag="policy-version"):
    """The workload's signed statement was made for this version of the policy."""

    version: str

    def checks(self, subject: Subject) -> Iterator[Check]:
        yield _stated("policy-version", self.version, subject, lambda statement: statement.policy_version)


# -- composition -------------------------------------------------------------------------------------------------


class AllOf(Requirement, frozen=True, tag="all-of"):
    """Every one of these."""

    of: tuple["AnyRequirement", ...]

    def checks(self, subject: Subject) -> Iterator[Check]:
        for requirement in self.of:
            yield from requirement.checks(subject)


class AnyOf(Requirement, frozen=True, tag="any-of"):
    """At least one of these. The first that holds shows its checks; if none does, one check says why of each."""

    of: tuple["AnyRequirement", ...]

    def __post_init__(self) -> None:
        if not self.of:
            raise InvalidPolicy("any_of needs something to choose from; name at least one requirement.")

    def checks(self, subject: Subject) -> Iterator[Check]:
        expected = " or ".join(name_of(requirement) for requirement in self.of)
        outcomes = [tuple(requirement.checks(subject)) for requirement in self.of]
        for requirement, outcome in zip(self.of, outcomes, strict=True):
            if outcome and all(check.passed for check in outcome):
                yield Check("any-of", expected, name_of(requirement), passed=True)
                yield from outcome
                return
        reasons = (f"{name_of(one)}: {_reasons(checks)}" for one, checks in zip(self.of, outcomes, strict=True))
        yield Check("any-of", expected, "; ".join(reasons), passed=False)


AnyRequirement = (
    Sgx
    | Tdx
    | Snp
    | Tpm
    | Nvidia
    | ProductionRoot
    | NotDebug
    | TcbAtLeast
    | CollateralValid
    | NoAdvisory
    | PpidIn
    | ChipIdIn
    | VerifierService
    | ReportData
    | Fresh
    | Model
    | PolicyVersion
    | AllOf
    | AnyOf
)


def any_of(*requirements: AnyRequirement) -> AnyOf:
    """At least one of these."""
    return AnyOf(requirements)


def all_of(*requirements: AnyRequirement) -> AllOf:
    """Every one of these: for use inside any_of."""
    return AllOf(requirements)


def services_of(requirements: Iterable[AnyRequirement]) -> Iterator[VerifierService]:
    """The verification services that are named anywhere in these."""
    for requirement in requirements:
        if isinstance(requirement, VerifierService):
            yield requirement
        elif isinstance(requirement, AllOf | AnyOf):
            yield from services_of(requirement.of)


def name_of(requirement: Requirement) -> str:
    """What a requirement is called in TOML."""
    return str(requirement.__struct_config__.tag)


def period(text: str) -> timedelta:
    """The time that 30d, 12h or 90m says; none for an empty text."""
    if not text:
        return timedelta(seconds=-1)
    match = _PERIOD.fullmatch(text)
    if match is None:
        raise InvalidPolicy(f"{text!r} is no period; write days, hours or minutes as in 30d, 12h or 90m.")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def roots_check(subject: Subject, kind: RootKind) -> Check:
    """Whether all of the evidence ends in roots of this kind."""
    seen = sorted({claims.root.value for claims in subject.claims.everyone()})
    return Check("root", kind.value, " and ".join(seen), seen == [kind.value])


def _stated(code: str, expected: str, subject: Subject, value: Callable[[Statement], str]) -> Check:
    if subject.statement is None:
        return Check(code, expected, "no statement", passed=False)
    statement = subject.signed_statement
    if statement is None:
        return Check(code, expected, "a statement that the hardware did not sign", passed=False)
    seen = value(statement)
    return Check(code, expected, seen or _ABSENT, hmac.compare_digest(seen.encode(), expected.encode()))


def _equal(code: str, expected: str, seen: bytes | None) -> Check:
    same = seen is not None and hmac.compare_digest(seen, bytes.fromhex(expected))
    return Check(code, expected, _hexadecimal(seen), same)


def _reasons(checks: Iterable[Check]) -> str:
    return ", ".join(check.code for check in checks if not check.passed) or "nothing to check"


def _texts(value: str | tuple[str, ...]) -> Iterator[str]:
    yield from filter(None, (value,) if isinstance(value, str) else value)


def _require_hex(name: str, value: str, size: int | None = None) -> None:
    if not _HEX.fullmatch(value) or (size is not None and len(value) != 2 * size):
        length = f"{2 * size} lower-case hexadecimal digits" if size else "pairs of lower-case hexadecimal digits"
        raise InvalidPolicy(f"{name} takes {length}, and the policy says {value[:140]!r}.")


def _require_range(name: str, value: int, largest: int) -> None:
    if not 0 <= value <= largest:
        raise InvalidPolicy(f"{name} is a number from 0 to {largest}, and the policy says {value}.")


def _code(name: str) -> str:
    return name.replace("_", "-")


def _families(claims: Claims) -> str:
    return ", ".join(dict.fromkeys(one.family.value for one in claims.everyone()))


def _one_of(values: tuple[str, ...]) -> str:
    return " or ".join(values) or "nothing"


def _hexadecimal(value: bytes | None) -> str:
    return _ABSENT if value is None else value.hex()


def _number(value: bytes | None) -> str:
    return _ABSENT if value is None else str(int.from_bytes(value, "little"))


def _day(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")

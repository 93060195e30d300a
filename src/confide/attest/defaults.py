"""What every policy asks for whatever else it says, and the exceptions that it can name in words.

The defaults: a root of the right kind, evidence that speaks for a workload, no debugging, valid collateral of the
newest evaluation known, a TCB that its vendor calls UpToDate, and every check that verification should make made. Only
`Exceptions` takes anything of that away, and each exception is a sentence that the verdict repeats.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Annotated, Final, Literal

import msgspec

from confide.attest.chain import REVOKED
from confide.attest.check import Check, Outcome, check, skipped
from confide.attest.claims import Claims, RootKind, TcbStatus
from confide.attest.evidence import Family
from confide.attest.requirements.base import Subject, day, families_of, period
from confide.errors import InvalidPolicy

COLLATERAL: Final = "collateral-valid"
"""The code of the check that says until when collateral is valid, how old it is, and who chose it."""
_CODE: Final = re.compile(r"[a-z][a-z0-9-]{1,63}")
_BEFORE_UPDATE: Final = {
    TcbStatus.OUT_OF_DATE: TcbStatus.UP_TO_DATE,
    TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED: TcbStatus.CONFIGURATION_NEEDED,
}
"""What a status was before the vendor's update. Time heals nothing else."""
_LEVELLED: Final = (Family.SGX, Family.TDX, Family.SNP)
"""Families whose platform has versions that somebody can call current or not."""


class Exceptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, rename="kebab"):
    """What a policy does without, each by name. min_tcb_evaluation: no exception, but the place of the default.

    allow_debug: the machine's owner may read everything. allow_tcb: statuses besides UpToDate that will do, in the
    vendor's words; Unknown is for what nobody lists. grace: how long an out-of-date platform will do after the
    vendor published the level that replaced its own, such as 30d. revocation: "if-available" where no list of revoked
    certificates has to be there. allow_unchecked: codes of other checks that need not be made. allow_device_alone: a
    GPU or a TPM that speaks for no workload. min_tcb_evaluation: the least tcbEvaluationDataNumber of Intel's
    collateral; 0 for the newest that this verifier has fetched.
    """

    allow_debug: bool = False
    allow_tcb: Annotated[tuple[TcbStatus, ...], msgspec.Meta(max_length=16)] = ()
    grace: str = ""
    revocation: Literal["required", "if-available"] = "required"
    allow_unchecked: Annotated[tuple[str, ...], msgspec.Meta(max_length=32)] = ()
    allow_device_alone: bool = False
    min_tcb_evaluation: int = 0

    def __post_init__(self) -> None:
        if TcbStatus.REVOKED in self.allow_tcb or TcbStatus.UP_TO_DATE in self.allow_tcb:
            raise InvalidPolicy("allow-tcb names statuses besides UpToDate, and never Revoked; correct the list.")
        if self.grace:
            period(self.grace)
        if not 0 <= self.min_tcb_evaluation <= 0xFFFF:
            raise InvalidPolicy("min-tcb-evaluation is a number from 1 to 65535, Intel's tcbEvaluationDataNumber.")
        for code in self.allow_unchecked:
            if code == REVOKED:
                raise InvalidPolicy('For revocation write revocation = "if-available", not allow-unchecked.')
            if not _CODE.fullmatch(code):
                raise InvalidPolicy(f"{code[:80]!r} is no code of a check; a verdict names each check by its code.")

    def sentences(self) -> tuple[str, ...]:
        """Each exception, for whoever reads the verdict."""
        return tuple(self._sentences())

    def _sentences(self) -> Iterator[str]:
        if self.allow_debug:
            yield "allow-debug: the machine's owner may read everything with a debugger"
        if self.allow_tcb:
            yield f"allow-tcb: a platform that is {' or '.join(self.allow_tcb)} will do"
        if self.grace:
            yield f"grace: an out-of-date platform will do for {self.grace} after its replacement was published"
        if self.revocation == "if-available":
            yield "revocation: nobody has to show that certificates were not revoked"
        if self.allow_unchecked:
            yield f"allow-unchecked: these checks need not be made: {', '.join(self.allow_unchecked)}"
        if self.allow_device_alone:
            yield "allow-device-alone: a GPU or a TPM will do, which speaks for no workload"

    def excuse(self, code: str) -> bool:
        """Whether a check with this code may be left out."""
        return code in self.allow_unchecked or (code == REVOKED and self.revocation == "if-available")


NO_EXCEPTIONS: Final = Exceptions()


def default_checks(
    subject: Subject, root: RootKind, exceptions: Exceptions, snp_minimum: bool | None
) -> Iterator[Check]:
    """The checks of every policy. snp_minimum: whether AMD versions that the policy names are met; None: names none."""
    yield roots_check(subject, root)
    yield _speaks(subject, exceptions)
    yield _not_debug(subject, exceptions)
    yield _valid(subject)
    yield from _evaluation(subject, exceptions)
    yield from _tcb(subject, exceptions, snp_minimum)
    for found in dict.fromkeys(one for claims in subject.claims.everyone() for one in claims.checks):
        yield judged(found, exceptions)


def judged(found: Check, exceptions: Exceptions) -> Check:
    """A check as the policy takes it: one that was not made has failed, unless the policy does without it."""
    if found.outcome is Outcome.SKIPPED and not exceptions.excuse(found.code):
        return replace(found, outcome=Outcome.FAIL)
    return found


def roots_check(subject: Subject, kind: RootKind) -> Check:
    """Whether all of the evidence ends in roots of this kind."""
    seen = sorted({claims.root.value for claims in subject.claims.everyone()})
    return check("root", kind.value, " and ".join(seen), seen == [kind.value], "RFC 9334, 7.4")


def _speaks(subject: Subject, exceptions: Exceptions) -> Check:
    speaker = subject.speaker
    expected = "evidence that speaks for a workload" + (", or a device" if exceptions.allow_device_alone else "")
    seen = f"{speaker.family}: {'yes' if speaker.speaks else 'no, its report is not a workload’s own'}"
    ok = speaker.speaks or exceptions.allow_device_alone
    return check("speaks-for-a-workload", expected, seen, ok, "RFC 9334, 3.1")


def _not_debug(subject: Subject, exceptions: Exceptions) -> Check:
    debuggable = [claims.family.value for claims in subject.claims.everyone() if claims.debug]
    expected = "off, or on" if exceptions.allow_debug else "off"
    seen = f"on: {', '.join(debuggable)}" if debuggable else "off"
    return check("debug", expected, seen, exceptions.allow_debug or not debuggable)


def _valid(subject: Subject) -> Check:
    """Families refuse what is outside its validity; this says until when, and how old the collateral is."""
    everyone, now = subject.claims.everyone(), subject.now
    ends = [claims.valid_until for claims in everyone if claims.valid_until is not None]
    begins = [claims.issued_at for claims in everyone if claims.issued_at is not None]
    seen = f"valid until {day(min(ends))}" if ends else "nothing that expires"
    if begins:
        oldest = min(begins)
        seen += f"; oldest list of {day(oldest)}, {_age(now - oldest)} old"
    if subject.provenance.sent:
        seen += "; the workload chose it"
    elif subject.provenance.fetched is not None:
        seen += f"; fetched {_age(now - subject.provenance.fetched)} ago"
    ok = all(end >= now for end in ends) and all(begin <= now for begin in begins)
    return check(COLLATERAL, f"valid at {day(now)}", seen, ok, "RFC 5280, 6.3.3; Intel PCS v4, nextUpdate")


def _age(length: timedelta) -> str:
    if length.days > 0:
        return f"{length.days} days"
    hours = int(length.total_seconds() // 3600)
    return f"{hours} hours" if hours > 0 else "less than an hour"


def _evaluation(subject: Subject, exceptions: Exceptions) -> Iterator[Check]:
    """Intel serves collateral of two evaluations at once; the older one calls platforms current that are not."""
    code, clause = "tcb-evaluation", "Intel PCS v4, tcbEvaluationDataNumber"
    known, asked = subject.provenance.newest_evaluation, exceptions.min_tcb_evaluation
    least, whose = (asked, "the policy's number") if asked else (known, "the newest fetched here")
    for claims in subject.of(Family.SGX, Family.TDX):
        seen = claims.tcb_evaluation
        if claims.verified_by and not asked:
            continue
        if seen is None:
            yield check(code, f"at least {least}", "absent", ok=False, clause=clause)
        elif least is not None:
            yield check(code, f"at least {least}, {whose}", str(seen), seen >= least, clause)
        elif subject.provenance.sent:
            because = (
                f"the workload chose its collateral, of evaluation {seen}, and none was fetched here to compare; "
                "verify online once, or name the number with min-tcb-evaluation"
            )
            yield judged(skipped(code, "the newest evaluation", because, clause), exceptions)
        else:
            yield check(code, "that of the collateral given here", str(seen), ok=True, clause=clause)


def _tcb(subject: Subject, exceptions: Exceptions, snp_minimum: bool | None) -> Iterator[Check]:
    expected = " or ".join((TcbStatus.UP_TO_DATE.value, *exceptions.allow_tcb))
    if exceptions.grace:
        expected += f", or replaced no longer than {exceptions.grace} ago"
    found = subject.of(*_LEVELLED)
    if not found:
        status = subject.speaker.tcb_status
        seen = f'{status.value}: nobody lists levels for {families_of(subject.claims)}; write allow-tcb = ["Unknown"]'
        yield check("tcb-status", expected, seen, status in (TcbStatus.UP_TO_DATE, *exceptions.allow_tcb))
    for claims in found:
        yield _tcb_of(claims, subject.now, exceptions, expected, snp_minimum)


def _tcb_of(claims: Claims, now: datetime, exceptions: Exceptions, expected: str, snp_minimum: bool | None) -> Check:
    status = claims.tcb_status
    seen = f"{claims.family.value}: {status.value}"
    if claims.tcb_date is not None:
        seen += f", level of {day(claims.tcb_date)}"
    if claims.tcb_superseded is not None:
        seen += f", replaced by that of {day(claims.tcb_superseded)}"
        if exceptions.grace and now - claims.tcb_superseded <= period(exceptions.grace):
            status = _BEFORE_UPDATE.get(status, status)
    accepted = (TcbStatus.UP_TO_DATE, *exceptions.allow_tcb)
    ok = status in accepted
    if claims.family is Family.SNP and status is TcbStatus.UNKNOWN:
        expected = f"the least versions that the policy names{', or Unknown' if ok else ''}"
        if snp_minimum is None:
            seen += "; AMD publishes no list of levels: name snp and microcode in min_tcb, as its bulletins say"
        else:
            seen += f"; versions {', '.join(f'{name} {claims.versions[name]}' for name in sorted(claims.versions))}"
        ok = ok or bool(snp_minimum)
    return check("tcb-status", expected, seen, ok)

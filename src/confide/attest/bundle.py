"""Frozen bundles: evidence, collateral, policy, time and verdict in one JSON file, to be verified again years later.

A bundle proves nothing by being one. `reverify` starts from the evidence again, so whoever alters it, its collateral,
the policy or the time changes the verdict or breaks a signature; and a verdict other than the one on record is a
failed check. The policy and the time in it are whoever froze it's: give your own to be sure of them.
"""

from dataclasses import replace
from datetime import datetime
from typing import Annotated, Final, Literal

import msgspec

from confide.attest.appraise import Verifies, appraise
from confide.attest.check import Check, Outcome, check
from confide.attest.collateral import OWN, Collateral, Provenance
from confide.attest.evidence import Evidence
from confide.attest.policy import AnyPolicy, Policy
from confide.attest.policy_toml import MAX_POLICY_BYTES, policy_from_toml, simulated_policy_from_toml, to_toml
from confide.attest.result import AttestationResult
from confide.attest.statement import Statement
from confide.attest.wire import Record, WireCollateral, WireEvidence
from confide.errors import MalformedEvidence

MAX_BUNDLE_BYTES: Final = 16 << 20


class _Verdict(Record, frozen=True):
    """The verdict as it was: for comparison, and for whoever reads the file."""

    trusted: bool
    simulated: bool
    checks: tuple[Check, ...]

    def gist(self) -> tuple[bool, bool, tuple[tuple[str, str], ...]]:
        """What must come out again. The words for it may change with the version of Confide."""
        return self.trusted, self.simulated, tuple((check.code, check.outcome) for check in self.checks)


class Bundle(Record, frozen=True):
    """What was appraised, against what, when, and what came out. provenance: of the collateral."""

    format: Literal[2] = msgspec.field(name="confide-bundle")
    at: Annotated[datetime, msgspec.Meta(tz=True)]
    evidence: WireEvidence
    collateral: WireCollateral
    policy_kind: Literal["production", "simulated"]
    policy: Annotated[str, msgspec.Meta(max_length=MAX_POLICY_BYTES)]
    result: _Verdict
    statement: Statement | None = None
    provenance: Provenance = OWN

    @classmethod
    def read(cls, data: bytes) -> "Bundle":
        """A bundle from a file's bytes. MalformedEvidence if they are none."""
        if len(data) > MAX_BUNDLE_BYTES:
            raise MalformedEvidence(f"A bundle has at most {MAX_BUNDLE_BYTES >> 20} MiB; this is none.")
        try:
            return msgspec.json.decode(data, type=cls)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise MalformedEvidence(f"This is no bundle, or it was damaged ({error}); get the file again.") from None

    def write(self) -> bytes:
        """The bundle as a file."""
        return msgspec.json.format(msgspec.json.encode(self)) + b"\n"

    @property
    def simulated(self) -> bool:
        """Whether its policy is for simulated hardware."""
        return self.policy_kind == "simulated"

    def own_policy(self) -> AnyPolicy:
        """The policy it was frozen with."""
        return (simulated_policy_from_toml if self.simulated else policy_from_toml)(self.policy)

    def reverify(
        self, verifier: Verifies, *, policy: AnyPolicy | None = None, now: datetime | None = None
    ) -> AttestationResult:
        """The verdict found anew. With the bundle's own policy and time, it must also be the verdict on record."""
        evidence = self.evidence.thaw()
        collateral = replace(self.collateral.thaw(), provenance=self.provenance)
        chosen = policy or self.own_policy()
        result = appraise(verifier, evidence, collateral, chosen, now or self.at, statement=self.statement)
        if policy is not None or now is not None:
            return result
        same = _record(result).gist() == self.result.gist()
        record = check("record", _short(self.result.checks), _short(result.checks), same)
        return replace(result, checks=(*result.checks, record))


def freeze(
    verifier: Verifies,
    evidence: Evidence,
    collateral: Collateral,
    policy: AnyPolicy,
    now: datetime,
    *,
    statement: Statement | None = None,
) -> Bundle:
    """Appraise and keep everything that went in and came out. A refusal can be kept too."""
    result = appraise(verifier, evidence, collateral, policy, now, statement=statement)
    return Bundle(
        format=2,
        at=now,
        evidence=WireEvidence.of(evidence),
        collateral=WireCollateral.of(collateral),
        policy_kind="production" if isinstance(policy, Policy) else "simulated",
        policy=to_toml(policy),
        result=_record(result),
        statement=statement,
        provenance=collateral.provenance,
    )


def _record(result: AttestationResult) -> _Verdict:
    return _Verdict(result.trusted, result.simulated, result.checks)


def _short(checks: tuple[Check, ...]) -> str:
    failed = [check.code for check in checks if check.outcome is Outcome.FAIL]
    return f"{len(checks)} checks, failed: {', '.join(failed)}" if failed else f"{len(checks)} checks, none failed"

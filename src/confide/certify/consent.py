"""Blind mode: both owners approve one run before it is made, and whoever measures refuses it without both.

A signature says that somebody approved, and a manifest that somebody signed a package, but neither says that this
somebody is its owner: a host can sign the ciphertext of others. What only the owner has is the key that the package is
sealed with. So a consent carries a proof by that key for the owner's public key and the run, and it is checked with the
key that was released and opens the package.
"""

import hmac
from collections.abc import Mapping, Sequence
from typing import Final, Literal, TypeVar

import msgspec

from confide.attest.certificates import Approval, DescribedRun, Role
from confide.attest.configuration import Hex32
from confide.attest.scores import Run
from confide.attest.training import TrainingRun
from confide.attest.wire import Record
from confide.errors import RunRefused
from confide.packages.owner import OwnerKey
from confide.packages.sealed.key import ModelKey

MAX_RUN_BYTES: Final = 1 << 16
_Record = TypeVar("_Record", bound=Record)


class _RunFile(Record, frozen=True):
    """A run, for its owners to read and to approve."""

    format: Literal[1] = msgspec.field(name="confide-run")
    run: Run


class _TrainingRunFile(Record, frozen=True):
    """The same of a training."""

    format: Literal[1] = msgspec.field(name="confide-training-run")
    run: TrainingRun


class Consent(Record, frozen=True):
    """An owner's approval of the run with this digest. proof: by the key of the owner's package, in hexadecimal."""

    format: Literal[2] = msgspec.field(name="confide-consent")
    run: Hex32
    approval: Approval
    proof: Hex32


def write_run(run: Run | TrainingRun) -> bytes:
    """As a file."""
    file = _RunFile(1, run) if isinstance(run, Run) else _TrainingRunFile(1, run)
    return msgspec.json.format(msgspec.json.encode(file)) + b"\n"


def read_run(content: bytes) -> Run:
    """A run from a file's bytes. RunRefused for anything else."""
    return _decode(content, _RunFile, "run; make it again with `confide certify run`").run


def read_training_run(content: bytes) -> TrainingRun:
    """The same of a training."""
    return _decode(content, _TrainingRunFile, "run of a training; make it again with `confide train run`").run


def write_consent(consent: Consent) -> bytes:
    """As a file."""
    return msgspec.json.format(msgspec.json.encode(consent)) + b"\n"


def read_consent(content: bytes) -> Consent:
    """A consent from a file's bytes. RunRefused for anything else."""
    return _decode(content, Consent, "consent; get it from the owner again")


def consent_to(run: DescribedRun, role: Role, owner: OwnerKey, key: ModelKey) -> Consent:
    """By an owner, who holds the key of the package of this role."""
    approval = Approval(role, str(owner.public), owner.sign(run.approval(role)).hex())
    return Consent(2, run.digest, approval, key.vouch(_vouched(run, approval)).hex())


def require_approved(
    run: DescribedRun, consents: Sequence[Consent], owners: Mapping[Role, str]
) -> tuple[Approval, ...]:
    """The approvals of both owners, each of this very run. owners: who signed the packages. RunRefused without both."""
    found = []
    for role in Role:
        fitting = [one for one in consents if one.approval.role is role]
        if len(fitting) != 1 or len(consents) != len(Role):
            raise RunRefused(
                f"A sealed dataset takes one approval of each owner, and {len(fitting)} of {len(consents)} are for the "
                f"{role}; have each of them approve it."
            )
        (consent,) = fitting
        if consent.run != run.digest or not consent.approval.approves(run):
            raise RunRefused(
                f"The owner of the {role} approved another run than this one would be; describe this one again, "
                "and have that approved."
            )
        if consent.approval.owner != owners[role]:
            raise RunRefused(f"Somebody else approved the run than signed the package of the {role}; ask its owner.")
        found.append(consent.approval)
    return tuple(found)


def require_owners(run: DescribedRun, consents: Sequence[Consent], keys: Mapping[Role, ModelKey]) -> None:
    """RunRefused unless each approval is by whoever holds the key of that package. keys: that were released."""
    for consent in consents:
        expected = keys[consent.approval.role].vouch(_vouched(run, consent.approval))
        if not hmac.compare_digest(expected, bytes.fromhex(consent.proof)):
            raise RunRefused(
                f"Whoever approved the run for the {consent.approval.role} does not hold its key, and is not its owner."
            )


def _vouched(run: DescribedRun, approval: Approval) -> bytes:
    return run.approval(approval.role) + bytes.fromhex(approval.owner)


def _decode(content: bytes, kind: type[_Record], what: str) -> _Record:
    try:
        if len(content) > MAX_RUN_BYTES:
            raise ValueError("too large")
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise RunRefused(f"This is no {what}.") from None

"""Policies as TOML files, in both directions: what is read, written and read again is the same policy.

A file says which kind it is, and each kind has a reader of its own: no production setting takes a simulated policy.
Policies come from strangers too, inside bundles, so reading is linear in their size: Python's TOML reader takes the
square of the parts of a dotted key, and `require_shallow` refuses those before it sees them.
"""

import hashlib
from typing import Annotated, Any, Final, Literal

import msgspec
import rfc8785

from confide.attest.defaults import Exceptions
from confide.attest.policy import AnyPolicy, Policy, SimulatedPolicy
from confide.attest.requirements import AnyRequirement, NotTrainedOn, ScoreAtLeast, TrainedOn
from confide.errors import InvalidPolicy
from confide.shallow_toml import require_shallow

MAX_POLICY_BYTES: Final = 1 << 17
MAX_MARKS: Final = 2000

_TOO_LARGE: Final = f"A policy has at most {MAX_POLICY_BYTES >> 10} KiB; shorten its lists."


class _Document(Exceptions, frozen=True, forbid_unknown_fields=True, omit_defaults=True, rename="kebab", kw_only=True):
    """format: of this file. all: the requirements, each a table whose `require` names it. score_at_least, trained_on,
    not_trained_on: more of them, of that kind alone.
    """

    format: Literal[1] = msgspec.field(name="confide-policy")
    kind: Literal["production", "simulated"]
    version: Annotated[str, msgspec.Meta(max_length=256)] = ""
    all: tuple[AnyRequirement, ...] = ()
    score_at_least: tuple[ScoreAtLeast, ...] = ()
    trained_on: tuple[TrainedOn, ...] = ()
    not_trained_on: tuple[NotTrainedOn, ...] = ()

    @property
    def requirements(self) -> tuple[AnyRequirement, ...]:
        """All of them."""
        return (*self.all, *self.score_at_least, *self.trained_on, *self.not_trained_on)

    @property
    def exceptions(self) -> Exceptions:
        """Its exceptions alone."""
        return Exceptions(*(getattr(self, name) for name in Exceptions.__struct_fields__))


def to_toml(policy: AnyPolicy) -> str:
    """The policy as a TOML document."""
    return msgspec.toml.encode(_fields(policy)).decode()


def policy_digest(policy: AnyPolicy) -> str:
    """SHA-256, in hexadecimal, of what `to_toml` says, as JSON in the form of RFC 8785: the same by any encoder."""
    return hashlib.sha256(rfc8785.dumps(_fields(policy))).hexdigest()


def _fields(policy: AnyPolicy) -> dict[str, Any]:
    kind = "production" if isinstance(policy, Policy) else "simulated"
    head = {"confide-policy": 1, "kind": kind} | ({"version": policy.version} if policy.version else {})
    requirements = {"all": msgspec.to_builtins(policy.requirements)} if policy.requirements else {}
    fields: dict[str, Any] = head | msgspec.to_builtins(policy.exceptions) | requirements
    return fields


def policy_from_toml(text: str) -> Policy:
    """Read a policy for production. InvalidPolicy for anything else."""
    document = _read(text)
    if document.kind != "production":
        raise InvalidPolicy("This policy is for simulated hardware and trusts none that is real; choose another one.")
    return Policy(document.requirements, document.version, document.exceptions)


def simulated_policy_from_toml(text: str) -> SimulatedPolicy:
    """Read a policy for tests and demonstrations. InvalidPolicy for anything else."""
    document = _read(text)
    if document.kind != "simulated":
        raise InvalidPolicy("This policy is for real hardware, and the evidence is simulated; choose another one.")
    return SimulatedPolicy(document.requirements, document.version, document.exceptions)


def any_policy_from_toml(text: str) -> AnyPolicy:
    """Read a policy of either kind, for those who keep both and hold them apart by their types. InvalidPolicy."""
    document = _read(text)
    made = Policy if document.kind == "production" else SimulatedPolicy
    return made(document.requirements, document.version, document.exceptions)


def _read(text: str) -> _Document:
    if len(text) > MAX_POLICY_BYTES:
        raise InvalidPolicy(_TOO_LARGE)
    require_shallow(text, "The policy", InvalidPolicy, MAX_MARKS)
    try:
        return msgspec.toml.decode(text, type=_Document)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        reason = f"The policy cannot be understood: {str(error)[:300]}. Correct that place"
        raise InvalidPolicy(f"{reason}; `require` names each requirement.") from None

"""Policies as TOML files, in both directions: what is read, written and read again is the same policy.

A file says which kind it is, and each kind has a reader of its own: no production setting takes a simulated policy.
"""

from typing import Annotated, Final, Literal

import msgspec

from confide.attest.policy import AnyPolicy, Policy, SimulatedPolicy
from confide.attest.requirements import AnyRequirement
from confide.errors import InvalidPolicy

MAX_POLICY_BYTES: Final = 1 << 18
_TOO_LARGE: Final = f"A policy has at most {MAX_POLICY_BYTES >> 10} KiB; shorten its lists."


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """format: of this file. all: the requirements, each a table whose `require` names it."""

    format: Literal[1] = msgspec.field(name="confide-policy")
    kind: Literal["production", "simulated"]
    all: tuple[AnyRequirement, ...]
    version: Annotated[str, msgspec.Meta(max_length=256)] = ""


def to_toml(policy: AnyPolicy) -> str:
    """The policy as a TOML document."""
    kind: Literal["production", "simulated"] = "production" if isinstance(policy, Policy) else "simulated"
    return msgspec.toml.encode(_Document(1, kind, policy.requirements, policy.version)).decode()


def policy_from_toml(text: str) -> Policy:
    """Read a policy for production. InvalidPolicy for anything else."""
    document = _read(text)
    if document.kind != "production":
        raise InvalidPolicy("This policy is for simulated hardware and trusts none that is real; choose another one.")
    return Policy(document.all, document.version)


def simulated_policy_from_toml(text: str) -> SimulatedPolicy:
    """Read a policy for tests and demonstrations. InvalidPolicy for anything else."""
    document = _read(text)
    if document.kind != "simulated":
        raise InvalidPolicy("This policy is for real hardware, and the evidence is simulated; choose another one.")
    return SimulatedPolicy(document.all, document.version)


def any_policy_from_toml(text: str) -> AnyPolicy:
    """Read a policy of either kind, for those who keep both and hold them apart by their types. InvalidPolicy."""
    document = _read(text)
    return (Policy if document.kind == "production" else SimulatedPolicy)(document.all, document.version)


def _read(text: str) -> _Document:
    if len(text) > MAX_POLICY_BYTES:
        raise InvalidPolicy(_TOO_LARGE)
    try:
        return msgspec.toml.decode(text, type=_Document)
    except (msgspec.MsgspecError, RecursionError) as error:
        reason = f"The policy cannot be understood: {error}. Correct that place; `require` names each requirement."
        raise InvalidPolicy(reason) from None
